"""fusebeam run: all stages of a recipe, on this machine.

    make the inputs of an example → prepare → score the target and every source → fuse
    → train every arm → merge → evaluate

Each stage skips what is done, so the same command goes on where it stopped. `--only`
does what the named arms, merges and fusions need, and nothing else.
"""

import argparse
import sys
import time
from collections.abc import Collection, Sequence
from typing import Any

from pipelines import (
    fuse,
    launch,
    makers,
    prepare,
    recipe,
    score,
    selection,
    training,
)
from pipelines import merge as merging
from pipelines.branches import ALL_SOURCES, ENSEMBLE, SOURCE, UNTOUCHED, Merge
from pipelines.progress import Slices, Stage
from pipelines.recipe import Recipe
from pipelines.selection import Selection
from schemas import files, manifest, settings
from schemas.errors import FusionError
from schemas.manifest import Manifest
from train import benchmarks, evaluate, summary
from train import ensemble as ensembles
from train.harness import Benchmark
from transforms import rows

RESULT = "evaluation.json"


def run(
    plan: Recipe, runner_flags: Sequence[str] = (), only: Sequence[str] = ()
) -> dict[str, Any]:
    """Does the stages of a recipe.

    Args:
      plan: the recipe.
      runner_flags: Beam's own.
      only: names of what is wanted, as `selection.select` takes them; empty: all.

    Returns:
      What `evaluation.json` holds: bits per byte by model and domain, and bytes; and
      benchmarks by task and model, where the recipe names tasks.

    Raises:
      ValueError: if a job would be left alone, or `only` names what is not there.
      FileNotFoundError: if an example makes the inputs, and is not there.
    """
    start = time.monotonic()
    _refuse_left_alone(runner_flags)
    work = selection.select(plan, only)
    if plan.inputs is not None:
        makers.make(plan.inputs)
    # What does not fit, or benchmarks lack, must not come to light after hours.
    _refuse_misfits(plan, work)
    tasks = _load_tasks(plan) if work.models else []
    _prepare(plan, runner_flags)
    for name in work.scores:
        _score(plan, name, runner_flags)
    fused = {name: _fuse(plan, name, runner_flags) for name in work.fusions}
    for arm in work.arms:
        with Stage(f"train {arm.name}") as stage:
            training.train_arm(plan, arm, stage)
    for merge in work.merges:
        _merge(plan, merge, runner_flags)
    with Stage("evaluate") as stage:
        result = evaluate_all(plan, work.models, stage)
        if tasks and work.models:
            result["tasks"] = ask_all(plan, work.models, tasks, stage)
    for name, made in fused.items():
        print(f"\n{taught_table(made, name)}")
    if result["models"]:
        files.write_json(plan.folder(RESULT), result)
        print(f"\n{summary.table(result)}")
    if result.get("tasks"):
        print(f"\n{benchmarks.table(result['tasks'])}")
    print(f"\ndone in {launch.clock(time.monotonic() - start)}: {plan.output}")
    return result


def _refuse_left_alone(runner_flags: Sequence[str]) -> None:
    """Refuses flags by which a job ends after this program: no stage could follow it.

    Raises:
      ValueError: if there are such; names what they are for.
    """
    if launch.left_alone(runner_flags):
        raise ValueError(
            "fusebeam run must await each stage, as the next one reads what it leaves,"
            " so --template_location and --dry_run, with which Dataflow's jobs are"
            f" only translated, must be left out, got {' '.join(runner_flags)}; give"
            " them to the command of one stage, as fusebeam score"
        )


def _refuse_misfits(plan: Recipe, work: Selection) -> None:
    """Refuses merges and ensembles of models that are there and do not fit.

    Arms and merges have the target's vocabulary, but for merges with another base.

    Raises:
      FileNotFoundError: if a source is not there.
      ValueError: if models of a merge or an ensemble do not fit; names what and where.
    """
    for ensemble in plan.ensembles:
        if f"{ENSEMBLE[:-1]}:{ensemble.name}" in work.models:
            first, *others = (
                plan.places[name] if name.startswith(SOURCE) else plan.target
                for name in ensemble.models
            )
            try:
                ensembles.refuse_others(first, others)
            except ValueError as error:
                raise ValueError(f"[ensembles.{ensemble.name}]: {error}") from error
    for merge in work.merges:
        if all(name.startswith(SOURCE) for name in merge.models):
            try:
                merging.plan_merge(plan.merge(merge))
            except ValueError as error:
                raise ValueError(f"[merges.{merge.name}]: {error}") from error


def _prepare(plan: Recipe, runner_flags: Sequence[str]) -> None:
    """Cuts the corpus.

    Raises:
      FusionError: if a split that is needed is empty.
    """
    with Stage("prepare") as stage:
        for split, made in prepare.prepare_corpus(plan.prepare, runner_flags).items():
            stage.say(f"{split}: {_counts(made, 'documents', 'windows', 'text_bytes')}")
            if split in plan.needed_splits and not made.counts["windows"]:
                raise FusionError(
                    f"split {split!r} must hold windows, it holds none; give it a"
                    " larger share, or more documents"
                )


