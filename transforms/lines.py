"""The lines of one small file, spread over all workers."""

import dataclasses
from collections.abc import Iterator

import apache_beam as beam

from schemas import files


def lines(path: str) -> Iterator[str]:
    """Yields the lines of a file, without their ends."""
    with files.open_input(path) as file:
        for line in file:
            yield line.decode().removesuffix("\n")


@dataclasses.dataclass
class ReadLines(beam.PTransform):
    """Reads a file's lines: on a worker, so that a job names the file and no line.

    Beam's own way would be a second client of the bucket, with settings of its own.

    Attributes:
      path: the file.
    """

    path: str

    def expand(self, root: beam.pvalue.PBegin) -> beam.PCollection[str]:
        return (
            root
            | "Name" >> beam.Create([self.path], reshuffle=False)
            | "Read" >> beam.FlatMap(lines).with_output_types(str)
        )


@dataclasses.dataclass
class AwaitLines(beam.PTransform):
    """Reads a file's lines once all that comes before is done.

    Attributes:
      path: the file.
    """

    path: str

    def _lines(self, _: int) -> list[str]:
        return list(lines(self.path))

    def expand(self, pcoll: beam.PCollection[str]) -> beam.PCollection[str]:
        return (
            pcoll
            | "Await all" >> beam.combiners.Count.Globally()
            | "Read" >> beam.FlatMap(self._lines).with_output_types(str)
        )
