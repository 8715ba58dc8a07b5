"""A line of a plan in, a file out: the scheme of `slices`, for any kind of file.

What a worker finds done it skips, what it makes appears whole, and attempts stand in
the ledger: so a repeated or retried job does only what is missing, on any runner or
with none. Files here cannot be given up: what keeps killing its process ends the job by
name.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import apache_beam as beam

from schemas.errors import FusionError
from transforms import attempts, ledger
from transforms.attempts import Guards


@runtime_checkable
class FileWork(Protocol):
    """What is done with a line of a plan; its fields are its settings: it pickles."""

    @property
    def output(self) -> str:
        """Folder that the files go to."""

    def name(self, line: str) -> str:
        """Returns the name of a line's file, below the folder."""

    def done(self, line: str) -> bool:
        """Says whether the file of a line is there, made by this very work."""

    def make(self, line: str) -> None:
        """Publishes the file of a line; a repeated call must do no harm."""


def do_file(work: FileWork, line: str, guards: Guards | None = None) -> bool:
    """Makes the file of a line, unless it is done.

    Returns:
      Whether there was anything to do.

    Raises:
      FusionError: if it keeps killing its process, or takes too long; names the file.
    """
    done = functools.partial(work.done, line)
    if done():
        return False
    name = work.name(line)
    reason = attempts.run(
        work.make,
        line,
        output=work.output,
        name=name.replace("/", "."),
        guards=guards or Guards(),
        done=done,
    )
    if reason is not None and not done():
        raise FusionError(
            f"{name} of {work.output} must be made without harm to who makes it:"
            f" {reason}; give workers more memory, or start fewer of them on a machine"
        )
    return True


class _DoFile(beam.DoFn):
    """Calls `do_file` and counts what it did.

    A file that somebody else is at, or has died of, is left till the end of the bundle:
    so commands that work at once in one folder share the files.
    """

    def __init__(self, work: FileWork, guards: Guards) -> None:
        self._work, self._guards = work, guards

    def start_bundle(self) -> None:
        """Has left nothing yet."""
        self._later: list[str] = []

    def process(self, line: str) -> Iterator[str]:
        name = self._work.name(line).replace("/", ".")
        if ledger.left(self._work.output, name):
            self._later.append(line)
        else:
            yield self._do(line)

    def finish_bundle(self) -> Iterator[beam.utils.windowed_value.WindowedValue]:
        """Does what was left."""
        for line in self._later:
            yield beam.transforms.window.GlobalWindows.windowed_value(self._do(line))

    def _do(self, line: str) -> str:
        done = do_file(self._work, line, self._guards)
        counter = "files_done" if done else "files_skipped"
        beam.metrics.Metrics.counter(type(self._work), counter).inc()
        return self._work.name(line)


@dataclasses.dataclass
class DoFiles(beam.PTransform):
    """Makes the file of every line; yields the names of the files.

    Attributes:
      work: what to do with a line.
      guards: how long a file may take, and how often it may kill its process.
    """

    work: FileWork
    guards: Guards = dataclasses.field(default_factory=Guards)

    def expand(self, lines: beam.PCollection[str]) -> beam.PCollection[str]:
        return (
            lines
            # The plan is one small file: without this all lines go to one worker.
            | "Spread files" >> beam.Reshuffle()
            | "Do files" >> beam.ParDo(_DoFile(self.work, self.guards))
        )
