"""A slice in, a file out: the one scheme by which every job does its work.

A worker takes a slice of the plan, skips it if its file is there and was made by the
same work, and otherwise writes it under a temporary name and renames it. So a repeated
or retried job does only what is missing, on any runner, or with none.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import apache_beam as beam
import pyarrow as pa

from schemas import files, manifest, parquet, plan
from schemas.plan import Slice
from transforms import lines


@runtime_checkable
class SliceWork(Protocol):
    """What is done with one slice; its fields are its settings, so that it pickles."""

    @property
    def output(self) -> str:
        """Folder that the slices' files go to."""

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


def do_slice(work: SliceWork, piece: Slice) -> bool:
    """Makes the file of a slice, unless it is done.

    Returns:
      Whether there was anything to do.

    Raises:
      SchemaError: if a file of other settings is in the way.
    """
    path = files.join(work.output, piece.output)
    fingerprint = work.fingerprint(piece)
    if parquet.done(path, fingerprint, overwrite=work.overwrite):
        return False
    footer = {"fingerprint": fingerprint, "slice": piece.index, "digest": piece.digest}
    with parquet.writer(path, work.schema, footer, **work.options) as tables:
        work.fill(piece, tables)
    assert tables.entry is not None
    manifest.note_entry(work.output, tables.entry, fingerprint)
    return True


class _DoSlice(beam.DoFn):
    """Calls `do_slice` and counts what it did."""

    def __init__(self, work: SliceWork) -> None:
        self._work = work

    def process(self, line: str) -> Iterator[str]:
        piece = plan.from_line(line)
        name = "slices_done" if do_slice(self._work, piece) else "slices_skipped"
        beam.metrics.Metrics.counter(type(self._work), name).inc()
        yield piece.output


@dataclasses.dataclass
class DoSlices(beam.PTransform):
    """Reads a plan and does every slice of it; yields the names of the files.

    Attributes:
      windows: the windows folder whose plan it is.
      work: what to do with a slice.
      hints: what a worker needs for that, as Beam's resource hints. They are on this
        step alone: the shuffle before it parts it from what any worker can do.
    """

    windows: str
    work: SliceWork
    hints: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def expand(self, root: beam.pvalue.PBegin) -> beam.PCollection[str]:
        return (
            root
            | "Read plan" >> lines.ReadLines(files.join(self.windows, plan.NAME))
            # The plan is one small file: without this all slices go to one worker.
            | "Spread slices" >> beam.Reshuffle()
            | "Do slices"
            >> beam.ParDo(_DoSlice(self.work)).with_resource_hints(**self.hints)
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
