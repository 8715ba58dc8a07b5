"""The part of docs/results.md that tells what Table 7 in the small comes to."""

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from examples import comparison
from examples.seeds import tell_rates
from pipelines.branches import ENSEMBLE, MERGE, SOURCE, UNTOUCHED
from train import evaluate

ALL, AVERAGE = evaluate.ALL, "average of domains"
MERGED = "merge:linear"
"""The merge that stands for all where one is asked for: the plain mean of weights."""

_ENSEMBLES, _MERGES, _SOURCES = (f"{head[:-1]}:" for head in (ENSEMBLE, MERGE, SOURCE))
_SAYS = {
    UNTOUCHED: "base",
    "fused": "fused",
    "clm": "base + CLM on fusion's rows",
}
_KINDS = (
    (_SOURCES, "expert: {}"),
    (_ENSEMBLES, "ensemble of probabilities"),
    (_MERGES, "merge: {}"),
)

Seeds = Mapping[str, Mapping[str, Any]]
"""What a run came to, by seed: `models`, `bytes`, `chosen`."""


def says(name: str) -> str:
    """Says what a model of the table is."""
    for head, words in _KINDS:
        if name.startswith(head):
            return words.format(name.removeprefix(head))
    return _SAYS.get(name, name)


def rows(seeds: Seeds) -> list[str]:
    """Lists the models in the table's order: the paper's, the control before fused."""
    names = list(next(iter(seeds.values()))["models"])
    order = (UNTOUCHED, _SOURCES, _ENSEMBLES, _MERGES, "clm", "fused")
    return [name for head in order for name in names if name.startswith(head)]


def costs(seeds: Seeds, name: str, column: str) -> list[float]:
    """Returns a model's bits per byte in a column, a figure a seed."""
    found = [seed["models"][name] for seed in seeds.values()]
    if column != AVERAGE:
        return [bits[column] for bits in found]
    return [statistics.fmean(v for d, v in bits.items() if d != ALL) for bits in found]


def table(seeds: Seeds) -> str:
    """Writes bits per byte by model and domain; the least is bold, experts apart."""
    sizes = next(iter(seeds.values()))["bytes"]
    columns, names = [*sizes, ALL, AVERAGE], rows(seeds)
    made = [name for name in names if not name.startswith(_SOURCES)]

    def mean(name: str, column: str) -> float:
        return statistics.fmean(costs(seeds, name, column))

    least = {c: min(mean(name, c) for name in made) for c in columns}

    def cell(name: str, column: str) -> str:
        told = comparison.spread(costs(seeds, name, column))
        best = name in made and mean(name, column) == least[column]
        return f"**{told}**" if best else told

    lines = [[says(name), *(cell(name, c) for c in columns)] for name in names]
    told = [*(f"{n:,}" for n in (*sizes.values(), sum(sizes.values()))), ""]
    return comparison.table(
        ["bits per byte", *columns], [*lines, ["bytes that count", *told]]
    )


def _best(seeds: Seeds, head: str) -> list[float]:
    """Returns in each seed the least of the models of a kind, by average of domains."""
    names = [name for name in rows(seeds) if name.startswith(head)]
    return [
        min(each) for each in zip(*(_averages(seeds, n) for n in names), strict=True)
    ]


def _averages(seeds: Seeds, name: str) -> list[float]:
    return costs(seeds, name, AVERAGE)


def _ensemble(seeds: Seeds) -> list[float]:
    return _best(seeds, _ENSEMBLES)


def orders(seeds: Seeds) -> Iterator[str]:
    """Says which of the orders that were expected hold, by the average of domains."""
    fused, merged = _averages(seeds, "fused"), _averages(seeds, MERGED)
    expert, base = _best(seeds, _SOURCES), _averages(seeds, UNTOUCHED)
    words = {
        "fused": fused,
        "the linear merge": merged,
        "the best expert": expert,
        "the ensemble": _ensemble(seeds),
        "the base": base,
    }
    for (first, low), (second, high) in itertools.pairwise(words.items()):
        yield _below(first, low, second, high)
    clm = _averages(seeds, "clm")
    control = "CLM on the same rows"
    yield _below("fused", fused, control, clm)
    for name in ("the linear merge", "the best expert", "the base"):
        yield _below(control, clm, name, words[name])


def _below(first: str, low: Sequence[float], second: str, high: Sequence[float]) -> str:
    """Says whether one is below the other in the mean, and in how many seeds."""
    holds = statistics.fmean(low) < statistics.fmean(high)
    gaps = [one - other for one, other in zip(low, high, strict=True)]
    seeds = sum(gap < 0 for gap in gaps)
    return (
        f"{'yes' if holds else 'NO'}: {first} ({statistics.fmean(low):.4f}) is"
        f" {'' if holds else 'not '}below {second} ({statistics.fmean(high):.4f});"
        f" in {seeds} of {len(gaps)} seeds, difference"
        f" {comparison.spread(gaps, '+.4f')}."
    )


def merges(seeds: Seeds) -> Iterator[str]:
    """Says how many merges are below what else there is, by their means."""
    names = [name for name in rows(seeds) if name.startswith(_MERGES)]
    mean = {name: statistics.fmean(_averages(seeds, name)) for name in names}
    for words, bounds in (
        ("fused", _averages(seeds, "fused")),
        ("CLM on the same rows", _averages(seeds, "clm")),
        ("the best expert", _best(seeds, _SOURCES)),
        ("the ensemble", _ensemble(seeds)),
        ("the base", _averages(seeds, UNTOUCHED)),
    ):
        bound = statistics.fmean(bounds)
        under = [says(n).partition(": ")[2] for n in names if mean[n] < bound]
        told = f": {', '.join(under)}" if 0 < len(under) < len(names) else ""
        yield f"{len(under)} of {len(names)} merges are below {words}{told}."


def experts(seeds: Seeds) -> Iterator[str]:
    """Says of each expert where it is below the base, by the means."""
    for name in rows(seeds):
        if not name.startswith(_SOURCES):
            continue
        domains = list(next(iter(seeds.values()))["bytes"])
        gaps = {
            d: statistics.fmean(costs(seeds, name, d))
            - statistics.fmean(costs(seeds, UNTOUCHED, d))
            for d in domains
        }
        told = ", ".join(f"{gap:+.4f} on {d}" for d, gap in gaps.items())
        yield f"The expert of {name.removeprefix(_SOURCES)} against the base: {told}."


def page(found: Mapping[str, Any]) -> str:
    """Writes the whole part; `found` is what the runs of all seeds came to."""
    seeds: Seeds = found["seeds"]

    def listed(lines: Iterator[str]) -> str:
        return "\n".join(f"- {line}" for line in lines)

    return "\n\n".join(
        [
            f"Seeds {', '.join(seeds)}; mean, and least to greatest over seeds.",
            table(seeds),
            "The order that the paper found, by the average of domains:",
            listed(orders(seeds)),
            listed(experts(seeds)),
            listed(merges(seeds)),
            "Learning rates:",
            listed(tell_rates({s: found["chosen"] for s, found in seeds.items()})),
            f"{comparison.made_line(found['run'])}.",
        ]
    )
