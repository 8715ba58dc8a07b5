"""Outputs of other people's code, which ours must equal.

They lie in `tests/golden/reference`; FUSEBEAM_REFERENCE names another folder of the
same form. What is missing there fails: nothing is skipped.
"""

import functools
import gzip
import json
import os
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "golden" / "reference"


def cases(name: str, part: str | None = None) -> list[Any]:
    """Reads the cases of `{name}.json.gz`, or of one part of it.

    Raises:
      FileNotFoundError: if the folder has no such file.
      ValueError: if there is no case.
    """
    path = Path(os.environ.get("FUSEBEAM_REFERENCE") or FOLDER) / f"{name}.json.gz"
    content = _read(path)
    found = content if part is None else content[part]
    if not isinstance(found, list) or not found:
        raise ValueError(f"{path} must list at least one case ({part or 'in all'})")
    return found


@functools.cache
def _read(path: Path) -> Any:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)
