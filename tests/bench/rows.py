"""Rows of the benchmarks' table: one shape for all, whatever is measured."""

from typing import Any


def at_least(
    aim: float, name: str, value: float, unit: str, **more: Any
) -> dict[str, Any]:
    """Makes a row whose value should reach `aim`; see `_row` for the rest."""
    return _row(name, value, unit, aim, value >= aim, "value: at least", **more)


def at_most(
    aim: float, name: str, value: float, unit: str, **more: Any
) -> dict[str, Any]:
    """Makes a row whose value should stay within `aim`."""
    return _row(name, value, unit, aim, value <= aim, "value: at most", **more)


def ratio_at_least(
    aim: float, name: str, value: float, unit: str, *, against: str, ratio: float
) -> dict[str, Any]:
    """Makes a row whose ratio should reach `aim`."""
    says, met = "ratio: at least", ratio >= aim
    return _row(name, value, unit, aim, met, says, against=against, ratio=ratio)


def ratio_at_most(
    aim: float, name: str, value: float, unit: str, *, against: str, ratio: float
) -> dict[str, Any]:
    """Makes a row whose ratio should stay within `aim`."""
    says, met = "ratio: at most", ratio <= aim
    return _row(name, value, unit, aim, met, says, against=against, ratio=ratio)


def _row(
    name: str,
    value: float,
    unit: str,
    aim: float,
    met: bool,
    direction: str,
    *,
    against: str | None = None,
    ratio: float | None = None,
) -> dict[str, Any]:
    """Makes a row.

    Args:
      name: what was measured.
      value: what came out, in `unit`.
      unit: of `value`.
      aim: what is hoped for, in `unit`, or as a ratio.
      met: whether it came true.
      direction: what the aim is of, and which way it lies; said at `against`'s end.
      against: what `value` is compared with, its figure included, if with anything.
      ratio: of `value` to that.
    """
    words = [against] if against else []
    return {
        "name": name,
        "value": float(value),
        "unit": unit,
        "against": "; ".join([*words, f"aim for the {direction}"]),
        "ratio": ratio,
        "aim": float(aim),
        "met": bool(met),
    }
