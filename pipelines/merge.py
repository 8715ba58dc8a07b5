"""fusebeam merge: one model of several, tensor by tensor.

    fusebeam merge RECIPE.toml --show      what would become of every tensor
    fusebeam merge RECIPE.toml
    fusebeam merge RUN.toml --show         the same of each merge of a run's recipe

The recipe's table [merge] says which models, how, and where to; a flag takes the place
of its key. Each file of the merged model is a slice of the work, planned beforehand;
one tensor of each model is in memory at a time, and what is done is skipped.
"""

import argparse
import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import apache_beam as beam

from pipelines import guards, launch, merged, merging, shown, stage, tally
from pipelines.merged import Description
from pipelines.merging import MergeConfig, Merging
from pipelines.watchdog import Watch
from schemas import files, manifest, settings, weights
from schemas import plan as slicing
from schemas.errors import FusionError
from schemas.manifest import Manifest
from train.merge import headers, inputs, match, plan, report, sums, vocabulary, work
from train.merge.match import Sources
from train.merge.plan import Shard
from train.merge.reading import Reading
from transforms import lines, planned
from transforms.attempts import Guards
from transforms.planned import FileWork


def gather(config: MergeConfig) -> Sources:
    """Finds the models and reads the headers of their weights, and no numbers.

    Raises:
      FileNotFoundError: if one is not there.
      ValueError: if one cannot be read, or the output is one of them.
    """
    found = [inputs.find(name, place) for name, place in config.places.items()]
    for one in found:
        if _same(one.model, config.output):
            raise ValueError(
                f"output must be a folder of its own, got that of {one.name},"
                f" {one.model}"
            )
    lead = len(found) - 1 if config.base else 0
    # To show a plan, weights of the hub need not be here; to carry it out, they must.
    read = headers.read if config.show else inputs.read_weights
    return Sources(
        models=found,
        tensors=[read(one) for one in found],
        lead=lead,
        has_base=config.base is not None,
        vocabulary=vocabulary.compare(found, lead, config.embeddings),
    )


