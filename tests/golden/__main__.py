"""Rewrites the golden files; the difference is to be reviewed.

python -m tests.golden

What lies in `kept` was written by earlier versions, and stays.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from tests.golden.cases import Cases

FOLDER = Path(__file__).parent


def read(name: str) -> Any:
    """Reads one golden file."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def spell(case: dict[str, Any]) -> str:
    """Spells a case as JSON, a line for each of its entries, so that diffs are read."""
    entries = (
        f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}"
        for key, value in case.items()
    )
    return "{\n" + ",\n".join(entries) + "\n}\n"


def main() -> None:
    """Writes what today's code makes of every case."""
    with tempfile.TemporaryDirectory() as folder:
        for name, make in Cases(Path(folder)).all.items():
            (FOLDER / f"{name}.json").write_text(spell(make()))


if __name__ == "__main__":
    main()
