"""The merges of a run, to be shown before they are made: merge RECIPE.toml --show.

In the recipe of a run models are arms by name; here they are the folders of these.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines import merging, recipe
from pipelines.branches import MERGE, SOURCE
from pipelines.merging import Merging
from pipelines.recipe import Recipe
from schemas import files, manifest, settings

_FLAGS = ("show", "output")
"""Flags that a run's recipe may stand beside: its tables say all else."""


def read(
    path: str, flags: Mapping[str, Any], only: Sequence[str]
) -> dict[str, Merging]:
    """Reads the merges of a run's recipe.

    Args:
      path: the recipe.
      flags: of the command; output takes the place of the run's.
      only: names of merges, as `merge.NAME`; empty: all.

    Returns:
      What is merged and how, by such names; nothing will be written.

    Raises:
      FileNotFoundError: if an arm or merge that one takes is not made yet; names it,
        and the command that makes it.
      ValueError: if the recipe is wrong or has no merges, a flag cannot stand beside
        it, or `only` names what is no merge of it.
    """
    if more := [f"--{name}" for name in flags if name not in _FLAGS]:
        raise ValueError(
            f"{path} is a recipe of fusebeam run, whose tables say how its merges are"
            f" made, so beside --show only --only and --output may stand, got"
            f" {', '.join(more)}; set it in [merge] or [merges.NAME]"
        )
    plan = recipe.read(path, flags.get("output"))
    known = {f"{MERGE}{merge.name}": merge for merge in plan.merges}
    if not known:
        raise merging.no_merges(path)
    for name in only:
        if name not in known:
            raise ValueError(
                f"--only must name merges of the recipe, which are {', '.join(known)},"
                f" got {name!r}{settings.suggestion(name, known)}"
            )
    chosen = [name for name in known if name in only or not only]
    _refuse_missing(plan, path, flags, [m for n in chosen for m in known[n].models])
    return {name: _shown(plan.merge(known[name])) for name in chosen}


def _refuse_missing(
    plan: Recipe, path: str, flags: Mapping[str, Any], models: Sequence[str]
) -> None:
    """Refuses arms, merges and inputs of an example that are not made yet."""
    names, places = dict.fromkeys(models), plan.places
    missing = [
        name
        for name in names
        if not (
            _is_there(plan, places[name])
            if name.startswith(SOURCE)
            else manifest.present(places[name])
        )
    ]
    if missing:
        output = f" --output {plan.output}" if "output" in flags else ""
        are = "is" if len(missing) == 1 else "are"
        raise FileNotFoundError(
            "models that are merged must be there to be shown, but"
            f" {', '.join(missing)} of {plan.output} {are} not made yet; this makes"
            f" what lacks: fusebeam run {path}{output} --only {' '.join(missing)}"
        )


def _is_there(plan: Recipe, source: str) -> bool:
    """Says whether a source is there, if its recipe has it made; else it must be."""
    return plan.inputs is None or files.exists(files.join(source, "config.json"))


def _shown(given: Merging) -> Merging:
    config = dataclasses.replace(given.config, show=True)
    return dataclasses.replace(given, config=config)
