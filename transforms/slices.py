"""A slice in, a file out: the one scheme by which every job does its work.

A worker takes a slice of the plan, skips it if its file is there and was made by the
same work, and otherwise writes it under a temporary name and renames it. So a repeated
or retried job does only what is missing, on any runner, or with none.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import apache_beam as beam
import pyarrow as pa

from schemas import files, manifest, parquet, plan
from schemas.errors import FusionError
from schemas.plan import Slice
from transforms import attempts, ledger, lines
from transforms.attempts import Guards

logger = logging.getLogger(__name__)

QUARANTINED = "quarantined"
"""Key of the footer of a slice that was given up; its value says why."""


@runtime_checkable
class SliceWork(Protocol):
    """What is done with one slice; its fields are its settings, so that it pickles."""

    @property
    def output(self) -> str:
        """Folder that the slices' files go to."""

    @property
    def identity(self) -> str:
        """Digest of all that shapes the folder's bytes."""

    @property
    def overwrite(self) -> bool:
        """Whether files of other settings are written anew instead of refused."""

    @property
    def schema(self) -> pa.Schema:
        """Columns of the files."""

    @property
    def options(self) -> dict[str, Any]:
        """Options of pyarrow's ParquetWriter."""

    def fingerprint(self, piece: Slice) -> str:
        """Digests all that shapes the file of a slice."""

    def fill(self, piece: Slice, tables: parquet.TableWriter) -> None:
        """Writes the row groups of a slice and fills in its footer."""

    def give_up(self, piece: Slice, tables: parquet.TableWriter, reason: str) -> None:
        """Does as `fill` where every window failed, without looking closer at any."""

    def load(self) -> None:
        """Loads what this process holds in memory to fill slices, if it is not there.

        How long that takes does not count as the slice's time.
        """

    def release(self) -> None:
        """Lets go of what this process holds in memory to fill slices."""


def do_slice(work: SliceWork, piece: Slice, guards: Guards | None = None) -> bool:
    """Makes the file of a slice, unless it is done.

    A slice that keeps killing its process, or takes too long, is quarantined: its file
    says so and why, and has an error for each window, so that counts and positions
    hold. See `attempts`.

    Returns:
      Whether there was anything to do.

    Raises:
      SchemaError: if a file of other settings is in the way.
      FusionError: if not even errors could be written; names the slice.
    """
    guards = guards or Guards()
    done = functools.partial(_done, work, piece)
    if done():
        return False
    reason = attempts.run(
        make,
        work,
        piece,
        output=work.output,
        name=piece.output,
        guards=guards,
        load=work.load,
        release=work.release,
        done=done,
    )
    if reason is not None and not done():
        _quarantine(work, piece, reason, guards)
    return True


def _done(work: SliceWork, piece: Slice) -> bool:
    """Says whether the file of a slice is there, whoever has made it."""
    path = files.join(work.output, piece.output)
    return parquet.done(path, work.fingerprint(piece), overwrite=work.overwrite)


class _SuperfluousError(Exception):
    """Another command has published the same file; never leaves this module."""


def make(work: SliceWork, piece: Slice, given_up: str | None = None) -> None:
    """Writes the file of a slice.

    If another command has written it meanwhile, that one stays: a finished file is
    never touched, and errors never take the place of scores.

    Args:
      work: what to do with it.
      piece: the slice.
      given_up: why it is not done, but quarantined.
    """
    path = files.join(work.output, piece.output)
    fingerprint = work.fingerprint(piece)
    footer = {"fingerprint": fingerprint, "slice": piece.index, "digest": piece.digest}
    try:
        with parquet.writer(path, work.schema, footer, **work.options) as tables:
            if given_up is None:
                work.fill(piece, tables)
            else:
                work.give_up(piece, tables, given_up)
                tables.footer[QUARANTINED] = given_up
            if _done(work, piece):
                raise _SuperfluousError
    except _SuperfluousError:
        return
    assert tables.entry is not None
    manifest.remove_other(work.output, work.identity)
    manifest.note_entry(work.output, tables.entry, fingerprint)


