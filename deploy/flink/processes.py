"""Processes that carry a mark in their environment, so that exactly they are ended.

What a process starts inherits the mark: Python workers of a TaskManager too, even of
one that was killed. Numbers of processes alone would not do, as they are used again.
"""

import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

MARK = "FUSEBEAM_FLINK"
ROLE = "FUSEBEAM_FLINK_ROLE"
GRACE_S = 20.0
PERIOD_S = 0.1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process that carries a mark.

    Attributes:
      pid: its number.
      role: its own, or that of what started it.
      leads: whether it was started here; else one that was has started it.
    """

    pid: int
    role: str
    leads: bool


def start(
    command: Sequence[str], mark: str, role: str, values: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """Starts a process in a session of its own.

    Args:
      command: its words.
      mark: what it carries.
      role: what it is.
      values: further variables of its environment.
      log: file for what it prints; its folder is where it runs.
    """
    with log.open("wb") as out:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env={**os.environ, **values, MARK: mark, ROLE: role},
            start_new_session=True,
        )


def marked(mark: str) -> list[Process]:
    """Lists the processes that carry a mark and live."""
    return [
        Process(pid=pid, role=values[ROLE], leads=_leads(pid))
        for pid, values in _environments()
        if values.get(MARK) == mark and ROLE in values
    ]


def end(mark: str) -> None:
    """Ends all processes that carry a mark: asks them, and kills who stays."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + GRACE_S
        asked: set[int] = set()
        while (left := marked(mark)) and time.monotonic() < until:
            for process in left:
                if process.pid not in asked:
                    asked.add(process.pid)
                    _send(process.pid, signum)
            time.sleep(PERIOD_S)


def _environments() -> Iterator[tuple[int, dict[str, str]]]:
    """Yields what this user's processes were started with; of a zombie, nothing."""
    for pid in sorted(int(n) for n in os.listdir("/proc") if n.isdecimal()):
        try:
            words = _environment(pid).split(b"\0")
        except OSError:
            continue  # it has ended, or is another user's
        pairs = [os.fsdecode(word).partition("=") for word in words]
        yield pid, {name: value for name, _, value in pairs}


def _environment(pid: int) -> bytes:
    """Returns what a process was started with; of a zombie, nothing.

    While a process becomes another program its environment looks empty for a moment:
    it must not be taken for one that is not there. Numbers of fields are proc(5)'s.
    One that has put its environment away itself is not waited for any longer than that.
    """
    end = time.monotonic() + 10 * PERIOD_S
    while not (found := Path(f"/proc/{pid}/environ").read_bytes()):
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        memory, start, stop = (int(fields[number - 3]) for number in (23, 50, 51))
        if memory == 0 or 0 < start == stop:  # it is no program any more; it has none
            break
        if time.monotonic() >= end:
            break
        time.sleep(PERIOD_S / 100)
    return found


def _leads(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False


def _send(pid: int, signum: int) -> None:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return  # it has ended meanwhile, as it should
