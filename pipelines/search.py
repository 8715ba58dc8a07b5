"""fusebeam search: which weights, densities and lambdas make the best merge.

    fusebeam search RECIPE.toml --show     the genome: what would be searched
    fusebeam search RECIPE.toml
    fusebeam merge runs/mine/search/recipe.toml

The recipe's table [merge] says which models are merged and how, [search] what of that
is searched, on what, and for how long; a flag takes the place of its key. Each trial is
merged in memory and measured there; no model is written. CMA-ES and its baselines get
as many evaluations each; the best trial is written as a recipe of fusebeam merge. What
is done is on disk after every trial, and the same command goes on from there.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines import measuring, merge, merged, search_page, searching
from pipelines.measuring import Measuring
from pipelines.searching import SearchConfig, Searching
from schemas import buckets, files, locks, settings
from schemas.arrays import Genes
from train.merge import layers, match, plan, rules
from train.merge.match import Sources
from train.merge.plan import Tensor
from train.search import genome, kept, objective, strategies, trials
from train.search.genome import Genome
from train.search.kept import Kept
from train.search.objective import Split
from train.search.tasks import Task
from train.search.trials import Found, Strategy, Trial
from transforms import scorer
from transforms.scorer import ScorerSettings

TRIALS, MEASURED, RESULT = "trials", "measured.json", "search.json"
"""What the output holds: the trials of each arm, what else was measured, the result."""

_GROUPS = 4


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Planned:
    """A search before its first trial.

    Attributes:
      given: its settings.
      sources: the models.
      genome: what is varied.
      tensors: of the merge at the start.
    """

    given: Searching
    sources: Sources
    genome: Genome
    tensors: Sequence[Tensor]

    @functools.cached_property
    def asked(self) -> Mapping[Split, Mapping[str, Task]]:
        """The tasks of each split, by name."""
        return measuring.ask(self.given, self.sources)

    @property
    def references(self) -> list[str]:
        """The models that trials are compared with, as they are: the base first.

        Where vocabularies differ the merged model has the base's alone, and what a
        model makes of its own tokens is no question of merging.
        """
        names = [] if self.sources.vocabulary.differ else self.sources.names
        return [rules.BASE, *names]

    def strategies(self) -> dict[str, tuple[Strategy, int]]:
        """Returns the arms, CMA-ES last, each with its number of evaluations."""
        config, genome = self.given.config, self.genome
        known: dict[str, Strategy] = {
            searching.UNIFORM: strategies.uniform(genome),
            searching.ONE_FOR_ALL: strategies.one_for_all(
                genome, self.given.scale, config.budget
            ),
            searching.RANDOM: strategies.at_random(genome, config.seed),
            searching.EVOLUTION: strategies.Evolution(
                genome.start, config.sigma, config.seed, config.population
            ),
        }
        told = self.given.evaluations
        return {name: (known[name], count) for name, count in told.items()}


def plan_search(given: Searching) -> Planned:
    """Plans a search: reads headers and vocabularies, and no numbers.

    Raises:
      FileNotFoundError: if a model is not there.
      ValueError: if models or settings do not fit; names what and where.
    """
    sources = merge.gather(given.merge)
    chosen = given.plain(given.tables).rules
    tensors, _ = match.match(sources, chosen, given.stored)
    known = layers.layers_of(one.key for one in tensors)
    varied = {
        one.key: known[one.key]
        for one in tensors
        if one.how == plan.MERGE
        and rules.rule_for(chosen, one.key, known[one.key]) is chosen[-1]
    }
    if not varied:
        raise ValueError(
            "a search must vary a tensor at least, but [[merge.rules]] settle all of"
            " them; leave some to [merge]"
        )
    deepest = max((one.count for one in varied.values() if one), default=1)
    groups = given.config.groups or min(_GROUPS, deepest)
    cells = genome.cells_of(varied, groups, given.modules)
    genes = genome.genes_of(
        cells,
        given.merge.names,
        given.ranges,
        given.starts,
        normalized=given.normalized,
    )
    return Planned(
        given=given,
        sources=sources,
        genome=Genome(models=tuple(given.merge.names), cells=cells, genes=genes),
        tensors=tensors,
    )


def search(given: Searching, say: Callable[[str], None]) -> dict[str, Any]:
    """Searches, and writes what was found.

    Args:
      given: what is searched and how.
      say: is given one line a trial.

    Returns:
      The result, as `search.json` holds it.

    Raises:
      SchemaError: if the splits overlap, another search is in the output or at work
        there, or no trial has an objective.
      ValueError: if models or settings do not fit; names what and where.
    """
    planned = plan_search(given)
    objective.refuse_overlap(given.search, given.report)
    with _alone(given.config.output):
        return _search(planned, say)


@contextlib.contextmanager
def _alone(output: str) -> Iterator[None]:
    """Keeps other searches out of a folder; of a bucket nobody can."""
    if buckets.protocol(output):
        yield
        return
    folder = Path(files.filesystem(output)[1])
    with locks.hold(folder, "searching"):
        try:
            yield
        finally:
            (folder / locks.NAME).unlink(missing_ok=True)


def _search(planned: Planned, say: Callable[[str], None]) -> dict[str, Any]:
    given, identity = planned.given, identity_of(planned)
    _make_way(planned, identity)
    bench = open_measuring(planned, identity)
    models = {name: bench.reference(name) for name in planned.references}
    arms = {
        name: _run_arm(planned, name, arm, identity, bench, say)
        for name, arm in planned.strategies().items()
    }
    found = _found(planned, arms, bench)
    result = {"schema_version": trials.VERSION, "identity": identity, **found}
    result["models"] = {
        name: {split: trials.as_json(one) for split, one in row.items()}
        for name, row in models.items()
    }
    search_page.write(given, planned.genome, planned.sources.models, result, arms)
    files.write_json(files.join(given.config.output, RESULT), result)
    return result


def _make_way(planned: Planned, identity: Mapping[str, Any]) -> None:
    """Removes what another search has left, where it may be."""
    config = planned.given.config
    held = {
        trials_path(planned.given, name): arm_identity(planned.given, name, identity)
        for name in planned.given.evaluations
    }
    held[files.join(config.output, MEASURED)] = identity
    if config.overwrite and kept.others(held):
        for name in (TRIALS, MEASURED, RESULT, *search_page.NAMES):
            files.remove_tree(files.join(config.output, name))


def trials_path(given: Searching, arm: str) -> str:
    """Returns the file of an arm; places on a line depend on how many there are."""
    line = arm == searching.ONE_FOR_ALL
    name = f"{arm}-{given.config.budget}" if line else arm
    return files.join(given.config.output, TRIALS, f"{name}.json")


def arm_identity(
    given: Searching, arm: str, identity: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Returns all that shapes an arm: the search, and what its own places are of."""
    if arm == searching.ONE_FOR_ALL and given.scale == "weight":
        return {**identity, "line": "weight times lambda"}  # once of weight alone
    return identity


