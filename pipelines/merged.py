"""The folder of a merged model, and what makes it whole.

The files of weights come first; then what makes a model of them, configuration last,
so that nobody loads a half of it; then the manifest.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines import card, stage
from schemas import copies, files, manifest, version, weights
from schemas.errors import FusionError, SchemaError
from schemas.manifest import FileEntry, Manifest
from train.merge import checksums, inputs, plan, rules, sums, vocabulary, work
from train.merge.inputs import Input
from train.merge.match import Sources
from train.merge.plan import Shard
from transforms import checkpoint

_DTYPE_KEYS = ("dtype", "torch_dtype")
_OURS = (
    weights.PATTERN,
    weights.INDEX,
    vocabulary.FILE,
    checkpoint.CONFIG,
    *checkpoint.COMPANIONS,
)
"""What a folder may hold of a model that was merged there before."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """What the folder says of itself beside its plan; small, as a job carries it.

    Attributes:
      models: the inputs: the models in order, then the base where there is one.
      lead: place of the model whose configuration and tokenizer it has.
      settings: those that shape the merged model.
      inputs: fingerprints of what it is made of, by name.
      notes: what was taken for what.
      dtype: what floats are stored in; None: as in the lead.
    """

    models: tuple[Input, ...]
    lead: int
    settings: Mapping[str, Any]
    inputs: Mapping[str, Any]
    notes: tuple[str, ...]
    dtype: str | None

    @property
    def identity(self) -> str:
        """Digest of all that shapes the bytes of the folder."""
        return stage.identity(work.STAGE, self.settings, self.inputs)


def inputs_of(sources: Sources, shards: Sequence[Shard]) -> dict[str, Any]:
    """Returns the fingerprints of all that a merged model is made of, by name.

    `plan` is of what was settled of every tensor: what rules and settings come to, with
    defaults, and what vocabularies and headers say.
    """
    lead = sources.models[sources.lead]
    found: dict[str, Any] = {
        one.name if one.name == rules.BASE else f"model:{one.name}": one.fingerprint()
        for one in sources.models
    }
    found["config"] = files.digest(lead.config)  # with what its weights do not tell
    folder, names = _companions(lead)
    known = zip(names, checksums.known(folder, names), strict=True)
    found["companions"] = files.digest(dict(known))
    found["plan"] = files.digest([shard.digest for shard in shards])
    if sources.vocabulary.ids is not None:
        found["vocabulary"] = files.digest(sources.vocabulary.ids.tolist())
    return found


def _companions(lead: Input) -> tuple[str, list[str]]:
    """Returns the folder and names of the files that are taken over as they are."""
    folder = lead.folder_with(("*.json", *checkpoint.COMPANIONS))
    found = inputs.names_like(folder, checkpoint.COMPANIONS)
    return folder, [name for name in found if not name.endswith(".safetensors")]


def differences(sources: Sources) -> list[str]:
    """Tells what configurations say differently of models that fit otherwise."""
    lead = sources.models[sources.lead]
    told = []
    for one in sources.models:
        if keys := inputs.differing(lead, one):
            told.append(
                f"the configurations of {lead.name} and {one.name} differ in"
                f" {weights.some(keys)}; {lead.name}'s is kept"
            )
    return told


def refuse_other_plan(output: str, shards: Sequence[Shard], told: Description) -> None:
    """Looks whether another plan is what tells a finished folder from this merge.

    Raises:
      SchemaError: if so; names the first tensor that is planned otherwise, and how.
    """
    if not manifest.present(output):
        return
    found = manifest.read(output, work.STAGE)
    had, wanted = dict(found.inputs), dict(told.inputs)
    others = sorted(k for k in {*had, *wanted} if had.get(k) != wanted.get(k))
    if found.settings == told.settings and others[:1] == ["plan"]:
        _refuse_planned(output, shards)


def _refuse_planned(output: str, shards: Sequence[Shard]) -> None:
    """Refuses a folder whose plan has a tensor otherwise, where it has one."""
    if told := plan.difference(plan.read(output), shards):
        raise SchemaError(
            f"{output} was written with {told}; choose another folder, or pass"
            " --overwrite to write this one anew"
        )


def refuse_others(
    output: str, shards: Sequence[Shard], identity: str, *, overwrite: bool
) -> None:
    """Looks whether what is not of this merge is in the way, before any is written.

    Raises:
      SchemaError: if so, and `overwrite` is off.
    """
    there = set(files.names(output))
    if not there or overwrite:
        return
    if not plan.is_begun(output):
        raise SchemaError(
            f"{output} must be a new folder or one that merge wrote, but holds"
            f" {weights.some(sorted(there))}; choose another output, or pass"
            " --overwrite"
        )
    wanted = {shard.file for shard in shards}
    for name in sorted(there):
        if name.endswith(".safetensors") and name not in wanted:
            raise SchemaError(
                f"{output} was begun with other settings or models, as it holds {name};"
                " choose another output, or pass --overwrite"
            )
    for shard in shards:
        if shard.file in there:
            told, path = (
                work.fingerprint(identity, shard),
                files.join(output, shard.file),
            )
            if not weights.is_done(path, told, overwrite=True):
                _refuse_planned(output, shards)
            weights.is_done(path, told)
            return  # a folder is one work's; each file is looked at when it is done


def begin(output: str, sources: Sources, shards: Sequence[Shard], told: str) -> None:
    """Writes what workers read: the plan, and which rows are of which tokens.

    A configuration that is there goes first, unless all files are there and of this
    merge: without it nobody takes files of two merges for a model.

    Args:
      output: the folder.
      sources: the models.
      shards: the files.
      told: digest of all that shapes the folder's bytes.
    """
    config = files.join(output, checkpoint.CONFIG)
    # In this order: another command of this merge writes it when all are there.
    if files.exists(config) and not _all_done(output, shards, told):
        files.remove_tree(config)
    plan.write(output, shards)
    if sources.vocabulary.ids is not None:
        path = files.join(output, vocabulary.FILE)
        vocabulary.write(path, sources.vocabulary.ids, told)


def _all_done(output: str, shards: Sequence[Shard], identity: str) -> bool:
    """Says whether all files of weights are there, made by this very merge."""

    def done(shard: Shard) -> bool:
        wanted = work.fingerprint(identity, shard)
        return weights.is_done(files.join(output, shard.file), wanted, overwrite=True)

    return all(files.each(done, shards))


def describe(output: str, told: Description) -> Manifest:
    """Makes a model of files that are all there, and writes its manifest.

    What another command of this merge has finished stays as it is.

    Raises:
      FusionError: if another command writes there.
    """
    found = finished(output, told.identity) or _described(output, told)
    drop_sums(output)
    return found


def finished(output: str, identity: str) -> Manifest | None:
    """Returns the manifest of a folder that this very merge has finished, if any."""
    if not manifest.present(output):
        return None
    found = manifest.read(output, work.STAGE)
    return found if found.fingerprint == identity else None


def drop_sums(output: str) -> None:
    """Removes what a first pass has measured, which nobody needs any more."""
    files.remove_tree(files.join(output, sums.FOLDER))


def _described(output: str, told: Description) -> Manifest:
    shards = plan.read(output)
    wanted = [shard.file for shard in shards]
    begun: list[str] = []

    def made() -> Manifest:
        entries = _entries(output, shards, told.identity)
        measured = _measured(output, shards, told.identity)
        text = card.text(told.models, told.settings, told.inputs, told.notes, measured)
        text += card.checksums(entries)
        files.write_bytes(files.join(output, card.NAME), text.encode())
        begun.append(card.NAME)
        others = {card.NAME, plan.NAME, *_write_model(output, shards, told)}
        _remove_others(output, {*wanted, *others})
        entries += [stage.entry(output, name) for name in sorted(others)]
        return _manifest(output, shards, told, entries)

    try:
        return stage.at_rest(output, wanted, made)
    except (FusionError, OSError):
        if found := finished(output, told.identity):
            return found  # another command of this merge was first, and tidied up
        if begun and not manifest.present(output):
            # Ours, beside files that are no model any more.
            files.remove_tree(files.join(output, checkpoint.CONFIG))
        raise


def _manifest(
    output: str,
    shards: Sequence[Shard],
    told: Description,
    entries: Sequence[FileEntry],
) -> Manifest:
    tensors = [tensor for shard in shards for tensor in shard.tensors]
    return Manifest(
        stage=work.STAGE,
        fingerprint=told.identity,
        settings=told.settings,
        inputs=told.inputs,
        origins={"models": {one.name: _origin(output, one) for one in told.models}},
        counts={
            "models": len(told.settings["models"]),
            "tensors": len(tensors),
            "parameters": sum(tensor.elements for tensor in tensors),
            "merged": sum(tensor.how == plan.MERGE for tensor in tensors),
        },
        files=entries,
        code_version=version.VERSION,
    )


def _origin(output: str, one: Input) -> str:
    """Writes where a model lies as seen from the folder, or which of the hub it is."""
    return one.pinned if one.commit else files.relative(one.model, output)


def _entries(output: str, shards: Sequence[Shard], identity: str) -> list[FileEntry]:
    """Returns the entries of the weights: as noted when written, or by reading them.

    Raises:
      FusionError: if another command's file is among them.
    """
    prints = {shard.file: work.fingerprint(identity, shard) for shard in shards}
    for name, wanted in prints.items():
        if not weights.is_done(files.join(output, name), wanted, overwrite=True):
            raise FusionError(
                f"{output}/{name} must be of this command's settings when its folder is"
                " described, but another command wrote it anew meanwhile; give each its"
                " own folder, and repeat this one"
            )
    noted = manifest.noted_entries(output, dict(prints))

    def entry(shard: Shard) -> FileEntry:
        found = noted.get(shard.file) or stage.entry(output, shard.file)
        return dataclasses.replace(found, rows=len(shard.tensors))

    return files.each(entry, shards)


def _measured(
    output: str, shards: Sequence[Shard], identity: str
) -> dict[str, list[float]]:
    """Returns the weights that a first pass has measured, by what they are of."""
    tensors = (tensor for shard in shards for tensor in shard.tensors)
    return sums.weights(output, identity) if any(map(sums.needs, tensors)) else {}


def _write_model(
    output: str, shards: Sequence[Shard], told: Description
) -> Iterator[str]:
    """Writes what makes a model of the weights; yields the names."""
    lead = told.models[told.lead]
    folder, names = _companions(lead)
    for name in names:
        copies.copy(files.join(folder, name), files.join(output, name))
        yield name
    if len(shards) > 1:
        files.write_json(files.join(output, weights.INDEX), plan.index_of(shards))
        yield weights.INDEX
    if "vocabulary" in told.inputs:
        yield vocabulary.FILE
    config = _config(lead.config, told.dtype)
    if told.dtype is not None and not any(key in config for key in _DTYPE_KEYS):
        config[_DTYPE_KEYS[0]] = told.dtype
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    files.write_bytes(files.join(output, checkpoint.CONFIG), text.encode())
    yield checkpoint.CONFIG


def _config(config: Mapping[str, Any], dtype: str | None) -> dict[str, Any]:
    """Returns a configuration that says in which type the weights are stored."""
    made = dict(config)
    for key in _DTYPE_KEYS if dtype is not None else ():
        if key in made:
            made[key] = dtype
    if isinstance(made.get("text_config"), Mapping):
        made["text_config"] = _config(made["text_config"], dtype)
    return made


def _remove_others(output: str, names: set[str]) -> None:
    """Removes what another merge has left there, and nothing that is no model's."""
    for name in inputs.names_like(output, _OURS):
        if name not in names:
            files.remove_tree(files.join(output, name))
