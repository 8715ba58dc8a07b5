"""Models to merge, tiny ones of several architectures, and the plain way to do it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines import card, merge, merging
from pipelines.merging import Merging
from tests import causal_models
from train.merge import methods, work

WIDTH = 64
SHARD = "8KB"
"""Most bytes of a file of the models: each has several."""

Made = dict[str, str]
"""Folders of models, by name."""

SMALL = {"shard_bytes": 9_000}
"""A merged model of several files."""

ALL = "0-2"
"""Its files, made in this process: no runner is started."""

KEY = "model.layers.1.mlp.up_proj.weight"


def write(
    folder: Path,
    kind: str = "llama",
    seed: int = 0,
    *,
    width: int = WIDTH,
    dtype: torch.dtype = torch.float32,
    shard: str = SHARD,
) -> Path:
    """Writes a model; those of other seeds are near that of seed 0, as if trained."""
    model = causal_models.make(kind, width)
    draw = torch.Generator().manual_seed(seed)
    for weight in model.parameters() if seed else ():
        weight.data.add_(0.1 * torch.randn(weight.shape, generator=draw))
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def several(folder: Path, count: int = 2, **more: Any) -> dict[str, str]:
    """Writes a base and models near it; returns their folders, the base as `base`."""
    write(folder / "base", **more)
    for seed in range(1, count + 1):
        write(folder / f"m{seed}", seed=seed, **more)
    names = ["base", *(f"m{seed}" for seed in range(1, count + 1))]
    return {name: str(folder / name) for name in names}


def table(made: Mapping[str, str], out: str, **more: Any) -> dict[str, Any]:
    """Returns a table `[merge]` of models that `several` wrote."""
    models = {name: place for name, place in made.items() if name != "base"}
    told = {"models": models, "base": made["base"], "output": out, **more}
    return {key: value for key, value in told.items() if value is not None}


def given(made: Mapping[str, str], out: str, method: str, **more: Any) -> Merging:
    """Returns what a table `[merge]` says."""
    return merging.read_table(table(made, out, method=method, **more))


def recipe(folder: Path, told: Mapping[str, Any]) -> str:
    """Writes a recipe of a table `[merge]`; returns its path."""
    rules = told.get("rules", ())
    lines = ["[merge]"]
    lines += [f"{k} = {card.toml(v)}" for k, v in told.items() if k != "rules"]
    for rule in rules:
        lines += [
            "[[merge.rules]]",
            *(f"{k} = {card.toml(v)}" for k, v in rule.items()),
        ]
    path = folder / "recipe.toml"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def state(folder: str | Path) -> dict[str, Tensor]:
    """Reads all tensors of a model, by safetensors' own reader."""
    found: dict[str, Tensor] = {}
    for path in sorted(Path(folder).glob("model*.safetensors")):
        found |= load_file(path)
    return found


def rewrite(folder: str | Path, change: Mapping[str, Tensor | None]) -> None:
    """Puts tensors in place of others of a model, or takes them out: one file then."""
    whole = {k: v for k, v in {**state(folder), **change}.items() if v is not None}
    for path in Path(folder).glob("model*"):
        path.unlink()
    save_file(whole, Path(folder) / "model.safetensors", {"format": "pt"})


def edit_config(folder: str | Path, **change: Any) -> None:
    """Changes what a model's configuration says; None takes a key out."""
    path = Path(folder) / "config.json"
    told = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({k: v for k, v in told.items() if v is not None}))


def plainly(
    made: Mapping[str, str],
    method: str,
    settings: Mapping[str, Any],
    names: Sequence[str],
) -> dict[str, Tensor]:
    """Merges whole models in memory, key by key; SLERP does without the base."""
    states = [state(made[name]) for name in names]
    base = state(made["base"])
    needed = methods.METHODS[method].base != "none" and method != "slerp"
    seeded = methods.METHODS[method].seeded
    return {
        key: methods.merge_tensors(
            method,
            [one[key].float() for one in states],
            value.float() if needed else None,
            settings,
            torch.Generator().manual_seed(work.seed_of(0, key)) if seeded else None,
        ).to(value.dtype)
        for key, value in base.items()
    }


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Says whether two models are the same to the bit."""
    return one.keys() == other.keys() and all(
        value.dtype == other[key].dtype and torch.equal(value, other[key])
        for key, value in one.items()
    )


def run(made: Made, out: str, method: str = "ties", *flags: str, **more: Any) -> None:
    """Merges models, into several files unless `more` says otherwise."""
    told = given(made, out, method, **{**SMALL, **more})
    assert merge.merge_models(told, flags)
