"""What attempts leave in the ledger whose process is not this one."""

from schemas import files
from transforms import ledger


def leave_dead(out: str, name: str, number: int = 0, seconds: float = 0.0) -> str:
    """Leaves what an attempt leaves whose process died on this machine."""
    # Another process had this one's id before.
    told = {"machine": ledger._machine(), "started": -1}
    return _leave(out, name, number, seconds, told)


def leave_far(out: str, name: str, number: int = 0, beat_s: float = 0.1) -> str:
    """Leaves what an attempt leaves of a process on another machine."""
    told = {"machine": "another", "started": 7, "beat_s": beat_s}
    return _leave(out, name, number, 0.0, told)


def _leave(
    out: str, name: str, number: int, seconds: float, told: dict[str, object]
) -> str:
    path = files.join(ledger.folder(out), f"{name}.{number:032x}.json")
    whole = {"file": name, "host": "far", "pid": 1, "seconds": seconds, **told}
    files.write_bytes(path, files.canonical_json(whole).encode())
    return path
