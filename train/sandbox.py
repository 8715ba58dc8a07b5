"""Runs small programs that a model has written, each in a process of its own.

    >>> double = "def double(x): return 2 * x"
    >>> passes(double, [Call("double", (4,))], [8])
    True

A program is judged by what its functions return: they are called with arguments there,
and what comes back, as JSON, is compared here. So what is expected is never where the
program is, and a program that ends early, or says of itself that it is right, is wrong.

It runs in a fresh Python without site packages, environment or terminal, in an empty
folder that is removed, with limits on CPU time, memory, the size and number of files,
processes and time by the clock; when it is over, its whole process group is killed.
What it prints goes nowhere. An audit hook ends it at whatever Python reports that is
not known to be harmless: files elsewhere, sockets, other processes, ctypes, further
modules, bytecode made by hand.

This keeps out mistakes, and what small models write: endless loops, too much memory, a
file removed. It is no wall against a hostile program. Python does not report all that
it does (a file's state, a pipe made by name, a module built into it), a fault of the
interpreter is open to whoever finds it, root heeds no limit on processes, and a process
that leaves its group outlives it. Programs of people or models that may mean harm need
a container or a virtual machine around this.
"""

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from train import sandboxed

CHILD = Path(sandboxed.__file__)
"""The script that a fresh Python runs."""

_START_SECONDS = 60
"""Time for that Python to begin, which the program is not charged for."""


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """A function of a program by name, and its arguments, which must be JSON."""

    function: str
    arguments: tuple[Any, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a program may use.

    Attributes:
      cpu_seconds: of CPU time, with the start of its Python.
      wall_seconds: by the clock, from when it begins.
      memory_bytes: of address space, its Python's some 30 MB among them.
      file_bytes: of each file that it writes.
      report_bytes: of all that its calls return, as JSON.
    """

    cpu_seconds: int = 2
    wall_seconds: float = 10.0
    memory_bytes: int = 256 << 20
    file_bytes: int = 1 << 20
    report_bytes: int = 64 << 10

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not (value := getattr(self, name)) > 0:
                raise ValueError(f"{name} must be above 0, got {value}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What has come of a program.

    Attributes:
      values: what each call has returned, as JSON has it: a tuple is a list. None
        where there is an error.
      error: what has gone wrong, without words of the program's but names of its
        exceptions; none where all calls have returned.
    """

    values: tuple[Any, ...] = ()
    error: str | None = None


def passes(
    program: str,
    calls: Sequence[Call],
    expected: Sequence[Any],
    limits: Limits | None = None,
) -> bool:
    """Says whether each call returns what is expected, in value and in JSON's type.

    So 1, 1.0 and true are three values.

    Raises:
      ValueError: if there is no call, or not one for each expected value.
      RuntimeError: if Python could not be started.
    """
    if not calls or len(calls) != len(expected):
        raise ValueError(
            "calls must be one at least, and as many as expected values, got"
            f" {len(calls)} and {len(expected)}"
        )
    outcome = run(program, calls, limits)
    return outcome.error is None and _text(list(outcome.values)) == _text(
        list(expected)
    )


def run(program: str, calls: Sequence[Call], limits: Limits | None = None) -> Outcome:
    """Runs a program, then calls functions of it, one after the other.

    Args:
      program: its source.
      calls: of functions that it defines; all in the one process.
      limits: what it may use; those of `Limits` where left out.

    Raises:
      ValueError, TypeError: if an argument is no JSON.
      RuntimeError: if Python could not be started, which is no fault of the program.
    """
    limits = limits or Limits()
    request = _text(
        {
            "program": program,
            "calls": [[call.function, list(call.arguments)] for call in calls],
            "limits": dataclasses.asdict(limits),
        }
    )
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as file:
        file.write(request.encode())
        file.seek(0)
        said, error = _exchange(file, folder, limits)
    return Outcome(error=error) if error else _outcome(said, len(calls))


def _text(value: Any) -> str:
    """Writes a value as JSON, the same for the same value."""
    return json.dumps(value, allow_nan=False, sort_keys=True)


def _exchange(
    request: IO[bytes], folder: str, limits: Limits
) -> tuple[bytes, str | None]:
    """Gives a request to a fresh Python; returns what it reports, and what failed."""
    alone = ("-I", "-S", "-B", "-W", "ignore", "-X", "utf8")
    child = subprocess.Popen(
        (sys.executable, *alone, CHILD),
        stdin=request,
        stdout=subprocess.PIPE,
        cwd=folder,
        env={},
        start_new_session=True,
    )
    assert child.stdout is not None  # as it is a pipe
    try:
        return _listen(child.stdout.fileno(), limits)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # not awaited yet: its id is its own
        child.stdout.close()
        child.wait()


def _listen(pipe: int, limits: Limits) -> tuple[bytes, str | None]:
    """Reads a report of bounded size in bounded time."""
    said, begun = b"", False
    until = time.monotonic() + _START_SECONDS
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    while poll.poll(max(0.0, until - time.monotonic()) * 1000):
        piece = os.read(pipe, 1 << 16)
        if not piece and begun:
            return said.removeprefix(sandboxed.READY), None
        if not piece:
            break
        said += piece
        if len(said) > limits.report_bytes + len(sandboxed.READY):
            return b"", f"it reported more than {limits.report_bytes} bytes"
        if not begun and said.startswith(sandboxed.READY):
            begun, until = True, time.monotonic() + limits.wall_seconds
    if begun:
        return b"", f"it ran for more than {limits.wall_seconds:g} seconds"
    raise RuntimeError(
        f"{sys.executable} must begin to run {CHILD.name} within {_START_SECONDS}"
        f" seconds and {limits.memory_bytes} bytes, it has not; see what it says on"
        " standard error"
    )


def _outcome(said: bytes, count: int) -> Outcome:
    """Reads a report, which the program may have written itself."""
    if not said:
        return Outcome(error="it ended without a report, by itself or at a limit")
    try:
        told = json.loads(said)
        _text(told)  # as NaN, and what is nested too deep, are no values to compare
        if isinstance(told.get("error"), str):
            return Outcome(error=told["error"])
        values = told["values"]
        if not (isinstance(values, list) and len(values) == count):
            raise TypeError(f"they are no list of {count} values")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return Outcome(error="its report is none: the program must not write its own")
    return Outcome(values=tuple(values))
