"""Commands as real processes, forked from one that has imported everything."""

import multiprocessing
import os
import resource
import sys
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "pipelines.cli",
        "pipelines.prepare",
        "pipelines.fuse",
        "tests.deadly_slices",
        "tests.deadly_merge",
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
