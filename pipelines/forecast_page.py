"""A forecast as text: its stages, its sizes, and what it rests on."""

import math
from collections.abc import Sequence

from pipelines.figures import Figure
from pipelines.forecast import Forecast, Size
from transforms.functional.budget import Stage

_BYTES = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_PRICELESS = (
    "Prices are given by --price_gpu_hour, --price_cpu_hour and --price_gb_month."
)
_REST = (
    "Estimates. Near-duplicates, rejects and evaluation are left out; attention is left"
    " out of FLOP.\nCheckpoints are counted at their most; files of all stages as kept."
    " Other sizes than the corpus's\nare this corpus, its files that much longer or"
    " shorter."
)


def page(found: Forecast) -> str:
    """Writes a forecast: the first size by stages, all sizes, and the figures."""
    first = found.sizes[0]
    title = (
        "The corpus as it is" if first.is_corpus else f"{power(first.tokens)} tokens"
    )
    priced = first.cost is not None or first.cost_month is not None
    return "\n".join(
        [
            f"{title}, by stages",
            _table(_stage_rows(first)),
            "",
            "All sizes" if len(found.sizes) > 1 else "In all",
            _table(_size_rows(found.sizes)),
            "",
            "What this rests on",
            _table(_figure_rows(found.figures), left=(0, 2, 3)),
            "",
            _REST if priced else f"{_REST} {_PRICELESS}",
        ]
    )


def _stage_rows(size: Size) -> list[list[str]]:
    rows = [["stage", "tokens", "bytes", "B/token", "core hours", "GPU hours"]]
    for stage in size.stages:
        tokens = stage.tokens
        each = "" if not tokens or stage.name == "train" else stage.bytes / tokens
        rows.append(
            [
                stage.name,
                "" if tokens is None else power(tokens),
                amount(stage.bytes),
                each if isinstance(each, str) else f"{each:.1f}",
                _hours(stage.cpu_hours),
                _hours(stage.gpu_hours),
            ]
        )
    return rows


def _size_rows(sizes: Sequence[Size]) -> list[list[str]]:
    head = ["tokens", "text", "slices", "windows", "scores", "fused", "train"]
    rows = [[*head, "core hours", "GPU hours", "cost", "a month"]]
    for size in sizes:
        rows.append(
            [
                power(size.tokens) + " (corpus)" * size.is_corpus,
                amount(size.corpus_bytes),
                f"{size.volume.slices:,}",
                *(amount(_bytes(size, n)) for n in ("prepare", "score", "fuse")),
                amount(_bytes(size, "train") + _bytes(size, "merge")),
                _hours(sum(stage.cpu_hours for stage in size.stages)),
                _hours(sum(stage.gpu_hours for stage in size.stages)),
                _money(size.cost),
                _money(size.cost_month),
            ]
        )
    unpriced = {i for i in (9, 10) if all(row[i] == "" for row in rows[1:])}
    return [[cell for i, cell in enumerate(r) if i not in unpriced] for r in rows]


def _bytes(size: Size, command: str) -> float:
    """Returns what the stages of one command write."""
    return sum(s.bytes for s in size.stages if _command(s) == command)


def _command(stage: Stage) -> str:
    return stage.name.split()[0]


def _figure_rows(figures: Sequence[Figure]) -> list[list[str]]:
    rows = [["figure", "value", "unit", "source"]]
    return rows + [[f.name, _number(f.value), f.unit, f.source] for f in figures]


def _table(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Lays rows out in columns; numbers stand to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def power(count: float) -> str:
    """Writes a count: in full where it is short, else as powers of ten.

    Example:
      >>> power(1e12), power(45_200_000), power(1234)
      ('1e12', '4.52e7', '1,234')
    """
    if count < 1e5:
        return f"{count:,.0f}"
    digits, exponent = f"{count:.2e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def amount(count: float) -> str:
    """Writes bytes in decimal units, three digits.

    Example:
      >>> amount(999.7), amount(41_700_000_000), amount(5.25e18)
      ('1 kB', '41.7 GB', '5.25 EB')
    """
    rank = 0
    while float(f"{count:.3g}") >= 1000 and rank < len(_BYTES) - 1:
        count, rank = count / 1000, rank + 1
    return f"{float(f'{count:.3g}'):g} {_BYTES[rank]}"


def _hours(count: float) -> str:
    if count == 0:
        return "-"
    return _number(count) if count >= 0.001 else "< 0.001"


def _number(count: float) -> str:
    """Writes three digits, or a whole number where it is longer."""
    if count >= 1e7:
        return power(count)
    if count >= 1000 or count == int(count):
        return f"{count:,.0f}"
    return f"{count:.{max(0, 2 - math.floor(math.log10(count)))}f}"


def _money(count: float | None) -> str:
    return "" if count is None else f"{count:,.2f}"
