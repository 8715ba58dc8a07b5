"""Counts which tokens of two scored models stand beside each other, for `map`."""

import dataclasses
import functools
from collections.abc import Sequence

from pipelines import launch, lexicons, scored, stage
from schemas import cooccurrences, files, manifest, plan, scores, tables
from schemas.errors import FusionError, SchemaError
from schemas.manifest import Manifest
from transforms import cooccurrence, strategies
from transforms.attempts import Guards
from transforms.cooccurrence import CountSlices, Scored
from transforms.functional.cooccurrence import Counts
from transforms.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class CountConfig:
    """What is counted, and where the counts go.

    Attributes:
      source: scores folder of the source.
      target: scores folder of the target, of the same windows.
      output: folder of the counts.
      reference: whether as the authors count.
      overwrite: whether counts of other scores are written anew.
      guards: when the job, or a slice, is given up.
    """

    source: str
    target: str
    output: str
    reference: bool = False
    overwrite: bool = False
    guards: Guards = dataclasses.field(default_factory=Guards)

    @property
    def shaping(self) -> dict[str, bool]:
        """What shapes the counts beside the scores."""
        return {"reference": self.reference}


def inputs_of(config: CountConfig) -> dict[str, str]:
    """Returns the fingerprints of both models' scores and of the windows below them.

    Raises:
      SchemaError: if one of them is no scores folder, or they are of other windows.
    """
    source = manifest.read(config.source, scores.STAGE)
    target = manifest.read(config.target, scores.STAGE)
    if source.inputs["windows"] != target.inputs["windows"]:
        raise SchemaError(
            f"the scores in {config.source} and {config.target} must be of the same"
            " windows, but are of different ones; score the same windows with both"
        )
    return {
        "windows": target.inputs["windows"],
        "scores:source": source.fingerprint,
        "scores:target": target.fingerprint,
    }


def fingerprint_of(config: CountConfig) -> str:
    """Returns the fingerprint of the counts, made or not."""
    return stage.identity(cooccurrences.STAGE, config.shaping, inputs_of(config))


def work_of(config: CountConfig) -> CountSlices:
    """Returns what is to be done with each slice."""
    source, target = map(scored.tokenizer_of, (config.source, config.target))
    if config.reference:
        for name, own in (("source", source), ("target", target)):
            _write_lexicon(config, name, own, target)
    return CountSlices(
        windows=_windows(config),
        source=_scored(config.source, source),
        target=_scored(config.target, target),
        output=config.output,
        identity=fingerprint_of(config),
        reference=config.reference,
        overwrite=config.overwrite,
    )


def _write_lexicon(
    config: CountConfig, name: str, own: Tokenizer, target: Tokenizer
) -> None:
    """Writes a half of what the authors' pairs take, unless it is there."""
    prints = own.fingerprint, target.fingerprint
    told = strategies.lexicon_identity(*prints, "statistics", None)
    path = strategies.lexicon_file(config.output, name)
    if not tables.is_made(path, told, what=strategies.WHAT, overwrite=config.overwrite):
        made = lexicons.build_lexicon(own, target, "statistics")
        with files.publish(path) as sink:
            strategies.save_lexicon(made, told, sink)


def _windows(config: CountConfig) -> str:
    made = manifest.read(config.target, scores.STAGE)
    return manifest.origin(config.target, made, "windows")


def _scored(folder: str, own: Tokenizer) -> Scored:
    controls = tuple(i for i, piece in enumerate(own.token_bytes) if piece is None)
    return Scored(
        scores=folder, tokenizer=own.fingerprint, size=own.size, controls=controls
    )


def is_whole(config: CountConfig, *, dry: bool = False) -> bool:
    """Says whether all windows were counted.

    Counts that will be written anew lose their manifest, unless this is a dry run.

    Raises:
      SchemaError: if the folder holds counts of other scores.
    """
    return stage.whole(
        config.output,
        cooccurrences.STAGE,
        config.shaping,
        inputs_of(config),
        overwrite=config.overwrite,
        dry=dry,
    )


def count_windows(config: CountConfig, runner_flags: Sequence[str] = ()) -> Manifest:
    """Counts all windows that two models have scored, and describes the counts.

    Raises:
      FusionError: if they are not counted yet, and nobody awaits the job that would.
    """
    if is_whole(config, dry=launch.left_alone(runner_flags)):
        return manifest.read(config.output, cooccurrences.STAGE)
    if launch.left_alone(runner_flags):
        raise FusionError(
            "strategy = statistics needs its counts before its own job can be"
            " translated, and here no job is awaited; count first, where a job can be:"
            " fusebeam fuse ... --maps_only --runner=DataflowRunner, no template"
        )
    send(config, _windows(config), runner_flags)
    return _describe(config)


def send(config: CountConfig, windows: str, runner_flags: Sequence[str]) -> None:
    """Counts the slices of a windows folder that are missing, by a job."""
    stage.do_slices(
        f"count {files.name_of(config.output)}",
        work_of(config),
        windows,
        None,
        runner_flags,
        describe=functools.partial(_describe, config),
        reads=(config.source, config.target),
        guards=config.guards,
    )


def _describe(config: CountConfig) -> Manifest:
    """Writes the manifest of counts that are all there."""
    windows = _windows(config)
    return stage.finish(
        config.output,
        cooccurrences.STAGE,
        settings=config.shaping,
        inputs=inputs_of(config),
        origins={
            "windows": windows,
            "target": config.target,
            "sources": [f"source={config.source}"],
        },
        names=[piece.output for piece in plan.read(windows)],
        count=lambda footers: stage.total(footers, "windows", "failed", "tokens"),
    )


def read_counts(folder: str) -> Counts:
    """Returns the sums over a finished folder of counts."""
    made = manifest.read(folder, cooccurrences.STAGE)
    return cooccurrence.read_counts(folder, [entry.name for entry in made.files])


def check(folder: str, made: Manifest) -> str:
    """Checks that every window was counted or failed, of the scores that are there.

    Raises:
      SchemaError: if the scores are others, or windows are missing.
    """
    (source,) = made.origins["sources"]
    config = CountConfig(
        source=files.resolve(folder, source.partition("=")[2]),
        target=manifest.origin(folder, made, "target"),
        output=folder,
        reference=made.settings["reference"],
    )
    if fingerprint_of(config) != made.fingerprint:
        raise SchemaError(
            f"{folder} must be made of the scores now in {config.source} and"
            f" {config.target}"
        )
    counted, failed = made.counts["windows"], made.counts["failed"]
    pieces = plan.read(_windows(config))
    if counted + failed != (total := sum(piece.windows for piece in pieces)):
        raise SchemaError(
            f"{folder} must count {total} windows, counted or failed, got"
            f" {counted + failed}"
        )
    return f"{counted:,} windows counted + {failed:,} failed = all that were scored"
