"""The trained model as a Hugging Face folder with a card and a manifest.

It is written under a temporary name and renamed when it is whole. The manifest names
settings and inputs and no time, so equal runs give equal folders, but for the speeds in
metrics.jsonl.
"""

import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch

from schemas import copies, files, manifest
from schemas.errors import SchemaError
from schemas.manifest import FileEntry, Manifest
from schemas.version import VERSION
from train import checkpoints, objective
from train import model as models
from train import results as cards
from train.results import Results
from transforms import tokenizer

Value = TypeVar("Value")

STAGE = "train"
DATA = "data"
"""Key of the first folder of data; the others' are `data:2`, `data:3`, ..."""


def by_folder(values: Sequence[Value]) -> dict[str, Value]:
    """Names what is told of each folder of data.

    Example:
      >>> by_folder(["runs/a", "runs/b"])
      {'data': 'runs/a', 'data:2': 'runs/b'}
    """
    return {f"{DATA}:{i}" if i > 1 else DATA: v for i, v in enumerate(values, 1)}


def is_data(key: str) -> bool:
    """Says whether a key is one that `by_folder` makes."""
    return key.partition(":")[0] == DATA


def finished(output: str, identity: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Says whether the output is there, made by the very run that `identity` names.

    Raises:
      SchemaError: if it is there but was made by another run, or is not ours, and
        `overwrite` is off.
    """
    if not manifest.present(output):
        others = files.names(output) and not files.exists(_mark(output))
        if others and not overwrite:
            raise SchemaError(
                f"{output} must be a new folder or one that train wrote, but holds"
                " other files; choose another output, or pass --overwrite"
            )
        return False
    found = manifest.read(output, STAGE)
    had = {**found.settings, **found.inputs}
    # What may change where a run goes on is as its last command had it.
    wanted = {**identity, **{key: had.get(key) for key in checkpoints.free(identity)}}
    if had == wanted:
        return True
    if not overwrite:
        manifest.refuse_other(output, found, wanted)
    return False


def _mark(output: str) -> str:
    """Returns what is there while a model is on its way into a remote folder."""
    return files.join(output, files.TEMPORARY, "model")


def beside(output: str) -> pathlib.Path | None:
    """Returns the folder beside the output where it is made; None if it is remote.

    It is on the output's own disk, from where alone a rename leads there.
    """
    return None if "://" in output else pathlib.Path(output.rstrip("/") + ".partial")


def write_model(
    folder: pathlib.Path,
    model: Any,
    state: Mapping[str, torch.Tensor],
    *,
    source: pathlib.Path,
) -> None:
    """Writes weights and configuration, and copies what training did not change.

    Args:
      folder: made anew.
      model: whose weights `state` are.
      state: the weights by name, stored in the type that the target was stored in.
      source: the folder that the target came from.

    Raises:
      ValueError: if a weight is no number, or too large for that type.
    """
    dtype = models.stored_dtype(source)
    stored = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in state.items()
    }
    _refuse_broken(stored)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model.config.dtype = dtype
    model.save_pretrained(folder, state_dict=_tied(stored, state))
    for path in models.companions(source):
        shutil.copyfile(path, folder / path.name)
    _end_generation(folder, source)


def _end_generation(folder: pathlib.Path, source: pathlib.Path) -> None:
    """Lets generation end at the tokenizer's EOS, where nothing says where it ends."""
    path = folder / "generation_config.json"
    told = dict(files.read_json(str(path))) if path.exists() else {}
    if told.get("eos_token_id") is not None or not any(source.glob("tokenizer*")):
        return
    end = tokenizer.load(str(source)).eos_id
    if end is not None:
        files.write_json(str(path), {**told, "eos_token_id": end})


def _refuse_broken(stored: Mapping[str, torch.Tensor]) -> None:
    # The last step's loss was taken before its update, so it cannot tell.
    for name, value in stored.items():
        if not torch.isfinite(value).all():
            raise ValueError(
                f"trained weights must be finite, {name} is not; lower --learning_rate,"
                " or use --dtype float32"
            )


def _tied(
    stored: dict[str, torch.Tensor], state: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Lets names that shared their weights share them again, so each is saved once."""
    first: dict[tuple[int, torch.Size], str] = {}
    for name, value in state.items():
        place = value.data_ptr(), value.shape
        stored[name] = stored[first.setdefault(place, name)]
    return stored


def describe(
    folder: pathlib.Path,
    *,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Any],
    origins: Mapping[str, Any],
    counts: Mapping[str, int],
    data: Sequence[Manifest],
    results: Results,
) -> None:
    """Writes the card, then the manifest over all files of the folder."""
    told = cards.section(results, counts)
    card = _card(settings, inputs, origins, counts, data) + f"\n{told}\n"
    (folder / "README.md").write_text(card)
    entries = [
        FileEntry(
            name=path.name,
            rows=0,
            tokens=0,
            bytes=path.stat().st_size,
            sha256=files.checksum(str(path)),
        )
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != checkpoints.METRICS
    ]
    written = Manifest(
        stage=STAGE,
        fingerprint=files.digest({"settings": settings, "inputs": inputs}),
        settings=settings,
        inputs=inputs,
        origins=origins,
        counts=counts,
        files=entries,
        code_version=VERSION,
    )
    manifest.write(str(folder), written)
    shutil.rmtree(folder / files.TEMPORARY, ignore_errors=True)
    checkpoints.flush(folder)


def _card(
    settings: Mapping[str, Any],
    inputs: Mapping[str, Any],
    origins: Mapping[str, Any],
    counts: Mapping[str, int],
    data: Sequence[Manifest],
) -> str:
    rows = _table({key: settings[key] for key in sorted(settings)})
    named = {key: "" if key == DATA else f", {key}" for key in inputs if is_data(key)}
    prints = _table(
        {f"fused data's fingerprint{name}": inputs[key] for key, name in named.items()}
    )
    shares = zip(data, _shares(settings, data), strict=True)
    made = "\n\n".join(
        _card_of_data(key, *one) for key, one in by_folder(list(shares)).items()
    )
    aims = _table(objective.spoken(settings))
    return f"""---
library_name: transformers
tags: [fusebeam]
---
# {origins["model"]}, continued {_teachers(settings)}

Trained with FuseBeam {VERSION} for {counts["steps"]:,} steps,
{counts["tokens"]:,} tokens. The license of the target model and the terms of the
sources apply.

| what | |
| --- | --- |
| target | {origins["model"]} |
| target's fingerprint | {inputs["model"]} |
{prints}

## What was minimized

| part | as |
| --- | --- |
{aims}

## How it was trained

| setting | value |
| --- | --- |
{rows}

{made}
"""


def _table(told: Mapping[str, Any]) -> str:
    """Writes the rows of a table of two columns."""
    return "\n".join(f"| {name} | {value} |" for name, value in told.items())


def _teachers(settings: Mapping[str, Any]) -> str:
    """Says what the target learned from, and what each share was at first."""
    share = settings["clm_weight"]
    if share == 1:
        return "on text alone (causal language modeling, no fusion)"
    parts = {
        "the fused distributions of other models": settings["fusion_loss"] != "chunks",
        "how likely another model finds its chunks": settings.get("chunk_share", 0) > 0
        or settings["fusion_loss"] == "chunks",
    }
    fused = " and ".join(part for part, there in parts.items() if there)
    first = "" if settings["clm_schedule"] == "constant" else " at first"
    return f"on text and on {fused} ({share:g} to {1 - share:g}{first})"


def _card_of_data(key: str, data: Manifest, share: float) -> str:
    """Says how one folder of data was fused."""
    sources = _sources(data)
    fused = {**data.settings, **data.inputs}
    told = {"sources", *(_scores_of(name) for name in sources)}
    made = _table({k: fused[k] for k in sorted(fused) if k not in told})
    spoken = "\n".join(
        f"| {name} | {model} | {data.inputs.get(_scores_of(name), 'unknown')} |"
        for name, model in sources.items()
    )
    which = "" if share == 1 else f": {key}, {share:.4g} of the rows"
    return f"""## How its data was fused{which}

| source | model | fingerprint of its scores |
| --- | --- | --- |
{spoken}

| setting or input | value |
| --- | --- |
{made}"""


def _shares(settings: Mapping[str, Any], data: Sequence[Manifest]) -> list[float]:
    """Returns the share of the rows that come from each folder."""
    own = [sum(entry.rows for entry in one.files) for one in data]
    weights = settings.get("data_weights") or own
    return [weight / sum(weights) for weight in weights]


def _sources(data: Manifest) -> dict[str, str]:
    """Returns the model of each source by its name; the name where none is told."""
    models = data.origins.get("models", {})
    return {
        name: spoken_name(models.get(name, name))
        for name in data.settings.get("sources", ())
    }


def spoken_name(model: str) -> str:
    """Returns what a card calls a model: a hub id whole, of a path the last part.

    Example:
      >>> spoken_name("org/model-7b"), spoken_name("/home/me/models/mine")
      ('org/model-7b', 'mine')
    """
    local = model.count("/") != 1 or model.startswith(("/", ".", "~"))
    return files.name_of(model) if local else model


def _scores_of(source: str) -> str:
    """Returns the key of a source's scores among the inputs of fused data."""
    return f"scores:{source}"


def publish(folder: pathlib.Path, output: str) -> None:
    """Moves a described folder to its final name, beside which it lies.

    What it replaces is moved aside before that, and removed after it. What is remote
    has no such moment: it is whole once its manifest is there, which comes last, and
    goes first where a model is replaced.
    """
    if "://" in output:
        files.write_bytes(_mark(output), b"")
        copies.replace_tree(str(folder), output, last=manifest.NAME)
        return
    final = pathlib.Path(files.filesystem(output)[1])
    old = folder.with_name(checkpoints.OLD)
    shutil.rmtree(old, ignore_errors=True)
    try:
        if final.exists():  # empty, or to be overwritten
            os.rename(final, old)
        os.rename(folder, final)
    except BaseException:
        if old.exists() and not final.exists():
            os.rename(old, final)
        raise
    shutil.rmtree(old, ignore_errors=True)
