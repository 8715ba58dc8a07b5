"""Runs every benchmark, prints one table and writes build/bench.json.

Each bench_*.py has `run()`, which measures and returns rows of `tests.bench.rows`:
{"name", "value", "unit", "against", "ratio", "aim", "met"}. `aim` is a number; of what,
and which way it lies, stands at the end of `against`. Nothing asserts a time.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OUTPUT = Path("build/bench.json")


def main(names: list[str]) -> None:
    """Runs the named benchmarks, or all."""
    modules = sorted(path.stem for path in HERE.glob("bench_*.py"))
    chosen = [m for m in modules if not names or m.removeprefix("bench_") in names]
    rows: list[dict[str, Any]] = []
    for module in chosen:
        print(f"measuring {module} ...", file=sys.stderr, flush=True)
        rows += importlib.import_module(f"tests.bench.{module}").run()
    print(table(rows))
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(rows, indent=1) + "\n")


def table(rows: list[dict[str, Any]]) -> str:
    """Writes the rows as one aligned table."""
    heads = ("name", "value", "unit", "ratio", "against", "aim", "met")
    cells = [heads, *([_cell(row[h]) for h in heads] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "-" if value is None else str(value)


if __name__ == "__main__":
    main(sys.argv[1:])
