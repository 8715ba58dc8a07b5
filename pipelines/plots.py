"""Draws lines as SVG, to be read on light and dark pages.

Nothing but text is made: a plot of some dozen points needs no library.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from xml.sax import saxutils

Line = Sequence[tuple[float, float]]
"""Points (x, y) of a line, from left to right."""

_WIDTH, _HEIGHT = 380, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 34, 44
_KEY = 26  # pixels below the panels for the names of the lines
_COLORS = ("#3b82f6", "#e8710a", "#16a34a", "#c026d3", "#dc2626", "#0891b2")
_STYLE = (
    "text{font:12px sans-serif;fill:#6e6e6e}.t{font-weight:bold}"
    ".g{stroke:#8884;fill:none}.a{stroke:#888;fill:none}"
    "@media(prefers-color-scheme:dark){text{fill:#ccc}}"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """One plot.

    Attributes:
      title: what is drawn, with its unit.
      below: what stands along the lower edge, with its unit.
      lines: the lines by name.
      is_log: whether heights are drawn by their logarithms.
      evenly: whether places are drawn as they are and lines without dots, else places
        by their logarithms.
      closely: whether heights begin near the least; else they begin at 0.
    """

    title: str
    below: str
    lines: Mapping[str, Line]
    is_log: bool
    evenly: bool = False
    closely: bool = False


def draw(panels: Sequence[Panel]) -> str:
    """Draws panels side by side, and one key below them.

    Raises:
      ValueError: if there is no point to draw.
    """
    if not any(line for panel in panels for line in panel.lines.values()):
        raise ValueError("a plot must have a point at least, got none")
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    colors = {n: _COLORS[i % len(_COLORS)] for i, n in enumerate(names)}
    width, height = _WIDTH * len(panels), _HEIGHT + _KEY
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        f' width="{width}" height="{height}" role="img">',
        f"<style>{_STYLE}</style>",
        f"<title>{saxutils.escape('; '.join(p.title for p in panels))}</title>",
    ]
    for place, panel in enumerate(panels):
        inside = "\n".join(_panel(panel, colors))
        parts.append(f'<g transform="translate({place * _WIDTH},0)">\n{inside}\n</g>')
    step = width / (len(names) + 0.5)
    for place, name in enumerate(names):
        x, y = 20 + place * step, _HEIGHT + 12
        parts.append(
            f'<rect x="{x:.0f}" y="{y - 9}" width="14" height="9"'
            f"{_fill(colors[name])}/>"
        )
        parts.append(_text(x + 20, y, name, "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _fill(color: str) -> str:
    return f' fill="{color}"'


def _panel(panel: Panel, colors: Mapping[str, str]) -> list[str]:
    across, marks = _across(panel)
    up, ticks = _up(panel)
    parts = [_text(_LEFT, 20, panel.title, "start", ' class="t"')]
    right, floor = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    for tick in ticks:
        parts.append(f'<path class="g" d="M{_LEFT} {up(tick):.1f}H{right}"/>')
        parts.append(_text(_LEFT - 6, up(tick) + 4, f"{tick:,g}", "end"))
    for x in marks:
        parts.append(f'<path class="g" d="M{across(x):.1f} {_TOP}V{floor}"/>')
        parts.append(_text(across(x), floor + 17, f"{x:,g}", "middle"))
    parts.append(f'<path class="a" d="M{_LEFT} {_TOP}V{floor}H{right}"/>')
    parts.append(_text((_LEFT + right) / 2, floor + 36, panel.below, "middle"))
    for name, line in panel.lines.items():
        drawn = [(across(x), up(y)) for x, y in line]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in drawn)
        parts.append(
            f'<path d="M{path}" fill="none" stroke="{colors[name]}" stroke-width="2"/>'
        )
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"{_fill(colors[name])}/>'
            for x, y in ([] if panel.evenly else drawn)
        ]
    return parts


def _across(panel: Panel) -> tuple[Callable[[float], float], list[float]]:
    """Returns where places are drawn, and the places that are marked."""
    xs = sorted({x for line in panel.lines.values() for x, _ in line})
    width = _WIDTH - _LEFT - _RIGHT

    def evenly(x: float) -> float:
        return _LEFT + (x - xs[0]) / ((xs[-1] - xs[0]) or 1.0) * width

    def by_logarithm(x: float) -> float:
        span = math.log(xs[-1] / xs[0]) or 1.0
        return _LEFT + math.log(x / xs[0]) / span * width

    if not panel.evenly:
        return by_logarithm, xs
    return evenly, [x for x in _ticks(0.0, xs[-1]) if xs[0] <= x <= xs[-1]]


def _up(panel: Panel) -> tuple[Callable[[float], float], list[float]]:
    """Returns where heights are drawn, and the heights that are marked."""
    heights = [y for line in panel.lines.values() for _, y in line]
    low, high = _bounds(heights, is_log=panel.is_log, closely=panel.closely)

    def up(y: float) -> float:
        share = (
            math.log(y / low) / math.log(high / low)
            if panel.is_log
            else (y - low) / (high - low)
        )
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    if not panel.is_log:
        return up, _ticks(low, high)
    return up, [low * 10.0**n for n in range(round(math.log10(high / low)) + 1)]


def _bounds(
    heights: Sequence[float], *, is_log: bool, closely: bool
) -> tuple[float, float]:
    """Returns round numbers below and above all heights."""
    if is_log:
        low = 10.0 ** math.floor(math.log10(min(heights)))
        high = 10.0 ** math.ceil(math.log10(max(heights)))
        return low, max(high, 10 * low)
    if closely:
        step = _step(max(heights) - min(heights) or abs(max(heights)) or 1.0)
        low = step * math.floor(min(heights) / step)
        return low, max(step * math.ceil(max(heights) / step), low + step)
    step = _step(max(heights))
    return 0.0, step * math.ceil(max(heights) / step * 1.05)


def _ticks(low: float, high: float) -> list[float]:
    """Returns round numbers from one to the other, both round themselves or 0."""
    step = _step(high - low)
    return [low + step * n for n in range(math.floor((high - low) / step + 1e-9) + 1)]


def _step(high: float) -> float:
    """Returns a round distance of which some five reach up to `high`."""
    unit = 10.0 ** math.floor(math.log10(high / 5))
    return next(unit * n for n in (1, 2, 5, 10) if unit * n * 6 >= high)


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    said = saxutils.escape(text)
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{said}</text>'
