"""The page and the plot of what `tests.bench.scale` measured."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from examples import results
from pipelines import plots
from pipelines.plots import Panel

PAGE = "docs/results.md"
PLOT = "docs/scale.svg"
PART = "scale"
STAGES = ("prepare", "score target", "score source", "fuse")
LAUNCHES = (
    "prepare",
    "do all slices",
    "skip all, describe",
    "one of an array",
    "whole already",
)
_MB = 1e6

Figure = Mapping[str, Any]
Points = Mapping[float, Mapping[str, Figure]]
"""By size of the point and by step."""


def write(figures: Sequence[Figure]) -> None:
    """Writes what was measured into the page, and draws the plot.

    Points of which a step is missing are left out.
    """
    corpora = points(figures, "factor", STAGES)
    slices = points(figures, "documents", LAUNCHES)
    if not corpora:
        raise SystemExit("error: a point must be measured whole to be shown, none is")
    Path(PLOT).write_text(plots.draw(list(_panels(corpora))))
    results.write_page(PAGE, page(corpora, slices), PART)


def points(figures: Sequence[Figure], of: str, steps: Sequence[str]) -> Points:
    """Returns the points that are whole, by their size."""
    found: dict[float, dict[str, Figure]] = {}
    for figure in figures:
        if figure["shape"][of] is not None:
            found.setdefault(figure["shape"][of], {})[figure["step"]] = figure
    return {
        size: found[size] for size in sorted(found) if found[size].keys() >= set(steps)
    }


def page(corpora: Points, slices: Points) -> str:
    """Writes the tables, each with a sentence that is computed."""
    parts = [
        "![Processor seconds and memory against the size of the corpus](scale.svg)",
        "### Time and memory against the corpus",
        table(_stage_rows(corpora)),
        verdict(corpora),
    ]
    foretold = [steps for steps in corpora.values() if "plan" in steps]
    if foretold:
        title = f"### What `fusebeam plan` had said of {_text(foretold[-1]):,.2f} MB"
        parts += [title, table(_plan_rows(foretold[-1]))]
    if slices:
        parts += ["### Many slices", table(_slices_rows(slices))]
    return "\n\n".join(parts)


def table(rows: Iterable[Sequence[str]]) -> str:
    """Writes rows as Markdown, numbers to the right."""
    head, *body = rows
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *body))


def _stage_rows(corpora: Points) -> Iterator[list[str]]:
    head = ["text", "target tokens", "slices"]
    head += [f"{stage}: s" for stage in STAGES] + [f"{stage}: MB" for stage in STAGES]
    yield head
    for steps in corpora.values():
        scored = steps["score target"]
        yield [
            f"{_text(steps):,.2f} MB",
            f"{scored['counts']['tokens']:,}",
            f"{scored['files']:,}",
            *(f"{steps[stage]['cpu_s']:,.1f}" for stage in STAGES),
            *(f"{steps[stage]['peak_bytes'] / _MB:,.0f}" for stage in STAGES),
        ]


def _text(steps: Mapping[str, Figure]) -> float:
    return float(steps["prepare"]["text_bytes"] / _MB)


def slopes(corpora: Points, stage: str) -> list[float]:
    """Returns what a further MB took, in seconds, between each size and the next."""
    found = [(_text(steps), steps[stage]["cpu_s"]) for steps in corpora.values()]
    return [
        (after[1] - before[1]) / (after[0] - before[0])
        for before, after in itertools.pairwise(found)
    ]


def verdict(corpora: Points) -> str:
    """Says how straight the lines are."""
    if len(corpora) < 2:
        return "One size alone says nothing of growth."
    lines = ["Per further MB of text, from each size to the next:", ""]
    for stage in STAGES:
        each = ", ".join(f"{slope:.2f}" for slope in slopes(corpora, stage))
        first, *_, last = [
            steps[stage]["peak_bytes"] / _MB for steps in corpora.values()
        ]
        lines.append(
            f"- {stage}: {each} s; memory went from {first:,.0f} to {last:,.0f} MB."
        )
    return "\n".join(lines)


def _plan_rows(steps: Mapping[str, Figure]) -> Iterator[list[str]]:
    yield ["what", "foretold", "came", "foretold / came"]
    for what, told, came in compared(steps):
        yield [what, f"{told:,.0f}", f"{came:,.0f}", f"{told / came:.3f}"]


def compared(steps: Mapping[str, Figure]) -> Iterator[tuple[str, float, float]]:
    """Yields what the planner foretold of a point, and what came."""
    told = steps["plan"]["foretold"]
    stages = {stage["name"]: stage for stage in told["stages"]}
    scored = [name for name in stages if name.startswith("score ")]
    made = {
        "prepare": "prepare",
        "fuse": "fuse",
        **dict(zip(scored, ("score target", "score source"), strict=True)),
    }
    volume, windows = told["volume"], steps["prepare"]["counts"]["windows"]
    yield "windows", volume["windows"], windows
    yield "slices", volume["slices"], steps["score target"]["files"]
    for name, step in made.items():
        if name != "prepare":
            came = steps[step]["counts"]["tokens"]
            yield f"{step}: tokens", stages[name]["tokens"], came
        yield f"{step}: bytes", stages[name]["bytes"], steps[step]["bytes"]
    for name in ("prepare", "fuse"):
        seconds = stages[name]["cpu_hours"] * 3600
        yield f"{name}: processor seconds", seconds, steps[name]["cpu_s"]


def _slices_rows(slices: Points) -> Iterator[list[str]]:
    yield ["slices", *(f"{s}: {u}" for s in LAUNCHES for u in ("s", "MB"))]
    for number, steps in slices.items():
        figures = [steps[step] for step in LAUNCHES]
        cells = [
            (f"{f['cpu_s']:,.1f}", f"{f['peak_bytes'] / _MB:,.0f}") for f in figures
        ]
        yield [f"{number:,}", *itertools.chain(*cells)]


def _panels(corpora: Points) -> Iterator[Panel]:
    def lines(field: str, unit: float) -> dict[str, list[tuple[float, float]]]:
        return {
            stage: [(f, steps[stage][field] / unit) for f, steps in corpora.items()]
            for stage in STAGES
        }

    below = "size of the corpus, in corpora of the demo"
    yield Panel(
        title="processor seconds",
        below=below,
        lines=lines("cpu_s", 1.0),
        is_log=True,
    )
    yield Panel(
        title="peak memory, MB",
        below=below,
        lines=lines("peak_bytes", _MB),
        is_log=False,
    )
