"""What `fusebeam run` says while it runs: stages, and the slices of an evaluation."""

import sys
import time

from pipelines import launch


class Stage:
    """Says when a stage begins, what it came to, and how long it took."""

    def __init__(self, name: str) -> None:
        self._name, self._start = name, time.monotonic()

    def __enter__(self) -> "Stage":
        print(f"── {self._name}", flush=True)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.say(f"({launch.clock(time.monotonic() - self._start)})")

    def say(self, text: str) -> None:
        """Prints a line of the stage."""
        print(f"   {text}", flush=True)


class Slices:
    """Shows on standard error which slice of how many an evaluation has done."""

    def __init__(self, name: str) -> None:
        self._name, self._terminal = name, sys.stderr.isatty()

    def __call__(self, line: str) -> None:
        """Shows a line that ends with the slice and how many there are."""
        text = f"{self._name}: {line}"
        if not self._terminal:
            print(text, file=sys.stderr, flush=True)
            return
        done, _, total = line.rpartition(" ")[2].partition("/")
        # One line that is written over, as the other stages have, until the last slice.
        print(
            f"\r\x1b[K{text}", end="\n" * (done == total), file=sys.stderr, flush=True
        )