def _same(one: str, other: str) -> bool:
    return files.relative(one, other) in (".", "./.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """A merge that is planned.

    Attributes:
      sources: the models.
      shards: the files.
      notes: what was taken for what, and what could not be compared.
    """

    sources: Sources
    shards: list[Shard]
    notes: tuple[str, ...]


def plan_merge(given: Merging) -> Planned:
    """Plans every tensor: how it is made, and in which file it goes.

    Raises:
      FileNotFoundError: if a model is not there.
      ValueError: if models or settings do not fit; names what and where.
    """
    config, sources = given.config, gather(given.config)
    dtype = match.DTYPES[config.dtype] if config.dtype else None
    tensors, notes = match.match(sources, given.rules, dtype)
    told = [*sources.vocabulary.notes, *notes, *merged.differences(sources)]
    shards = plan.part(tensors, config.shard_bytes)
    return Planned(sources=sources, shards=shards, notes=tuple(told))


def merge_models(given: Merging, runner_flags: Sequence[str] = ()) -> Manifest | None:
    """Merges models, and describes the folder once all files are there.

    Returns:
      The manifest, or None where slices outside `slices` are missing, or nobody awaits
      the job.

    Raises:
      ValueError: if the settings or models do not fit; names what and where.
      SchemaError: if the output holds what is not of this work.
    """
    config, dry = given.config, launch.is_dry(runner_flags)
    launch.check(config.output, runner_flags, config.slices)
    found = plan_merge(given)
    told = describe_as(given, found)
    anew = {"overwrite": config.overwrite}
    if not config.overwrite:
        merged.refuse_other_plan(config.output, found.shards, told)
    if _whole(config, told, dry=dry):
        return manifest.read(config.output, work.STAGE)
    merged.refuse_others(config.output, found.shards, told.identity, **anew)
    if not dry:
        merged.begin(config.output, found.sources, found.shards, told.identity)
    describe = functools.partial(merged.describe, config.output, told)
    tasks = _works(config, found, told.identity)
    if config.slices is not None:
        whole = _do_slices(config, found.shards, tasks)
        # Another command of this merge may have ended it, and dropped what it measured.
        whole = whole or merged.finished(config.output, told.identity) is not None
    else:
        prints = {s.file: work.fingerprint(told.identity, s) for s in found.shards}
        _run(config, prints, tasks, describe, runner_flags)
        whole = not launch.left_alone(runner_flags)
    return describe() if whole else None


def describe_as(given: Merging, found: Planned) -> Description:
    """Returns what the folder of a planned merge says of itself."""
    return Description(
        models=tuple(found.sources.models),
        lead=found.sources.lead,
        settings=given.shaping,
        inputs=merged.inputs_of(found.sources, found.shards),
        notes=found.notes,
        dtype=given.config.dtype,
    )


def _whole(config: MergeConfig, told: Description, *, dry: bool) -> bool:
    """Says whether the folder is finished; then what a kill has left there goes.

    Raises:
      SchemaError: if it was finished by another merge, and `overwrite` is off.
    """
    anew = {"overwrite": config.overwrite, "dry": dry}
    if not stage.whole(config.output, work.STAGE, told.settings, told.inputs, **anew):
        return False
    if not dry:
        merged.drop_sums(config.output)
    return True


def _works(config: MergeConfig, found: Planned, identity: str) -> list[FileWork]:
    """Returns what is to be done with each file: measured first, where it must be."""
    sources, anew = found.sources, config.overwrite
    reading = Reading(
        models=tuple(sources.models),
        stamps=tuple(held.stamps for held in sources.tensors),
        lead=sources.lead,
        has_base=sources.has_base,
        threads=config.threads,
        output=config.output,
        identity=identity,
    )
    last = work.MergeShards(reading=reading, seed=config.seed, overwrite=anew)
    if any(sums.needs(t) for shard in found.shards for t in shard.tensors):
        return [sums.MeasureShards(reading=reading, overwrite=anew), last]
    return [last]


def build(
    root: beam.Pipeline, output: str, tasks: Sequence[FileWork], guarded: Guards
) -> beam.PCollection[str]:
    """Wires the steps: every file is measured before any is merged."""
    listed = files.join(output, plan.NAME)
    found = root | "List files" >> lines.ReadLines(listed)
    for task in tasks[:-1]:
        measured = found | "Measure" >> planned.DoFiles(task, guarded)
        found = measured | "Then" >> lines.AwaitLines(listed)
    return found | "Merge" >> planned.DoFiles(tasks[-1], guarded)


def _run(
    config: MergeConfig,
    prints: Mapping[str, str],
    tasks: Sequence[FileWork],
    describe: Callable[[], Any],
    runner_flags: Sequence[str],
) -> None:
    """Runs the job over all files, whose fingerprints are given by name.

    Raises:
      FusionError: if it ended without some of them.
    """
    guarded = guards.of(config)
    done = tally.Tally(config.output, prints, tally.in_weights)
    places = (config.output, files.join(config.output, sums.FOLDER))
    with launch.Progress("merge", len(prints), done):
        launch.run(
            lambda root: stage.ending(
                build(root, config.output, tasks, guarded), describe, runner_flags
            ),
            runner_flags,
            Watch("merge", places, config.output, guarded.stall_timeout),
            reads=tuple(config.places.values()),
        )
    if not launch.left_alone(runner_flags) and (left := done.missing()):
        raise FusionError(
            f"all {len(prints)} files must be in {config.output} when the job has"
            f" ended, but {weights.some(left)} are not; do the workers write to the"
            " folder that is read here? The same command does those that are missing"
        )


def _do_slices(
    config: MergeConfig, shards: Sequence[Shard], tasks: Sequence[FileWork]
) -> bool:
    """Does the chosen slices in this process; says whether all are there then."""
    listed = [plan.to_line(shard) for shard in shards]
    chosen, guarded = slicing.select(listed, config.slices), guards.of(config)
    for before, task in zip([None, *tasks], tasks, strict=False):
        if before is not None and not all(map(before.done, listed)):
            return False  # others must measure theirs first
        for line in chosen:
            planned.do_file(task, line, guarded)
    there = set(files.names(config.output))
    if not {shard.file for shard in shards} <= there:
        return False  # cheaper than a look into every file after each command
    return all(map(tasks[-1].done, listed))


def flags_parser() -> argparse.ArgumentParser:
    """Returns the parser of the recipe and our own flags."""
    parser = argparse.ArgumentParser(
        prog="fusebeam merge",
        usage="fusebeam merge RECIPE.toml [flags]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=launch.RUNNER_FLAGS,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", help="the TOML file with a table [merge]")
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="of a recipe of fusebeam run, with --show: merge.NAME, and no other merge",
    )
    settings.add_flags(parser, MergeConfig)
    return parser


def _parse(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Parses the command line: our flags, the recipe among them, and Beam's."""
    words, unseen = launch.behind_hyphens(argv)
    spelt = settings.snake_case_flags(words, settings.truths(MergeConfig))
    _refuse_bare(spelt)
    ours, flags = launch.part_runner_flags(spelt)
    known, rest = flags_parser().parse_known_args(ours)
    names = [f.name for f in dataclasses.fields(MergeConfig)]
    launch.refuse_unknown(rest, [*names, "only"])
    return vars(known), flags + unseen


def _refuse_bare(words: Sequence[str]) -> None:
    """Refuses Beam's --dry_run without a value, for which --show is meant.

    Raises:
      ValueError: if it stands there; names both.
    """
    for word, after in itertools.pairwise([*words, "--"]):
        if word == "--dry_run" and after.startswith("--"):
            raise ValueError(
                "--dry_run must have a value, as it is Beam's: on Dataflow it"
                " translates a job and starts none; to see what would become of every"
                " tensor, give --show"
            )


def _show(given: Merging) -> None:
    """Prints what would become of every tensor."""
    found = plan_merge(given)
    names = [one.name for one in found.sources.models]
    for line in report.lines(names, found.sources.lead, found.shards, found.notes):
        print(line)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    flags, runner_flags = _parse(sys.argv[1:] if argv is None else argv)
    path, only = flags.pop("recipe"), flags.pop("only")
    if flags.get("show") and merging.is_of_run(path):
        for name, merge in shown.read(path, flags, only).items():
            print(f"── {name}: {merge.config.output}")
            _show(merge)
        return 0
    if only:
        raise ValueError(
            f"--only must stand with --show and a recipe of fusebeam run, whose merges"
            f" it names, got {' '.join(only)} with {path}; leave it out"
        )
    given = merging.read_recipe(path, flags)
    config = given.config
    if config.show:
        _show(given)
        return 0
    made = merge_models(given, runner_flags)
    if made is None:
        print(stage.unfinished(config.slices, runner_flags))
    else:
        counts = made.counts
        print(
            f"{config.output}: {counts['models']} models merged,"
            f" {counts['parameters']:,} parameters in {counts['tensors']:,} tensors"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