def _quarantine(work: SliceWork, piece: Slice, reason: str, guards: Guards) -> None:
    """Publishes a slice as errors; its windows are read where they can harm nobody."""
    with ledger.attempt(work.output, piece.output, beat_s=guards.beat_s):
        death = attempts.in_own_process(
            make, work, piece, reason, timeout_s=guards.element_timeout
        )
    if death is not None:
        raise FusionError(
            f"slice {piece.index} cannot be quarantined: {reason}; and when its windows"
            f" were only read, the process {death}: is {piece.file} of the windows"
            " damaged? `fusebeam verify` reads it"
        )
    ledger.remove(work.output, ledger.left(work.output, piece.output))
    logger.warning("slice %d is given up: %s", piece.index, reason)


class _DoSlice(beam.DoFn):
    """Calls `do_slice` and counts what it did.

    A slice that somebody else is at, or has died of, is left till the end of the
    bundle: so commands that work at once in one folder share the slices, and what may
    harm its process comes last. No other work is done there. It may be, as a slice is
    published by itself wherever it is done: a bundle that is lost at its end, or never
    ends, leaves no slice undone that was done, and is done again as any other.
    """

    def __init__(self, work: SliceWork, guards: Guards) -> None:
        self._work, self._guards = work, guards

    def start_bundle(self) -> None:
        """Has left nothing yet."""
        self._later: list[Slice] = []
        self._passing = ledger.Passing(self._work.output, beat_s=self._guards.beat_s)

    def process(self, line: str) -> Iterator[str]:
        piece = plan.from_line(line)
        if ledger.left(self._work.output, piece.output):
            self._later.append(piece)
        else:
            yield self._do(piece)

    def finish_bundle(self) -> Iterator[beam.utils.windowed_value.WindowedValue]:
        """Does what was left."""
        for piece in self._later:
            yield beam.transforms.window.GlobalWindows.windowed_value(self._do(piece))
        self._passing.end()

    def _do(self, piece: Slice) -> str:
        done = do_slice(self._work, piece, self._guards)
        if not done:
            self._passing.sign()
        name = "slices_done" if done else "slices_skipped"
        beam.metrics.Metrics.counter(type(self._work), name).inc()
        return piece.output


@dataclasses.dataclass
class DoSlices(beam.PTransform):
    """Reads a plan and does every slice of it; yields the names of the files.

    Attributes:
      windows: the windows folder whose plan it is.
      work: what to do with a slice.
      hints: what a worker needs for that, as Beam's resource hints. They are on this
        step alone: the shuffle before it parts it from what any worker can do.
      guards: how long a slice may take, and how often it may kill its process.
    """

    windows: str
    work: SliceWork
    hints: Mapping[str, str] = dataclasses.field(default_factory=dict)
    guards: Guards = dataclasses.field(default_factory=Guards)

    def expand(self, root: beam.pvalue.PBegin) -> beam.PCollection[str]:
        return (
            root
            | "Read plan" >> lines.ReadLines(files.join(self.windows, plan.NAME))
            # The plan is one small file: without this all slices go to one worker.
            | "Spread slices" >> beam.Reshuffle()
            | "Do slices"
            >> beam.ParDo(_DoSlice(self.work, self.guards)).with_resource_hints(
                **self.hints
            )
        )


class _Call(beam.DoFn):
    """Calls a function for an element that says no more than that it is time."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call

    def process(self, _: int) -> Iterator[str]:
        self._call()
        yield from ()


@dataclasses.dataclass
class Afterwards(beam.PTransform):
    """Calls a function once all elements are there: the end of a job nobody awaits.

    Yields nothing.

    Attributes:
      call: the function; a repeated call must do no harm, as a runner may retry it.
    """

    call: Callable[[], Any]

    def expand(self, pcoll: beam.PCollection[str]) -> beam.PCollection[str]:
        return (
            pcoll
            | "Await all" >> beam.combiners.Count.Globally()
            | "Call" >> beam.ParDo(_Call(self.call))
        )
