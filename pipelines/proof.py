"""Proof of a merged model: that its folder holds what its plan says."""

from schemas import files, manifest, weights
from schemas.errors import SchemaError
from schemas.manifest import Manifest
from train.merge import checksums, inputs, plan, rules, sums, work
from train.merge.inputs import Input


def check(folder: str, made: Manifest) -> str:
    """Checks that a merged model holds what its plan says, of the models there are.

    Sizes and checksums of all files are compared before.

    Raises:
      SchemaError: at the first law that does not hold.
    """
    shards = plan.read(folder)
    held = weights.read_weights(folder)
    planned = {t.key: (t.dtype, t.shape) for s in shards for t in s.tensors}
    there = {key: (place.dtype, place.shape) for key, place in held.places.items()}
    if odd := sorted(
        key for key in {*planned, *there} if planned.get(key) != there.get(key)
    ):
        raise SchemaError(
            f"{folder} must hold every tensor of {plan.NAME} and no others, but"
            f" {weights.some(odd)} {'is' if len(odd) == 1 else 'are'} not as planned"
        )
    for shard in shards:
        wanted = work.fingerprint(made.fingerprint, shard)
        weights.is_done(files.join(folder, shard.file), wanted)
    _refuse_strays(folder, made)
    manifest.check_count(folder, made, "tensors", len(planned))
    known, away = _models(folder, made), absent(folder, made)
    for name in known.keys() - away.keys():
        _compare(folder, made, name, known[name])
    return (
        f"{len(planned):,} tensors in {len(shards):,} files as planned, of"
        f" {len(known) - len(away)} of {len(known)} models, which are there"
    )


def _refuse_strays(folder: str, made: Manifest) -> None:
    """Refuses weights that the manifest does not list, and sums of a first pass."""
    listed = {entry.name for entry in made.files}
    found = inputs.names_like(folder, (weights.PATTERN, weights.INDEX))
    strays = [name for name in found if name not in listed]
    strays += [name for name in files.folders(folder) if name == sums.FOLDER]
    if strays:
        raise SchemaError(
            f"{folder} must hold what its {manifest.NAME} lists, but"
            f" {weights.some(strays)} {'is' if len(strays) == 1 else 'are'} there, too;"
            f" remove what is not of this merge (a repeated command drops"
            f" {sums.FOLDER})"
        )


def _models(folder: str, made: Manifest) -> dict[str, str]:
    """Returns where the models of a merge lie, by name, if all was moved together."""
    stored = made.origins["models"]
    return {name: files.resolve(folder, model) for name, model in stored.items()}


def absent(folder: str, made: Manifest) -> dict[str, str]:
    """Returns the models of a merge that are not there, with their places."""
    known = _models(folder, made)
    return {name: model for name, model in known.items() if not files.exists(model)}


def _compare(folder: str, made: Manifest, name: str, model: str) -> None:
    """Compares a model with what its merge saw.

    Raises:
      SchemaError: if it is another by now.
    """
    key = name if name == rules.BASE else f"model:{name}"
    found = Input(name=name, model=model).fingerprint(checksums.taken)
    if found != made.inputs[key]:
        raise SchemaError(f"{folder} must be made of the {name} now in {model}")
