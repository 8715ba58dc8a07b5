"""fusebeam merge: one model of several, tensor by tensor.

    fusebeam merge RECIPE.toml --show      what would become of every tensor
    fusebeam merge RECIPE.toml

The recipe's table [merge] says which models, how, and where to; a flag takes the place
of its key. Each file of the merged model is a slice of the work, planned beforehand;
one tensor of each model is in memory at a time, and what is done is skipped.
"""

import argparse
import dataclasses
import functools
import re
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import apache_beam as beam

from pipelines import guards, launch, merged, stage
from pipelines.merged import Description
from pipelines.watchdog import Watch
from schemas import files, manifest, settings, weights
from schemas import plan as slicing
from schemas.errors import FusionError
from schemas.manifest import Manifest
from schemas.settings import setting
from train.merge import inputs, match, plan, report, rules, sums, vocabulary, work
from train.merge.match import Sources
from train.merge.plan import Shard
from train.merge.reading import Reading
from train.merge.rules import Rule
from transforms import lines, planned
from transforms.attempts import Guards
from transforms.planned import FileWork

_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Settings of `fusebeam merge` that are flags, too."""

    models: tuple[str, ...] = setting(
        help="the models, each a folder or hub id, or NAME=it to name it in rules",
        shapes_output=False,
    )
    output: str = setting(
        help="folder of the merged model; left out: 'merged' in the recipe's output",
        shapes_output=False,
    )
    method: str = setting(help="how tensors are merged; docs/algorithms.md has a list")
    base: str | None = setting(
        None,
        help="the model that all others were trained from, folder or hub id; methods of"
        " differences need it. Keys, vocabulary, configuration and tokenizer are its"
        " own; without it those of the first model",
        shapes_output=False,
    )
    use_base: bool = setting(
        True,
        help="whether a method that can do without a base, as nuslerp, takes it where"
        " there is one",
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = setting(
        None,
        help="number format that floats are stored in; left out: each tensor as in the"
        " base. The arithmetic is in float32",
    )
    embeddings: Literal["error", "base", "common"] = setting(
        "error",
        help="what becomes of embeddings and head where vocabularies differ: an error,"
        " those of the base, or tokens that all models have in common merged and the"
        " others those of the base",
    )
    seed: int = setting(0, help="of what DARE and DELLA draw at random")
    shard_bytes: int = setting(
        2_000_000_000, help="most bytes of a file; each file is a slice of the work"
    )
    threads: int = setting(
        1, help="threads of the arithmetic; sums depend on it in their last bits"
    )
    show: bool = setting(
        False,
        help="print what would become of every tensor, and write nothing",
        shapes_output=False,
    )
    slices: str | None = setting(
        None,
        help="do only slices A-B, both included, counted from 0, without a runner",
        shapes_output=False,
    )
    stall_timeout: float = guards.stall_timeout()
    max_slice_attempts: int = guards.max_slice_attempts()
    element_timeout: float | None = guards.element_timeout()
    overwrite: bool = setting(
        False, help="write anew what other settings have written", shapes_output=False
    )

    def __post_init__(self) -> None:
        """Checks what can be checked without reading a file."""
        if not self.models:
            raise ValueError("models must name a model, they name none")
        names = self.names
        for name in names:
            if name == rules.BASE or names.count(name) > 1:
                raise ValueError(
                    f"every model must have a name of its own that is not"
                    f" {rules.BASE!r}, got {', '.join(names)}"
                )
        for name in ("shard_bytes", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        guards.of(self)

    @property
    def _pairs(self) -> list[tuple[str, str]]:
        """The models with their names, empty where none is given."""
        parts = [text.partition("=") for text in self.models]
        return [
            (head, tail) if mark and _NAME.fullmatch(head) else ("", head + mark + tail)
            for head, mark, tail in parts
        ]

    @property
    def names(self) -> list[str]:
        """The models' names: given, or the last part of the path where that tells."""
        lasts = [files.name_of(place) for _, place in self._pairs]
        return [
            name
            or (last if _NAME.fullmatch(last) and lasts.count(last) == 1 else "")
            or f"model-{number}"
            for number, ((name, _), last) in enumerate(
                zip(self._pairs, lasts, strict=True), 1
            )
        ]

    @property
    def places(self) -> dict[str, str]:
        """Where the inputs are, by name: the models in order, then the base."""
        pairs = zip(self.names, (place for _, place in self._pairs), strict=True)
        return {**dict(pairs), **({rules.BASE: self.base} if self.base else {})}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Merging:
    """What is merged and how: a table `[merge]`, checked.

    Attributes:
      config: the settings that are flags.
      settings: of the method for all tensors.
      tables: `[[merge.rules]]`.
    """

    config: MergeConfig
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tables: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        """Settles the rules once, so that slips show before a file is read."""
        _ = self.rules

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules, in the order in which they are tried."""
        return rules.read_rules(
            self.config.method,
            self.settings,
            self.tables,
            self.config.names,
            use_base=self.config.use_base,
            has_base=self.config.base is not None,
        )

    @property
    def shaping(self) -> dict[str, Any]:
        """The settings that shape the merged model, as JSON values."""
        return {
            **settings.shaping(self.config),
            "models": self.config.names,
            "settings": dict(self.settings),
            "rules": [dict(table) for table in self.tables],
        }


def read_table(table: Mapping[str, Any], where: str = "[merge]") -> Merging:
    """Reads a table `[merge]`.

    Raises:
      ValueError: if a key is unknown, missing or wrong; names it.
    """
    given = dict(table)
    own, tables = given.pop("settings", {}), given.pop("rules", [])
    if not isinstance(own, Mapping):
        raise ValueError(f"{where}.settings must be a table, got {own!r}")
    if not isinstance(tables, list):
        raise ValueError(f"{where}.rules must be a list of tables, got {tables!r}")
    if isinstance(given.get("models"), Mapping):
        given["models"] = [f"{name}={place}" for name, place in given["models"].items()]
    try:
        config = settings.from_mapping(MergeConfig, given, where)
        return Merging(config=config, settings=own, tables=tables)
    except ValueError as error:
        told = str(error)
        raise ValueError(told if where in told else f"{where}: {told}") from error


def read_recipe(path: str, flags: Mapping[str, Any]) -> Merging:
    """Reads the table `[merge]` of a recipe; flags take the place of keys.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not TOML or has no such table, or a key is wrong.
    """
    try:
        given = tomllib.loads(files.read_bytes(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be TOML: {error}") from error
    if not isinstance(given.get("merge"), dict):
        raise ValueError(
            f"{path} must hold a table [merge] that says what is merged, it holds"
            f" {', '.join(given) or 'nothing'}"
        )
    folder = given.get("output")
    default = {"output": files.join(folder, "merged")} if folder else {}
    try:
        return read_table({**default, **given["merge"], **flags})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


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
    return Sources(
        models=found,
        tensors=[weights.read_weights(one.folder) for one in found],
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


def plan_merge(merging: Merging) -> Planned:
    """Plans every tensor: how it is made, and in which file it goes.

    Raises:
      FileNotFoundError: if a model is not there.
      ValueError: if models or settings do not fit; names what and where.
    """
    config, sources = merging.config, gather(merging.config)
    dtype = match.DTYPES[config.dtype] if config.dtype else None
    tensors, notes = match.match(sources, merging.rules, dtype)
    told = [*sources.vocabulary.notes, *notes, *merged.differences(sources)]
    shards = plan.part(tensors, config.shard_bytes)
    return Planned(sources=sources, shards=shards, notes=tuple(told))


def merge_models(merging: Merging, runner_flags: Sequence[str] = ()) -> Manifest | None:
    """Merges models, and describes the folder once all files are there.

    Returns:
      The manifest, or None where slices outside `slices` are missing, or nobody awaits
      the job.

    Raises:
      ValueError: if the settings or models do not fit; names what and where.
      SchemaError: if the output holds what is not of this work.
    """
    config, dry = merging.config, launch.is_dry(runner_flags)
    launch.check(config.output, runner_flags, config.slices)
    found, shaped = plan_merge(merging), merging.shaping
    told = Description(
        models=tuple(found.sources.models),
        lead=found.sources.lead,
        settings=shaped,
        inputs=merged.inputs_of(found.sources),
        notes=found.notes,
        dtype=config.dtype,
    )
    anew = {"overwrite": config.overwrite}
    if stage.whole(config.output, work.STAGE, shaped, told.inputs, **anew, dry=dry):
        return manifest.read(config.output, work.STAGE)
    merged.refuse_others(config.output, found.shards, told.identity, **anew)
    if not dry:
        merged.begin(config.output, found.sources, found.shards, told.identity)
    describe = functools.partial(merged.describe, config.output, told)
    tasks = _works(config, found, told.identity)
    if config.slices is not None:
        whole = _do_slices(config, found.shards, tasks)
    else:
        _run(config, found.shards, tasks, describe, runner_flags)
        whole = not launch.left_alone(runner_flags)
    return describe() if whole else None


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
    shards: Sequence[Shard],
    tasks: Sequence[FileWork],
    describe: Callable[[], Any],
    runner_flags: Sequence[str],
) -> None:
    """Runs the job over all files.

    Raises:
      FusionError: if it ended without some of them.
    """
    guarded, wanted = guards.of(config), {shard.file for shard in shards}

    def missing() -> list[str]:
        return sorted(wanted - set(files.names(config.output, ".safetensors")))

    places = (config.output, files.join(config.output, sums.FOLDER))
    with launch.Progress(
        "merge", len(wanted), lambda: (len(wanted) - len(missing()), 0)
    ):
        launch.run(
            lambda root: stage.ending(
                build(root, config.output, tasks, guarded), describe, runner_flags
            ),
            runner_flags,
            Watch("merge", places, config.output, guarded.stall_timeout),
            reads=tuple(config.places.values()),
        )
    if not launch.left_alone(runner_flags) and (left := missing()):
        raise FusionError(
            f"all {len(wanted)} files must be in {config.output} when the job has"
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
    settings.add_flags(parser, MergeConfig)
    return parser


def _parse(argv: Sequence[str]) -> tuple[Merging, list[str]]:
    """Parses the command line: a recipe, our flags, and Beam's."""
    words, unseen = launch.behind_hyphens(argv)
    spelt = settings.snake_case_flags(words, settings.truths(MergeConfig))
    ours, flags = launch.part_runner_flags(spelt)
    known, rest = flags_parser().parse_known_args(ours)
    names = [f.name for f in dataclasses.fields(MergeConfig)]
    launch.refuse_unknown(rest, names)
    given = vars(known)
    return read_recipe(given.pop("recipe"), given), flags + unseen


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    merging, runner_flags = _parse(sys.argv[1:] if argv is None else argv)
    if merging.config.show:
        found = plan_merge(merging)
        names = [one.name for one in found.sources.models]
        told = report.lines(names, found.sources.lead, found.shards, found.notes)
        for line in told:
            print(line)
        return 0
    finished = merge_models(merging, runner_flags)
    if finished is None:
        print(stage.unfinished(merging.config.slices, runner_flags))
    else:
        counts = finished.counts
        print(
            f"{merging.config.output}: {counts['models']} models merged,"
            f" {counts['parameters']:,} parameters in {counts['tensors']:,} tensors"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
