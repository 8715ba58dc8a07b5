"""Attempts at work that may kill or hang its process, without taking others along.

The first attempt runs where the runner has put it. If the ledger shows an earlier one
whose process is gone, that process may have been killed by this work, by its neighbor
in another thread, or with its machine. Nobody can tell, so it counts for nothing but a
suspicion, and the next attempt runs in a process of its own:

    lives on, child dies      the work killed its process: counted
    lives on, child is late   the work hangs: killed, counted
    dies too                  a machine was lost: not counted, a suspicion again
"""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from typing import Any

from transforms import ledger

MAX_BEAT_S = 20.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guards:
    """How long work may take and how often it may kill its process.

    Attributes:
      max_slice_attempts: deaths of a process of its own, after which work is given up.
      element_timeout: seconds that a slice may take; None = no limit.
      stall_timeout: seconds after which a job without any sign of life is ended.
    """

    max_slice_attempts: int = 3
    element_timeout: float | None = None
    stall_timeout: float = 1800.0

    def __post_init__(self) -> None:
        """Checks the limits."""
        if self.max_slice_attempts < 1:
            raise ValueError(
                f"max_slice_attempts must be at least 1, got {self.max_slice_attempts}"
            )
        for name in ("element_timeout", "stall_timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0 seconds, got {value}")

    @property
    def beat_s(self) -> float:
        """Seconds between two signs of life: several before a job counts as stalled."""
        return min(MAX_BEAT_S, self.stall_timeout / 5)


def run(
    call: Callable[..., Any],
    *args: Any,
    output: str,
    name: str,
    guards: Guards,
    release: Callable[[], Any] | None = None,
) -> str | None:
    """Calls a function that makes a file, and sees whether its process survives that.

    Args:
      call: the function; it and its arguments must pickle.
      *args: of the function.
      output: the folder of the file, which has the ledger.
      name: the file.
      guards: the limits.
      release: lets go of what this process holds in memory for such work, before a
        process of its own needs as much.

    Returns:
      None, or why the work was given up.
    """
    suspicions = ledger.left(output, name)
    with _TURNS.take(alone=bool(suspicions)):
        if suspicions:
            with ledger.attempt(output, name, beat_s=guards.beat_s):
                if release is not None:
                    release()
                given_up = _alone(call, args, guards)
        else:
            given_up = None
            with ledger.attempt(
                output, name, beat_s=guards.beat_s, timeout_s=guards.element_timeout
            ):
                call(*args)
    if given_up is None:
        ledger.remove(output, suspicions)
    return given_up


class _Turns:
    """Lets the threads of a process work side by side, or one of them alone.

    Who works alone needs the memory, and the GPU, that the others would hold.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._working = 0
        self._alone = 0

    @contextlib.contextmanager
    def take(self, *, alone: bool) -> Iterator[None]:
        """Waits for a turn, and has it while the block runs."""
        with self._changed:
            if alone:
                self._alone += 1  # from now on nobody else begins
                self._changed.wait_for(lambda: self._working == 0)
            else:
                self._changed.wait_for(lambda: self._alone == 0)
            self._working += 1
        try:
            yield
        finally:
            with self._changed:
                self._working -= 1
                self._alone -= alone
                self._changed.notify_all()


_TURNS = _Turns()


def _alone(
    call: Callable[..., Any], args: tuple[Any, ...], guards: Guards
) -> str | None:
    """Calls a function in processes of its own, till one survives or all have died."""
    death = None
    for _ in range(guards.max_slice_attempts):
        death = in_own_process(call, *args, timeout_s=guards.element_timeout)
        if death is None:
            return None
    times = guards.max_slice_attempts
    return f"its process, which did nothing else, {death}: {times} of {times} times"


def in_own_process(
    call: Callable[..., Any], *args: Any, timeout_s: float | None = None
) -> str | None:
    """Calls a function in a process of its own.

    Returns:
      None if it returned, or what became of the process.

    Raises:
      Exception: what the function raised.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(theirs, call, args), daemon=True)
    child.start()
    theirs.close()
    try:
        if not wait_for([ours, child.sentinel], timeout_s):
            return f"took longer than {timeout_s:g} seconds"
        try:
            error = ours.recv()
        except EOFError:
            child.join()
            return _ending(child.exitcode)
        child.join()
        if error is not None:
            raise error
        return None
    finally:
        child.kill()
        child.join()
        ours.close()


def _child(pipe: Connection, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Runs in the process of its own: says how the call ended, if it does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # If memory runs out, this process shall go and not its parent; Linux alone has it.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")
    try:
        call(*args)
    except Exception as error:
        error.add_note(traceback.format_exc())
        _send(pipe, error)
    else:
        pipe.send(None)


def _send(pipe: Connection, error: Exception) -> None:
    """Sends an error; as text where it cannot travel: it must not look like death."""
    try:
        pipe.send(error)
    except (TypeError, AttributeError, multiprocessing.ProcessError, ValueError):
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(1)


def _ending(status: int | None) -> str:
    """Says how a process ended.

    Example:
      >>> _ending(-9), _ending(3)
      ('was killed by SIGKILL', 'exited with status 3')
    """
    if status is not None and status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"exited with status {status}"
