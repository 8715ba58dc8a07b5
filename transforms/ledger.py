"""The ledger of attempts: which slices are in work, as anyone can see from outside.

An attempt is a small file in `.tmp/attempts/` of the output folder. It is written
before the work begins, renewed while it lasts, and removed when it ends, well or with
an error. So whoever lists the folder sees that something moves, on any filesystem and
through any runner; and what stays behind is an attempt whose process died.
"""

import contextlib
import logging
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from schemas import files
from schemas.errors import FusionError

logger = logging.getLogger(__name__)

FOLDER = "attempts"

_SILENT_BEATS = 5.0
"""Beats that are missed before an attempt of another machine counts as dead.

Of the longest, 20 s, that is 100 s: an NFS client may show a folder as it was up to
60 s ago (acdirmax), and the sign that it shows then may be a beat old.
"""


def folder(output: str) -> str:
    """Returns the ledger of an output folder."""
    return files.join(output, files.TEMPORARY, FOLDER)


def left(output: str, name: str) -> list[str]:
    """Lists attempts at a file of the output folder that have not ended.

    Their processes died, or are at work now: both look alike at one glance.
    """
    found = files.names(folder(output), ".json")
    return [entry for entry in found if entry.rpartition(".")[0].startswith(f"{name}.")]


def dead(output: str, name: str, *, beat_s: float) -> list[str]:
    """Lists attempts at a file whose processes have died.

    Those of this machine are known at once. Any other is watched for some beats: it is
    dead if it gives no sign of life meanwhile. Where none was left, nobody waits.

    Args:
      output: the output folder.
      name: the file.
      beat_s: seconds between two signs of an attempt that does not say so itself.
    """
    found, unknown, patience_s = [], [], 0.0
    for entry in left(output, name):
        told = _told(files.join(folder(output), entry))
        if told is None:
            continue  # it has ended
        if (alive := _alive_here(told)) is None:
            unknown.append(entry)
            patience_s = max(patience_s, _SILENT_BEATS * told.get("beat_s", beat_s))
        elif not alive:
            found.append(entry)
    return found + _silent(folder(output), unknown, patience_s)


def _silent(at: str, entries: Sequence[str], patience_s: float) -> list[str]:
    """Returns the attempts that do not change for so many seconds."""
    if not entries:
        return []
    first = files.stamps(at)
    still = [entry for entry in entries if entry in first]
    deadline = time.monotonic() + patience_s
    while still and (rest := deadline - time.monotonic()) > 0:
        time.sleep(min(rest, patience_s / 10))
        now = files.stamps(at)
        still = [entry for entry in still if now.get(entry) == first[entry]]
    return still


def remove(output: str, entries: Sequence[str]) -> None:
    """Removes attempts from the ledger."""
    for entry in entries:
        files.remove_tree(files.join(folder(output), entry))


def forget(output: str) -> None:
    """Removes the ledger of a folder whose stage is finished."""
    # Another command may renew an attempt meanwhile, which ends by removing itself.
    with contextlib.suppress(OSError):
        files.remove_tree(folder(output))


def in_work(output: str) -> list[dict[str, Any]]:
    """Reads what the ledger says of attempts that have not ended."""
    at = folder(output)
    found = [_told(files.join(at, entry)) for entry in files.names(at, ".json")]
    return [told for told in found if told]


def _told(path: str) -> dict[str, Any] | None:
    """Returns what an attempt says of itself; None where it has ended."""
    try:
        return dict(files.read_json(path))
    except FileNotFoundError:
        return None
    except FusionError:
        return {}  # nothing that could be used, but it is there


@contextlib.contextmanager
def attempt(
    output: str, name: str, *, beat_s: float, timeout_s: float | None = None
) -> Iterator[Callable[[], None]]:
    """Keeps an attempt in the ledger while its block runs.

    Args:
      output: the output folder.
      name: the file that is being made.
      beat_s: seconds between two signs of life.
      timeout_s: seconds that the work may take; then this process ends, as no thread
        can be stopped, and the attempt stays in the ledger. None = no limit.

    Yields:
      What starts the clock of `timeout_s`, to be called when all is loaded.
    """
    path = files.join(folder(output), f"{name}.{uuid.uuid4().hex}.json")
    beats = _Beats(path, name, beat_s, timeout_s)
    beats.start()
    try:
        yield beats.start_clock
    finally:
        beats.end()
        files.remove_tree(path)


