"""The ledger of attempts: which slices are in work, as anyone can see from outside.

An attempt is a small file in `.tmp/attempts/` of the output folder. It is written
before the work begins, renewed while it lasts, and removed when it ends, well or with
an error. So whoever lists the folder sees that something moves, on any filesystem and
through any runner; and what stays behind is an attempt whose process died.
"""

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from schemas import files
from schemas.errors import FusionError

logger = logging.getLogger(__name__)

FOLDER = "attempts"


def folder(output: str) -> str:
    """Returns the ledger of an output folder."""
    return files.join(output, files.TEMPORARY, FOLDER)


def left(output: str, name: str) -> list[str]:
    """Lists attempts at a file of the output folder that have not ended.

    Their processes died, or are at work now: both look alike at one glance.
    """
    found = files.names(folder(output), ".json")
    return [entry for entry in found if entry.rpartition(".")[0].startswith(f"{name}.")]


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
    found = []
    for entry in files.names(folder(output), ".json"):
        with contextlib.suppress(FileNotFoundError, FusionError):
            found.append(files.read_json(files.join(folder(output), entry)))
    return found


@contextlib.contextmanager
def attempt(
    output: str, name: str, *, beat_s: float, timeout_s: float | None = None
) -> Iterator[None]:
    """Keeps an attempt in the ledger while its block runs.

    Args:
      output: the output folder.
      name: the file that is being made.
      beat_s: seconds between two signs of life.
      timeout_s: seconds that the block may take; then this process ends, as no thread
        can be stopped, and the attempt stays in the ledger. None = no limit.
    """
    path = files.join(folder(output), f"{name}.{uuid.uuid4().hex}.json")
    ended = threading.Event()
    _write(path, name, 0.0)
    beats = threading.Thread(
        target=_beat, args=(path, name, ended, beat_s, timeout_s), daemon=True
    )
    beats.start()
    try:
        yield
    finally:
        ended.set()
        beats.join()
        files.remove_tree(path)


def _write(path: str, name: str, seconds: float) -> None:
    # Who is at work tells people where to look; nothing else reads it.
    told = {"file": name, "host": socket.gethostname(), "pid": os.getpid()}
    files.write_bytes(
        path, files.canonical_json({**told, "seconds": round(seconds, 1)}).encode()
    )


def _beat(
    path: str,
    name: str,
    ended: threading.Event,
    beat_s: float,
    timeout_s: float | None,
) -> None:
    """Renews an attempt till it has ended; ends the process when it takes too long."""
    start = time.monotonic()
    pause = beat_s if timeout_s is None else min(beat_s, timeout_s)
    while not ended.wait(pause):
        seconds = time.monotonic() - start
        if timeout_s is not None and seconds >= timeout_s:
            _end_process(name, timeout_s)
        try:
            _write(path, name, seconds)
        except (OSError, FusionError) as error:
            # A lost sign of life is no loss of work: what cannot be written at all,
            # the work itself will say.
            logger.warning("a sign of life of %s was not written: %s", name, error)


def _end_process(name: str, timeout_s: float) -> None:
    message = (
        f"error: {name} must be done within --element_timeout={timeout_s:g} seconds; it"
        " took longer, so its process ends, as a thread cannot be stopped. The next"
        " attempt has a process of its own, and after --max_slice_attempts of these it"
        " is given up by name. A runner makes them itself; else repeat the command"
    )
    os.write(2, f"{message}\n".encode())
    os._exit(1)
