"""Commands as real processes, forked from one that has imported everything."""

import ctypes
import dataclasses
import multiprocessing
import os
import resource
import sys
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pipelines import cli

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        *("pipelines.cli", "pipelines.prepare", "pipelines.score", "pipelines.fuse"),
        *("train.trainer", "tests.deadly_slices", "tests.deadly_merge"),
    ]
)
WAIT_S = 1500.0


def start(
    call: Callable[..., Any], *args: Any, log: Path, limit: int | None = None
) -> BaseProcess:
    """Calls a function in a process; what it returns is the exit status.

    Args:
      call: the function.
      *args: of it.
      log: file that gets all that the process prints.
      limit: bytes that a file may have which the process writes; None = any.
    """
    process = _CONTEXT.Process(target=_run, args=(str(log), limit, call, args))
    process.start()
    return process


def _run(
    log: str, limit: int | None, call: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - to the end
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        status = call(*args)
    except Exception:
        traceback.print_exc()
        os._exit(2)
    os._exit(status if isinstance(status, int) else 0)


def end(process: BaseProcess) -> int:
    """Awaits a process; returns its exit status, or minus the signal that ended it."""
    process.join(WAIT_S)
    assert process.exitcode is not None, "a command must end"
    return process.exitcode


def bound(call: Callable[..., Any], *args: Any) -> Any:
    """Calls a function as one whom the permissions of files bind: root they do not.

    Root's privileges are dropped for the rest of the process; what it owns stays its.
    """
    if os.geteuid() == 0:
        version_3, no_pid, none = 0x20080522, 0, (ctypes.c_uint32 * 6)()
        header = (ctypes.c_uint32 * 2)(version_3, no_pid)
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.capset(header, none) == 0, os.strerror(ctypes.get_errno())
    return call(*args)


@dataclasses.dataclass
class Commands:
    """Starts commands, and awaits all of them."""

    folder: Path
    started: list[tuple[BaseProcess, Path]] = dataclasses.field(default_factory=list)

    def start(self, *words: str, limit: int | None = None) -> None:
        """Starts a command; a file of it may have so many bytes, if limited."""
        log = self.folder / f"{len(self.started)}.log"
        process = start(bound, cli.main, list(words), log=log, limit=limit)
        self.started.append((process, log))

    def end(self) -> list[tuple[int, str]]:
        """Returns each command's exit status and what it said."""
        started, self.started = self.started, []
        return [(end(process), log.read_text()) for process, log in started]

    def run(self, *words: str, limit: int | None = None) -> tuple[int, str]:
        """Runs a command alone."""
        self.start(*words, limit=limit)
        return self.end()[0]