class Passing:
    """Signs of life of who passes by finished work, of which no attempt tells.

    They come from no thread of their own: who hangs gives none.
    """

    NAME = "finished-slices"

    def __init__(self, output: str, *, beat_s: float) -> None:
        """Writes nothing yet.

        Args:
          output: the output folder.
          beat_s: seconds between two signs; who passes faster needs none.
        """
        self._path = files.join(folder(output), f"{self.NAME}.{uuid.uuid4().hex}.json")
        self._beat_s = beat_s
        self._begun = self._last = time.monotonic()
        self._written = False

    def sign(self) -> None:
        """Says that one more was passed by, if the last sign is a beat ago."""
        now = time.monotonic()
        if now - self._last >= self._beat_s:
            _write(self._path, self.NAME, now - self._begun, self._beat_s)
            self._last, self._written = now, True

    def end(self) -> None:
        """Takes the signs back."""
        if self._written:
            files.remove_tree(self._path)
            self._written = False


class _Beats:
    """Renews an attempt till it ends; ends the process when it takes too long."""

    def __init__(
        self, path: str, name: str, beat_s: float, timeout_s: float | None
    ) -> None:
        self._path, self._name = path, name
        self._beat_s, self._timeout_s = beat_s, timeout_s
        self._begun = time.monotonic()
        self._deadline = math.inf
        self._over = False
        self._failing = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Writes the attempt, and renews it from now on."""
        _write(self._path, self._name, 0.0, self._beat_s)
        self._thread.start()

    def start_clock(self) -> None:
        """Lets the time run that the work may take."""
        if self._timeout_s is not None:
            self._deadline = time.monotonic() + self._timeout_s
            self._wake.set()

    def end(self) -> None:
        """Ends the signs of life."""
        self._over = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        due = self._begun + self._beat_s
        while True:
            self._wake.wait(max(0.0, min(due, self._deadline) - time.monotonic()))
            self._wake.clear()
            if self._over:
                return
            if time.monotonic() >= self._deadline:
                assert self._timeout_s is not None
                _end_process(self._name, self._timeout_s)
            if time.monotonic() >= due:
                self._renew()
                due = time.monotonic() + self._beat_s

    def _renew(self) -> None:
        try:
            seconds = time.monotonic() - self._begun
            _write(self._path, self._name, seconds, self._beat_s)
            self._failing = False
        # Whatever a client may raise: a lost sign of life is no loss of work, and who
        # gives none any more would be taken for dead. What cannot be written at all,
        # the work itself will say.
        except Exception as error:
            if not self._failing:
                logger.warning(
                    "a sign of life of %s was not written, and is tried again: %s: %s",
                    self._name,
                    type(error).__name__,
                    error,
                )
            self._failing = True


def _write(path: str, name: str, seconds: float, beat_s: float | None = None) -> None:
    # File, host, process and seconds tell people where to look; the rest tells other
    # commands whether that process lives.
    told = {"file": name, "host": socket.gethostname(), "pid": os.getpid()}
    told |= {"machine": _machine(), "started": _started(os.getpid())}
    if beat_s is not None:
        told |= {"beat_s": beat_s}
    files.write_bytes(
        path, files.canonical_json({**told, "seconds": round(seconds, 1)}).encode()
    )


def _alive_here(told: dict[str, Any]) -> bool | None:
    """Says whether an attempt's process lives; None where it cannot be known from here.

    A process id alone says nothing: it is another's in a container, on another machine,
    after a restart, or some time later.
    """
    if (machine := _machine()) is None or told.get("machine") != machine:
        return None
    return told["started"] is not None and _started(told["pid"]) == told["started"]


def _machine() -> str | None:
    """Names what process ids are unique in; None where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None


def _started(pid: int) -> int | None:
    """Returns when a process was started, in ticks; None if it is gone."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    words = told.rpartition(")")[2].split()  # a name may hold spaces
    return None if words[0] in "ZX" else int(words[19])


def _end_process(name: str, timeout_s: float) -> None:
    message = (
        f"error: {name} must be done within --element_timeout={timeout_s:g} seconds; it"
        " took longer, so its process ends, as a thread cannot be stopped. The next"
        " attempt has a process of its own, and after --max_slice_attempts of these it"
        " is given up by name. A runner makes them itself; else repeat the command"
    )
    os.write(2, f"{message}\n".encode())
    os._exit(1)
