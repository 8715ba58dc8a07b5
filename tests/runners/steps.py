"""Steps for jobs whose workers are other processes, which import them from here."""

import os
import signal
import time
from pathlib import Path

from schemas.errors import SchemaError


def die_once_all_are_there(folder: str, number: int, workers: int) -> None:
    """Says that its process has begun; one of them then dies, the others wait on."""
    if _is_first(folder, workers):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(3600)


def refuse_once_all_are_there(folder: str, number: int, workers: int) -> None:
    """Does so, but one of them refuses its data."""
    if _is_first(folder, workers):
        refuse(7)
    time.sleep(3600)


def sleep_once_all_are_there(folder: str, number: int, workers: int) -> None:
    """Does so, but one of them says that all are there."""
    if _is_first(folder, workers):
        print("all are there", flush=True)
    time.sleep(3600)


def _is_first(folder: str, workers: int) -> bool:
    """Waits till all have begun; says whether this process is the one with least id."""
    Path(folder, str(os.getpid())).touch()
    while len(list(Path(folder).iterdir())) < workers:
        time.sleep(0.05)
    return os.getpid() == min(int(path.name) for path in Path(folder).iterdir())


def refuse(number: int) -> int:
    """Refuses its data as a step of ours does."""
    raise SchemaError(f"part-{number} must hold windows, it holds soup")
