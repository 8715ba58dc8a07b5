"""The part of docs/results.md that tells what searches for merges come to."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from examples import comparison
from pipelines import plots, search_page, searching
from train.search.trials import Trial

_ARMS = (*searching.BASELINES, searching.EVOLUTION)


def plot(found: Mapping[str, Mapping[str, Sequence[Trial]]]) -> str:
    """Draws the first search of each method, by method and arm."""
    panels = [
        search_page.panel(arms, f"{name}: least J") for name, arms in found.items()
    ]
    return plots.draw(panels)


def page(found: Mapping[str, Any]) -> str:
    """Writes the whole part; `found` is what all searches came to."""
    parts = [_over_seeds(found["searches"]), *_orders(found["searches"])]
    for method, by_seed in found["searches"].items():
        first = next(iter(by_seed.values()))
        parts += [f"`{method}`, the first seed:", search_page.table(first)]
    parts.append(f"{comparison.made_line(found['run'])}.")
    return "\n\n".join(parts)


def _objectives(by_seed: Mapping[str, Any], arm: str, split: str) -> list[float]:
    """Returns the objective of an arm's best trial, in the seeds that have the arm."""
    return [
        result["arms"][arm]["best"][split]["objective"]
        for result in by_seed.values()
        if arm in result["arms"] and result["arms"][arm]["best"]
    ]


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "dead"
    mean = f"{statistics.fmean(values):.4f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):.4f} to {max(values):.4f})"


def _over_seeds(searches: Mapping[str, Any]) -> str:
    """Writes J on the report split: a line an arm, a column a method."""
    first = next(iter(next(iter(searches.values())).values()))
    rows = []
    for name, row in first["models"].items():
        rows.append([name, *([f"{row['report']['objective']:.4f}"] * len(searches))])
    for arm in _ARMS:
        cells = [_cell(_objectives(one, arm, "report")) for one in searches.values()]
        rows.append([search_page.SAYS[arm], *cells])
    return comparison.table(["J on the report split", *searches], rows)


def _orders(searches: Mapping[str, Any]) -> list[str]:
    """Says where CMA-ES is below its baselines, on both splits."""
    lines = []
    for split in ("search", "report"):
        for baseline in searching.BASELINES:
            below = [
                method
                for method, one in searches.items()
                if _mean(one, searching.EVOLUTION, split) < _mean(one, baseline, split)
            ]
            lines.append(
                f"- On the {split} split CMA-ES is below"
                f" {search_page.SAYS[baseline]} with {len(below)} of"
                f" {len(searches)} methods{': ' if below else ''}{', '.join(below)}."
            )
    return ["\n".join(lines)]


def _mean(by_seed: Mapping[str, Any], arm: str, split: str) -> float:
    values = _objectives(by_seed, arm, split)
    return statistics.fmean(values) if values else float("inf")
