"""Small searches: a base, two experts of it, and two splits to measure them on."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
import transformers

from pipelines import card, search, searching
from pipelines.measuring import Measuring
from pipelines.search import Planned
from pipelines.searching import Searching
from tests import tiny
from tests.train import held_out
from train.search import objective

MERGE = (
    *("models", "base", "method", "rules", "settings", "dtype", "seed"),
    "embeddings",
)
"""Keys of [merge]; others are of [search]."""

Made = dict[str, str]
"""Folders: base, m1, m2, and the splits search and report."""


def make(folder: Path) -> Made:
    """Makes models, experts near the base, and windows of two domains."""
    base = tiny.llama(folder / "base")
    found = {"base": str(base)}
    for seed in (1, 2):
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        draw = torch.Generator().manual_seed(seed)
        for weight in model.parameters():
            weight.data.add_(0.05 * torch.randn(weight.shape, generator=draw))
        place = tiny.save(folder / f"m{seed}", tiny.byte_level(), model)
        found[f"m{seed}"] = str(place)
    made = [held_out.window(n, ("code", "prose")[n % 2]) for n in range(8)]
    found["search"] = held_out.write(folder / "search", made[:4])
    found["report"] = held_out.write(folder / "report", made[4:])
    return found


def add_token(made: Made, folder: Path) -> Made:
    """Returns models of which the second knows one token more."""
    model = transformers.AutoModelForCausalLM.from_pretrained(made["m2"])
    known = tiny.byte_level()
    known.add_special_tokens(["<more>"])
    model.resize_token_embeddings(known.get_vocab_size())
    return {**made, "m2": str(tiny.save(folder / "m2", known, model))}


def tables(made: Made, out: str, **more: Any) -> dict[str, dict[str, Any]]:
    """Returns the tables of a recipe; a key that is None is left out."""
    given = {
        "models": {"m1": made["m1"], "m2": made["m2"]},
        "base": made["base"],
        "method": "task_arithmetic",
        "windows": made["search"],
        "report": made["report"],
        "budget": 2,
        "groups": 2,
        "device": "cpu",
        "threads": 1,
        **more,
    }
    told = {key: value for key, value in given.items() if value is not None}
    return {
        "merge": {k: v for k, v in told.items() if k in MERGE} | {"output": f"{out}/m"},
        "search": {k: v for k, v in told.items() if k not in MERGE}
        | {"output": f"{out}/s"},
    }


def recipe(made: Made, out: str, **more: Any) -> str:
    """Writes a recipe; returns its path."""
    told = tables(made, out, **more)
    merge = dict(told["merge"])
    text = card.merge_table(merge, merge.pop("rules", ()))
    lines = [f"{key} = {card.toml(value)}" for key, value in told["search"].items()]
    path = Path(out) / "recipe.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([text, "[search]", *lines]) + "\n")
    return str(path)


def given(made: Made, out: str, **more: Any) -> Searching:
    """Returns what a recipe says."""
    return searching.read_recipe(recipe(made, out, **more), {})


def run(made: Made, out: str, **more: Any) -> dict[str, Any]:
    """Searches; returns the result."""
    return search.search(given(made, out, **more), lambda _: None)


def bench_of(given: Searching) -> tuple[Planned, Measuring]:
    """Plans a search, and opens its models."""
    planned = search.plan_search(given)
    return planned, search.open_measuring(planned, search.identity_of(planned))


def search_and_die(path: str, measured: int) -> int:
    """Searches as the command does, till so many models are measured."""
    measure, done = objective.measure, []

    def die(*args: Any, **more: Any) -> Any:
        if len(done) == measured:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(1)
        return measure(*args, **more)

    objective.measure = die
    return search.main([path])
