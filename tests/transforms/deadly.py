"""Calls that do not end well, for processes that import as little as may be."""

import os
import signal
import time
from pathlib import Path


def nothing() -> None:
    """Does nothing."""


def note(path: str) -> int:
    """Adds a line with this process's id; returns how many there are now."""
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    return len(Path(path).read_text().splitlines())


def die(path: str, times: int = 99) -> None:
    """Kills its process as the kernel would, the first so many times."""
    if note(path) <= times:
        os.kill(os.getpid(), signal.SIGKILL)


def hang(path: str) -> None:
    """Never returns."""
    note(path)
    time.sleep(3600)


def refuse(path: str) -> None:
    """Fails as a step does that refuses its data."""
    note(path)
    raise ValueError("a window must hold text")


class StubbornError(Exception):
    """An error that cannot be sent to another process."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} {second}")
        self.lock = open(os.devnull)  # noqa: SIM115 - what holds a file cannot pickle


def refuse_stubbornly(path: str) -> None:
    """Fails with an error that cannot travel."""
    note(path)
    raise StubbornError(1, 2)
