"""Runs benchmarks, prints one table and writes the figures into build/bench.json.

    python -m tests.bench [NAME ...] [--page]

Each bench_*.py has `run()`, which measures and returns rows of `tests.bench.rows`:
{"name", "value", "unit", "against", "ratio", "aim", "met"}. `aim` is a number; of what,
and which way it lies, stands at the end of `against`. Nothing asserts a time. `--page`
puts them into docs/results.md, where rows of other names stay as they are. A benchmark
may have `sections()`, too: texts that it measures, by the name of their part there.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from examples import comparison, results

HERE = Path(__file__).parent
OUTPUT = Path("build/bench.json")
PAGE = "docs/results.md"
HEADS = ("name", "value", "unit", "ratio", "against", "aim", "met")


def main(argv: list[str]) -> None:
    """Runs the named benchmarks, or all."""
    known = sorted(p.stem.removeprefix("bench_") for p in HERE.glob("bench_*.py"))
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(known)}; all if none")
    parser.add_argument("--page", action="store_true", help=f"write into {PAGE}")
    chosen = parser.parse_args(argv)
    if unknown := set(chosen.names) - set(known):
        parser.error(f"names must be of {', '.join(known)}, got {sorted(unknown)}")
    measured: list[dict[str, Any]] = []
    told: dict[str, str] = {}
    for name in [name for name in known if name in chosen.names or not chosen.names]:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        module = importlib.import_module(f"tests.bench.bench_{name}")
        measured += module.run()
        if hasattr(module, "sections"):
            told |= module.sections()
        OUTPUT.parent.mkdir(exist_ok=True)
        OUTPUT.write_text(json.dumps(measured, indent=1) + "\n")
    print("\n\n".join([table(measured), *told.values()]))
    if chosen.page:
        before = Path(PAGE).read_text()
        results.write_page(PAGE, page(before, measured, chosen.names), "bench")
        made = comparison.made_line(results.about(chosen.names, "tests.bench"))
        for part, text in told.items():
            results.write_page(PAGE, f"{text}\n\n{made}", part)


def page(before: str, measured: list[dict[str, Any]], names: list[str]) -> str:
    """Writes the page's table with new rows, in the places of those of their names.

    Below stands where they were made, after where the others were.
    """
    first, last = results.markers("bench")
    old = before.partition(first)[2].partition(last)[0].splitlines()
    lines = [line.strip("| ").split(" | ") for line in old if line.startswith("| ")]
    known = {cells[0]: cells for cells in lines[2:]}  # below the heads and the rule
    for row in measured:
        cells = [_cell(row[head]).replace("NO", "**no**") for head in HEADS]
        known[cells[0]] = cells
    made = comparison.made_line(results.about(names, "tests.bench"))
    whose = made.partition(" on ")[0]
    others = [line for line in old if line.startswith("- ") and names]
    lasting = [line for line in others if line.partition(" on ")[0] != whose]
    ending = "\n".join([*lasting, made])
    return f"{comparison.table(HEADS, list(known.values()))}\n\n{ending}"


def table(rows: list[dict[str, Any]]) -> str:
    """Writes the rows as one aligned table."""
    cells = [HEADS, *([_cell(row[h]) for h in HEADS] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(HEADS))]
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
