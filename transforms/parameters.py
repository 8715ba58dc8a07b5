"""How many parameters a model has, without loading it.

Weights on the disk say it in their headers. Of a model on the hub only the
configuration is fetched, and the model is laid out on torch's meta device, which holds
shapes and no numbers.
"""

import dataclasses
import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from schemas import buckets, files, weights
from transforms import causal, checkpoint


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """The size of a model.

    Attributes:
      count: its parameters, embeddings among them, tied ones once.
      stored_bytes: what they take as they are stored.
      source: where this was read.
    """

    count: int
    stored_bytes: int
    source: str


def count(model: str) -> Parameters:
    """Counts a model's parameters.

    Args:
      model: a local folder, a `*.gguf` file, or a name on the Hugging Face hub. A
        folder needs its weights or its configuration.

    Raises:
      FileNotFoundError: if it is none of these.
      SchemaError: if a weights file's header cannot be read.
      ValueError: if transformers does not know what the configuration describes.
    """
    found = checkpoint.fetch(model, [checkpoint.CONFIG])
    if found.gguf_file is not None:
        return _of_gguf(found.folder / found.gguf_file)
    paths = sorted(found.folder.glob(checkpoint.SAFE))
    if found.commit is None and paths and not _missing(model, paths):
        return _of_headers(paths)
    return _of_config(model, found.folder)


def _missing(model: str, paths: Sequence[Path]) -> set[str]:
    """Names the files of weights that are not there, as of what lists all of them.

    Of a model in a bucket some may have been fetched, before it was stopped.
    """
    there = {path.name for path in paths}
    if buckets.protocol(model):
        held = files.names(model)
        return {name for name in held if fnmatchcase(name, checkpoint.SAFE)} - there
    index = paths[0].parent / weights.INDEX
    listed = files.read_json(str(index))["weight_map"] if index.is_file() else {}
    return set(listed.values()) - there


def _of_headers(paths: list[Path]) -> Parameters:
    """Sums the tensors that the headers of safetensors files list."""
    elements = stored = 0
    for path in paths:
        for place in weights.read_header(str(path)).places.values():
            elements += math.prod(place.shape)
            stored += place.stop - place.start
    return Parameters(count=elements, stored_bytes=stored, source="weights' headers")


def _of_gguf(path: Path) -> Parameters:
    from gguf import GGUFReader  # an extra

    tensors = GGUFReader(str(path)).tensors  # a map of the file: nothing is loaded
    return Parameters(
        count=sum(int(tensor.n_elements) for tensor in tensors),
        stored_bytes=sum(int(tensor.n_bytes) for tensor in tensors),
        source="GGUF header",
    )


def _of_config(model: str, folder: Path) -> Parameters:
    import torch  # takes seconds
    import transformers

    if not (folder / checkpoint.CONFIG).is_file():
        raise FileNotFoundError(
            f"{model} must hold {checkpoint.CONFIG} or weights, to tell its"
            f" parameters, but {folder} holds neither"
        )
    with causal.quiet(), torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
        laid_out = transformers.AutoModelForCausalLM.from_config(
            config, trust_remote_code=False
        )
    elements = sum(parameter.numel() for parameter in laid_out.parameters())
    dtype = getattr(config.get_text_config(), "dtype", None) or torch.float32
    return Parameters(
        count=elements,
        stored_bytes=elements * dtype.itemsize,
        source=checkpoint.CONFIG,
    )
