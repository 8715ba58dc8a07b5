"""The headers of a model's weights; of a model on the hub the weights stay there.

They say all that a plan needs which nobody carries out: keys, types, shapes and sizes.
"""

from schemas import weights
from schemas.errors import SchemaError
from schemas.weights import Place, Weights
from train.merge.inputs import Input


def read(one: Input) -> Weights:
    """Reads the headers of a model's weights.

    Where weights of the hub are not on this machine, places count from the end of a
    file's header, whose length the hub's client does not tell; and no stamps are known.

    Raises:
      FileNotFoundError: if there are no weights, or the hub does not answer.
      SchemaError: if a header cannot be read.
    """
    if one.commit is None:
        return weights.read_weights(one.folder)
    held = one.folder_with(("*.json",))  # an index among them
    try:
        return weights.read_weights(held)
    except FileNotFoundError:
        return _of_hub(one)


def _of_hub(one: Input) -> Weights:
    from huggingface_hub import get_safetensors_metadata

    where = f"{one.model}@{one.commit}"
    try:
        found = get_safetensors_metadata(one.model, revision=one.commit)
    except Exception as error:  # its client's own kinds change from version to version
        raise FileNotFoundError(
            f"the hub must tell the headers of {where}, whose weights must be"
            f" {weights.PATTERN}, it did not ({type(error).__name__}: {error}); a gated"
            " model needs HF_TOKEN or hf auth login"
        ) from error
    try:
        places = {
            key: weights.read_place(name, 0, key, _entry(tensor))
            for name, file in sorted(found.files_metadata.items())
            for key, tensor in file.tensors.items()
        }
    except ValueError as error:
        raise SchemaError(
            f"{where} must hold whole safetensors files of known types: {error}"
        ) from error
    order = sorted(places, key=lambda key: _order(places[key], key))
    return Weights(places={key: places[key] for key in order}, stamps={})


def _entry(tensor: object) -> dict[str, object]:
    """Writes what the hub's client says of a tensor as a header does."""
    names = ("dtype", "shape", "data_offsets")
    return {name: getattr(tensor, name) for name in names}


def _order(place: Place, key: str) -> tuple[str, int, str]:
    return place.file, place.start, key