def _score(plan: Recipe, name: str, runner_flags: Sequence[str]) -> None:
    with Stage(f"score {name}") as stage:
        scored = score.score_windows(plan.score(name), runner_flags)
        assert scored is not None
        stage.say(_counts(scored, "windows", "tokens", "failed"))
        for line in score.remarks(plan.score(name).output, scored):
            stage.say(line)


def _fuse(plan: Recipe, name: str, runner_flags: Sequence[str]) -> Manifest:
    config = plan.fuse_of(name)
    with Stage("fuse" if name == ALL_SOURCES else f"fuse {name}") as stage:
        fused = fuse.fuse_scores(config, runner_flags)
        assert fused is not None
        stage.say(_counts(fused, "windows", "tokens", "positions", "covered"))
        lost = manifest.losses(config.output, fused)
        for line in (*lost, *fuse.slips(config, fused.counts)):
            stage.say(line)
    return fused


def _merge(plan: Recipe, merge: Merge, runner_flags: Sequence[str]) -> None:
    with Stage(f"merge {merge.name}") as stage:
        merged = merging.merge_models(plan.merge(merge), runner_flags)
        assert merged is not None
        stage.say(_counts(merged, "models", "tensors", "parameters"))


def _counts(made: Manifest, *names: str) -> str:
    return ", ".join(f"{made.counts[n]:,} {n.replace('_', ' ')}" for n in names)


def evaluate_all(plan: Recipe, chosen: Collection[str], stage: Stage) -> dict[str, Any]:
    """Evaluates models on the held-out split.

    Args:
      plan: the recipe.
      chosen: names of the models that are measured. Others have a row where they were
        measured before, and are what they were.
      stage: is told of each.
    """
    found = {}
    for name, config in plan.evaluations("heldout").items():
        if name not in chosen:
            if (before := evaluate.measured(config)) is not None:
                found[name] = before
            continue
        found[name] = evaluate.evaluate_model(config, Slices(f"evaluate {name}"))
        cost = evaluate.bits_per_byte(found[name])[evaluate.ALL]
        stage.say(f"{name}: {cost:.4f} bits per byte")
    return summary.summarize(found)


def _load_tasks(plan: Recipe) -> list[Benchmark]:
    """Loads the benchmarks that a recipe names, with their data."""
    if not plan.has_tasks:
        return []
    with Stage("load benchmarks") as stage:
        loaded = benchmarks.load(plan.benchmark(UNTOUCHED, plan.target))
        stage.say(", ".join(benchmark.name for benchmark in loaded))
    return loaded


def ask_all(
    plan: Recipe, chosen: Collection[str], tasks: Sequence[Benchmark], stage: Stage
) -> benchmarks.Table:
    """Measures models on benchmarks; ensembles, which write no text, are not.

    Args:
      plan: the recipe.
      chosen: names of the models that are measured; of others the results that are
        there and still hold are taken.
      tasks: the benchmarks, loaded.
      stage: is told of each.
    """
    found = {}
    for name, model in plan.models.items():
        config = plan.benchmark(name, model)
        if name not in chosen:
            found[name] = benchmarks.measured_tasks(config, tasks)
            continue
        stage.say(f"{name}:")
        found[name] = benchmarks.evaluate_tasks(config, stage.say, tasks)
    return benchmarks.side_by_side(found)


def taught_of(fused: Manifest) -> dict[str, dict[str, int]]:
    """Returns how many windows each source taught most, by domain."""
    found: dict[str, dict[str, int]] = {}
    for domain, name, count in rows.taught(fused.counts):
        found.setdefault(domain, {})[name] = count
    return found


def taught_table(fused: Manifest, fusion: str = ALL_SOURCES) -> str:
    """Writes which share of a domain's windows each source of a fusion taught most."""
    table = taught_of(fused)
    names = list(dict.fromkeys(name for row in table.values() for name in row))
    head = "taught by" if fusion == ALL_SOURCES else f"{fusion} by"
    lines = [f"{head:<18}" + "".join(f"{name:>14}" for name in names)]
    for domain, row in sorted(table.items()):
        total = sum(row.values()) or 1
        shares = "".join(f"{row.get(name, 0) / total:>14.0%}" for name in names)
        lines.append(f"{domain:<18}{shares}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="fusebeam run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=launch.RUNNER_FLAGS,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", help="the TOML file")
    parser.add_argument("--output", help="takes the place of the recipe's output")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="write anew what other settings have written, in every stage",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="arms, merge.NAME, ensemble.NAME, source.NAME or fusion.NAME: these and"
        " what they need",
    )
    words, unseen = launch.behind_hyphens(sys.argv[1:] if argv is None else argv)
    ours, flags = launch.part_runner_flags(settings.snake_case_flags(words))
    given, rest = parser.parse_known_args(ours)
    launch.refuse_unknown(rest, ["output", "overwrite", "only"])
    plan = recipe.read(given.recipe, given.output, given.overwrite)
    run(plan, flags + unseen, given.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