def identity_of(planned: Planned) -> dict[str, Any]:
    """Returns all that shapes what a trial comes to, by name."""
    given, config = planned.given, planned.given.config
    found = plan.part(planned.tensors, given.merge.shard_bytes)
    asked = ScorerSettings(
        model=given.merge.base or "",
        dtype=config.dtype,
        device=config.device,
        threads=config.threads,
    )
    told = {
        **given.shaping,
        **scorer.resolved(asked),
        "optimizer": f"cmaes {importlib.metadata.version('cmaes')}",
    }
    splits = {"search": given.search, "report": given.report}
    inputs = {
        **merged.inputs_of(planned.sources, found),
        **{f"{n} {k}": v for n, one in splits.items() for k, v in one.inputs().items()},
        **_template(planned),
    }
    return {**told, **{f"input {name}": value for name, value in inputs.items()}}


def _template(planned: Planned) -> dict[str, str]:
    """Returns the fingerprint of the template that prompts are put into, if any."""
    found = {
        task.template.fingerprint
        for one in planned.asked.values()
        for task in one.values()
        if task.template is not None
    }
    return {"template": found.pop()} if found else {}


def open_measuring(planned: Planned, identity: Mapping[str, Any]) -> Measuring:
    """Opens the models, with what was measured before."""
    path = files.join(planned.given.config.output, MEASURED)
    known = Kept(path, identity)
    return measuring.open_models(planned.given, planned.sources, known, planned.asked)


