"""What a run of a recipe does: all of it, or what some of its parts need."""

import dataclasses
from collections.abc import Collection, Sequence

from pipelines.branches import ENSEMBLE, FUSION, MERGE, Arm, Merge
from pipelines.recipe import Recipe
from schemas import settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """What is done, each in the recipe's order.

    Attributes:
      scores: models that are scored, the target first; none where nothing is fused.
      fusions: names of the fusions that are made.
      arms: that are trained.
      merges: that are made, each behind those that it takes.
      models: that are measured, by their names in the table.
    """

    scores: tuple[str, ...]
    fusions: tuple[str, ...]
    arms: tuple[Arm, ...]
    merges: tuple[Merge, ...]
    models: tuple[str, ...]


def select(plan: Recipe, only: Sequence[str] = ()) -> Selection:
    """Chooses what a run does.

    Args:
      plan: the recipe.
      only: arms by name, `merge.NAME`, `ensemble.NAME`, `source.NAME`, `untouched`,
        which are measured, and `fusion.NAME`; all that these need is done too. Empty:
        everything.

    Raises:
      ValueError: if there is nothing of such a name.
    """
    if not only:
        return Selection(
            scores=("target", *plan.sources),
            fusions=tuple(plan.fusions),
            arms=plan.arms,
            merges=plan.merges,
            models=tuple(plan.evaluations("heldout")),
        )
    models = {name.replace(":", "."): name for name in plan.evaluations("heldout")}
    fusions = {f"{FUSION}{name}": name for name in plan.fusions}
    for name in only:
        if name not in models and name not in fusions:
            known = [*models, *fusions]
            raise ValueError(
                f"--only must name parts of the recipe, which are {', '.join(known)},"
                f" got {name!r}{settings.suggestion(name, known)}"
            )
    asked = {*only, *_members(plan, only)}
    merges = _merges(plan, asked)
    taken = {*asked, *(name for merge in merges for name in merge.models)}
    arms = tuple(arm for arm in plan.arms if arm.name in taken)
    trained_on = {name for arm in arms for name in arm.fusions}
    wanted = {*(fusions.get(name) for name in only), *trained_on}
    chosen = tuple(name for name in plan.fusions if name in wanted)
    teach = {source for name in chosen for source in plan.fusions[name].sources}
    return Selection(
        scores=("target", *(s for s in plan.sources if s in teach)) if chosen else (),
        fusions=chosen,
        arms=arms,
        merges=merges,
        models=tuple(models[name] for name in models if name in only),
    )


def _members(plan: Recipe, only: Sequence[str]) -> set[str]:
    """Returns what the ensembles that are asked for are of."""
    asked = (e for e in plan.ensembles if f"{ENSEMBLE}{e.name}" in only)
    return {name for ensemble in asked for name in ensemble.models}


def _merges(plan: Recipe, only: Collection[str]) -> tuple[Merge, ...]:
    """Returns the merges that are asked for, and those that they take."""
    taken = set(only)
    for merge in reversed(plan.merges):  # a merge stands behind those that it takes
        if f"{MERGE}{merge.name}" in taken:
            taken |= set(merge.models)
    return tuple(m for m in plan.merges if f"{MERGE}{m.name}" in taken)
