"""Steps for jobs whose workers are other processes, which import them from here."""

import os
import signal
import time
from pathlib import Path

from schemas.errors import SchemaError


def die_once_all_are_there(folder: str, number: int, workers: int) -> None:
    """Says that its process has begun; one of them then dies, the others wait on."""
    Path(folder, str(os.getpid())).touch()
    while len(list(Path(folder).iterdir())) < workers:
        time.sleep(0.05)
    if os.getpid() == min(int(path.name) for path in Path(folder).iterdir()):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(3600)


def refuse(number: int) -> int:
    """Refuses its data as a step of ours does."""
    raise SchemaError(f"part-{number} must hold windows, it holds soup")