def _run_arm(
    planned: Planned,
    name: str,
    arm: tuple[Strategy, int],
    identity: Mapping[str, Any],
    bench: Measuring,
    say: Callable[[str], None],
) -> list[Trial]:
    """Measures the trials of an arm that are not there yet."""
    given, (strategy, budget) = planned.given, arm

    def measure(x: Genes) -> Found:
        return bench.trial(given.search, given.merging(planned.genome, x))

    return trials.run_arm(
        trials_path(given, name),
        arm_identity(given, name, identity),
        strategy,
        budget,
        measure,
        progress=lambda trial: say(_line(name, trial, budget)),
    )


def _line(arm: str, trial: Trial, budget: int) -> str:
    """Says what a trial came to."""
    rank = trial.found.rank
    told = "dead" if rank == trials.DEAD else f"{rank:.4f}"
    return f"{arm} {trial.number + 1}/{budget}: {told}"


def _found(
    planned: Planned, arms: Mapping[str, Sequence[Trial]], bench: Measuring
) -> dict[str, Any]:
    """Returns what was found: the best trial of each arm, measured on the report."""
    told: dict[str, Any] = {}
    for name, done in arms.items():
        told[name] = {
            "evaluations": len(done),
            "dead": sum(one.found.rank == trials.DEAD for one in done),
            "flat": trials.is_flat(done),
            "best": _best(planned, name, done, bench),
        }
    living = [name for name, arm in told.items() if arm["best"]]
    if not living:
        raise trials.all_dead([trial for done in arms.values() for trial in done])
    # Of equal ones the simplest, which comes first.
    chosen = min(living, key=lambda name: told[name]["best"]["search"]["objective"])
    return {"arms": told, "chosen": chosen}


def _best(
    planned: Planned, arm: str, done: Sequence[Trial], bench: Measuring
) -> dict[str, Any] | None:
    """Returns the best trial of an arm, with what it comes to on the report."""
    if (best := trials.best(done)) is None:
        return None
    merging = planned.given.merging(planned.genome, best.x)
    # Which trial of a line a number is depends on how many there are.
    stem = files.name_of(trials_path(planned.given, arm)).removesuffix(".json")
    report = bench.best(f"{stem} {best.number}", merging)
    return {
        "trial": best.number,
        "genes": list(best.genes),
        "settings": planned.genome.settings(best.x),
        "search": trials.as_json(best.found),
        "report": trials.as_json(report),
    }


def flags_parser() -> argparse.ArgumentParser:
    """Returns the parser of the recipe and the flags."""
    parser = argparse.ArgumentParser(
        prog="fusebeam search",
        usage="fusebeam search RECIPE.toml [flags]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", help="TOML file with tables [merge] and [search]")
    settings.add_flags(parser, SearchConfig)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    words = settings.snake_case_flags(
        sys.argv[1:] if argv is None else argv, settings.truths(SearchConfig)
    )
    known, rest = flags_parser().parse_known_args(words)
    for word in rest:
        settings.refuse_flag(word, [f.name for f in dataclasses.fields(SearchConfig)])
    flags = vars(known)
    given = searching.read_recipe(flags.pop("recipe"), flags)
    if given.config.show:
        genome = plan_search(given).genome
        for line in (
            *search_page.genome_lines(genome),
            *search_page.arm_lines(given, genome),
        ):
            print(line)
        return 0
    result = search(given, functools.partial(print, file=sys.stderr))
    print(search_page.table(result))
    for line in search_page.notes(result):
        print(line)
    print(f"the best merge is made by: fusebeam merge {search_page.recipe_path(given)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
