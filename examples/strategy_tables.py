"""The tables of `examples.strategies`, computed from the figures of results.json."""

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from examples import comparison
from examples.comparison import Seeds
from examples.information import Figures
from transforms.functional import coverage

SPANS = "spans"
Pairs = Mapping[str, Mapping[str, Any]]
"""By "source>target": what `examples.meetings` measured."""

SPEAKING = [coverage.CLASSES[code] for code in sorted(coverage.SPEAKING)]
SILENT = [name for name in coverage.CLASSES.values() if name not in SPEAKING]


def figures(pairs: Pairs) -> dict[str, dict[str, Figures]]:
    """Returns the figures of each pair by strategy."""
    return {
        name: {strategy: Figures(**had) for strategy, had in pair["strategies"].items()}
        for name, pair in pairs.items()
    }


def strategies_of(pairs: Pairs) -> list[str]:
    """Lists the strategies that every pair has, in the order of the first pair."""
    each = [list(pair["strategies"]) for pair in pairs.values()]
    return [name for name in each[0] if all(name in names for names in each)]


def share(value: float) -> str:
    """Writes a share in percent."""
    return "" if math.isnan(value) else f"{value:.1%}"


def mean(values: Sequence[float]) -> float:
    """Returns the mean of what is known, NaN where nothing is."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan


def shown(pair: str) -> str:
    """Writes a pair as people read it."""
    return pair.replace(">", " → ")


def kept_part(pairs: Pairs) -> str:
    """Writes how much of what a source knows each strategy keeps, and where."""
    names, found = strategies_of(pairs), figures(pairs)
    rows = [
        [
            shown(pair),
            *(share(each[name].kept) for name in names),
            *(share(each[name].coverage) for name in names),
        ]
        for pair, each in found.items()
    ]
    means = [
        mean([getattr(each[name], of) for each in found.values()])
        for of in ("kept", "coverage")
        for name in names
    ]
    rows.append(["mean", *map(share, means)])
    heads = ["source → target", *names, *(f"{name}, used" for name in names)]
    lines = [comparison.table(heads, rows), ""]
    for name in names:
        if name == SPANS or SPANS not in names:
            continue
        gaps = [each[SPANS].kept - each[name].kept for each in found.values()]
        known = [gap for gap in gaps if not math.isnan(gap)]
        more = sum(gap > 0 for gap in known)
        lines.append(
            f"- {SPANS} keeps more than {name} in {more} of {len(known)} pairs."
        )
        lines += [
            exception(pair, name, each[name])
            for pair, each in found.items()
            if each[name].kept > each[SPANS].kept
        ]
    return "\n".join(lines)


def exception(pair: str, name: str, had: Figures) -> str:
    """Says where a strategy that keeps more than there is has it from."""
    left_bytes = had.n_bytes - had.used_bytes
    parts = [
        f"  - {shown(pair)}: where {name} speaks, its rows give {had.aligned:.3f} bits"
        f" per byte and the source itself {had.own_there:.3f}"
    ]
    if left_bytes:
        source = (had.source_bits - had.source_bits_there) / left_bytes
        frequencies = (had.unigram_bits - had.unigram_bits_there) / left_bytes
        parts.append(
            f"where it is silent, the source gives {source:.3f} and the frequencies"
            f" {frequencies:.3f}"
        )
    return "; ".join(parts) + "."


def bits_part(pairs: Pairs) -> str:
    """Writes what the rows that are used cost, beside the source's own there."""
    names, found = strategies_of(pairs), figures(pairs)
    rows = []
    for pair, each in found.items():
        cells = (
            [f"{each[name].aligned:.3f}", f"{each[name].own_there:.3f}"]
            for name in names
        )
        own = next(iter(each.values())).own
        rows.append([shown(pair), f"{own:.3f}", *itertools.chain(*cells)])
    heads = itertools.chain(*([name, "own there"] for name in names))
    return comparison.table(["bits per byte", "own, all", *heads], rows)


def reasons_part(pairs: Pairs) -> str:
    """Writes how positions are covered by spans, or why not, and by no strategy."""
    rows = []
    unused: Counter[str] = Counter()
    positions = 0
    for pair, each in pairs.items():
        size = sum(each["classes"].values())
        positions += size
        unused.update(each["unused"])
        counts = [each["classes"][name] for name in (*SPEAKING, *SILENT)]
        none = sum(each["unused"].values())
        rows.append([shown(pair), *(share(n / size) for n in (*counts, none))])
    heads = ["source → target", *SPEAKING, *SILENT, "no strategy"]
    told = ", ".join(f"{name} {n:,}" for name, n in unused.most_common() if n)
    return (
        f"{comparison.table(heads, rows)}\n\nNo strategy uses {sum(unused.values()):,}"
        f" of {positions:,} positions{': ' + told if told else ''}."
    )


def training_part(seeds: Seeds, names: Sequence[str]) -> str:
    """Writes the table of all arms on held-out, against spans."""
    spans, rows = comparison.one(seeds, SPANS), []
    for name in names:
        pick = comparison.one(seeds, name)
        if not pick:
            continue
        says = next(arms[name]["says"] for arms in seeds.values() if name in arms)
        tokens = {seeds[seed][name]["tokens"] for seed in pick}
        row = [f"{says} (`{name}`)", *comparison.cells(seeds, pick)]
        found = comparison.gaps(seeds, pick, spans) if name != SPANS else []
        below = sum(gap[comparison.ALL] > 0 for gap in found)
        gaps = [gap[comparison.ALL] for gap in found]
        row.append(comparison.spread(gaps, "+.4f") if found else "")
        row.append(f"{below} of {len(found)}" if found else "")
        row.append(comparison.spread(sorted(tokens), ",.0f"))
        rows.append(row)
    heads = [
        "bits per byte",
        *comparison.domains_of(seeds),
        "above spans, all",
        "spans is below",
        "tokens",
    ]
    return comparison.table(heads, rows)


def orders_part(seeds: Seeds) -> str:
    """Says in how many seeds the orders hold that one would expect."""
    asked = [
        (SPANS, "mined"),
        ("mined", "exact"),
        (SPANS, "statistics"),
        (SPANS, f"{SPANS}.avgce"),
        (SPANS, "one"),
        ("three", SPANS),
        (SPANS, "clm"),
    ]
    lines = []
    for pair in asked:
        first, second = (comparison.one(seeds, name) for name in pair)
        if first and second:
            lines.append(f"- {comparison.wins(seeds, first, second, pair)}")
    return "\n".join(lines)


def page(found: Mapping[str, Any]) -> str:
    """Writes all tables; `found` is what results.json holds."""
    seeds = {
        seed: arms
        for seed, arms in sorted(found["seeds"].items(), key=lambda item: int(item[0]))
        if arms
    }
    parts = {}
    if pairs := found["pairs"]:
        parts["What is kept of what a source knows"] = kept_part(pairs)
        parts["Bits per byte of the rows used"] = bits_part(pairs)
        parts["Positions that spans cover, and why not"] = reasons_part(pairs)
    if seeds:
        parts["After training, on held-out"] = "\n\n".join(
            (training_part(seeds, found["order"]), orders_part(seeds))
        )
    made = [comparison.made_line(run) for run in found["runs"]]
    parts["How these figures were made"] = "\n".join(made)
    return "\n\n".join(f"### {head}\n\n{text}" for head, text in parts.items())
