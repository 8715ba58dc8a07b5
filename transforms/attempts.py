"""Attempts at work that may kill or hang its process, without taking others along.

The first attempt runs where the runner has put it. If the ledger shows an earlier one
whose process is gone, that process may have been killed by this work, by its neighbor
in another thread, or with its machine. Nobody can tell, so it counts for nothing but a
suspicion, and the next attempt runs in a process of its own:

    lives on, child dies      the work killed its process: counted
    lives on, child is late   the work hangs: killed, counted
    dies too                  a machine was lost: not counted, a suspicion again

A machine without memory kills processes, too, whoever took it. So suspects of a machine
go one at a time, and one that was killed is tried again only after a pause.
"""

import contextlib
import dataclasses
import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

from schemas import locks
from transforms import ledger

logger = logging.getLogger(__name__)

MAX_BEAT_S = 20.0

_PAUSE_S = 30.0
"""Pause after a first kill, and so much longer after each: memory may be free then."""

_POLL_S = 0.25
_EXIT_S = 10.0
"""Seconds that a process may take to end once its work is done."""

_OOM_POINTS = 20
"""Thousandths of the machine's memory that a child seems larger than its parent."""

_READY = "ready"

_KILLED = "was killed by SIGKILL"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guards:
    """How long work may take and how often it may kill its process.

    Attributes:
      max_slice_attempts: deaths of a process of its own, after which work is given up.
      element_timeout: seconds that a slice may take once all is loaded that it needs;
        None = no limit.
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


def _nothing() -> None:
    """Needs nothing loaded, and lets go of nothing."""


def _never() -> bool:
    return False


def run(
    call: Callable[..., Any],
    *args: Any,
    output: str,
    name: str,
    guards: Guards,
    load: Callable[[], Any] = _nothing,
    release: Callable[[], Any] = _nothing,
    done: Callable[[], bool] = _never,
) -> str | None:
    """Calls a function that makes a file, and sees whether its process survives that.

    Args:
      call: the function; it and its arguments must pickle.
      *args: of the function.
      output: the folder of the file, which has the ledger.
      name: the file.
      guards: the limits.
      load: loads what the function needs and a process keeps; its time is not the
        work's. Must pickle.
      release: lets go of what this process holds in memory for such work, before a
        process of its own needs as much.
      done: says whether the file is there meanwhile, made by another command.

    Returns:
      None, or why the work was given up.
    """
    suspicions = _suspicions(output, name, guards)
    if suspicions:
        # While it waits for its turn it gives signs of life: others may take long.
        with (
            ledger.attempt(output, name, beat_s=guards.beat_s),
            _TURNS.take(alone=True),
            _turn_of_machine(name),
        ):
            release()
            given_up = _alone(call, args, guards, load, done)
    else:
        given_up = None
        with _TURNS.take(alone=False):
            if not done():
                _beside(call, args, output, name, guards, load)
    if given_up is None:
        ledger.remove(output, suspicions)
    return given_up


def _suspicions(output: str, name: str, guards: Guards) -> list[str]:
    """Lists attempts at a file whose processes have died."""
    if not ledger.left(output, name):
        return []
    # It may take a minute to know, in which this process must not look dead itself.
    with ledger.attempt(output, name, beat_s=guards.beat_s):
        return ledger.dead(output, name, beat_s=guards.beat_s)


def _beside(
    call: Callable[..., Any],
    args: tuple[Any, ...],
    output: str,
    name: str,
    guards: Guards,
    load: Callable[[], Any],
) -> None:
    """Calls a function here, beside what other threads do."""
    with ledger.attempt(
        output, name, beat_s=guards.beat_s, timeout_s=guards.element_timeout
    ) as start_clock:
        load()
        start_clock()
        call(*args)


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


def _lock() -> Path:
    """Returns the file whose lock the one suspect of this machine holds."""
    return locks.shared_folder() / "fusebeam-alone"


@contextlib.contextmanager
def _turn_of_machine(name: str) -> Iterator[None]:
    """Waits till no other process of this machine lets a suspect work, and takes over.

    Two at once would each look guilty of the memory that the other takes.
    """
    path = _lock()
    file = locks.open_for_all(path)
    try:
        told = False
        while not locks.take(file):
            if not told:
                holder = path.read_text() or "unknown"
                logger.warning(
                    "%s waits: process %s has %s, and does another one alone",
                    name,
                    holder,
                    path,
                )
            told = True
            time.sleep(_POLL_S)
        os.ftruncate(file, 0)
        os.write(file, str(os.getpid()).encode())  # for people who look who has it
        yield
    finally:
        os.close(file)


def _alone(
    call: Callable[..., Any],
    args: tuple[Any, ...],
    guards: Guards,
    load: Callable[[], Any],
    done: Callable[[], bool],
) -> str | None:
    """Calls a function in processes of its own, till one survives or all have died."""
    times = guards.max_slice_attempts
    for number in range(1, times + 1):
        if done():
            return None
        death = in_own_process(call, *args, load=load, timeout_s=guards.element_timeout)
        if death is None:
            return None
        if death == _KILLED and number < times:
            time.sleep(_PAUSE_S * number)
    told = f"its process, which did nothing else, {death}: {times} of {times} times"
    if death == _KILLED:
        told += (
            ", as the kernel does where a machine's memory runs out, whoever took it;"
            " start fewer workers, or give them more memory"
        )
    return told


def in_own_process(
    call: Callable[..., Any],
    *args: Any,
    load: Callable[[], Any] = _nothing,
    timeout_s: float | None = None,
) -> str | None:
    """Calls a function in a process of its own.

    Args:
      call: the function; it and its arguments must pickle.
      *args: of the function.
      load: is called before it.
      timeout_s: seconds that the function may take, once its process was started and
        `load` has returned. None = no limit.

    Returns:
      None if it returned, or what became of the process.

    Raises:
      Exception: what the function raised.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(theirs, load, call, args), daemon=True)
    child.start()
    theirs.close()
    limit: float | None = None
    try:
        while wait_for([ours, child.sentinel], limit):
            try:
                told = ours.recv()
            except EOFError:
                child.join()
                return _ending(child.exitcode)
            if told == _READY:
                limit = timeout_s
                continue
            child.join(_EXIT_S)
            if told is not None:
                raise told
            return None
        return f"took longer than {timeout_s:g} seconds"
    finally:
        child.kill()
        child.join()
        ours.close()


def _child(
    pipe: Connection,
    load: Callable[[], Any],
    call: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    """Runs in the process of its own: says how the call ended, if it does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _go_before_parent()
    try:
        load()
        pipe.send(_READY)
        call(*args)
    except Exception as error:
        error.add_note(traceback.format_exc())
        _send(pipe, error)
    else:
        pipe.send(None)


def _go_before_parent(score: Path = Path("/proc/self/oom_score_adj")) -> None:
    """Sees that if memory runs out, this process goes and not its parent.

    Only by a little: else it would go for whatever any process of the machine takes,
    and its work would look guilty. Linux alone has it.
    """
    with contextlib.suppress(OSError):
        score.write_text(str(min(1000, int(score.read_text()) + _OOM_POINTS)))


def _send(pipe: Connection, error: Exception) -> None:
    """Sends an error; as text where it cannot travel: it must not look like death."""
    try:
        pipe.send(error)
    except Exception:
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
