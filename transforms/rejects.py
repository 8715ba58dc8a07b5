"""Lists of what was left out of an input file, and to which windows they belong.

A list is JSON Lines and bears no mark of its own. The footer of each windows file that
was cut of the same input says what its list must hold: so the list of other settings,
of a command that was stopped between the two, is not taken for this one's.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from schemas import files
from schemas.documents import Reject

KEY = "rejects"
"""Key of a footer, whose value is the digest of the list."""


def write(path: str, records: Iterable[Reject]) -> str:
    """Writes a list; returns its digest."""
    lines = [json.dumps(dataclasses.asdict(record)) + "\n" for record in records]
    content = "".join(lines).encode()
    files.write_bytes(path, content)
    return _digest(content)


def belongs(content: bytes, footer: Mapping[str, Any]) -> bool:
    """Says whether a list is the one that was written with a windows file."""
    return footer.get(KEY) == _digest(content)


def reason_of(line: bytes) -> str:
    """Returns the reason of a line of a list."""
    return str(json.loads(line)["reason"])


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
