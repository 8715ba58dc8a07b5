"""The parts of docs/results.md that tell what fused and merged reasoners answer."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from examples import comparison, reasoning_answers, reasoning_models
from examples.skills import PAIRS, SINGLE
from pipelines import search_page
from pipelines.branches import MERGE, SOURCE, UNTOUCHED

SEARCH = "search:"
_SOURCES, _MERGES = (f"{head[:-1]}:" for head in (SOURCE, MERGE))
JOINT = f"{_SOURCES}{reasoning_models.JOINT}"

_OTHERS = {f"{_SOURCES}{n}": s for n, s in reasoning_models.OTHERS.items()}
_SAYS = {
    UNTOUCHED: "base",
    **{name: f"{s}, of another make" for name, s in _OTHERS.items()},
    **{f"{_SOURCES}{s}": f"{s}, of the base's make" for s in SINGLE},
    JOINT: "base, trained on all skills",
    "clm": "base + CLM on fusion's rows",
    "fused": "fused",
}
_MERGED = {
    "experts": "experts",
    "clm": "experts and base + CLM",
    "fused": "experts and fused",
}

Seeds = Mapping[str, Mapping[str, Any]]
"""What a run came to, by seed: `bits`, `right`, `searches`, `minutes`."""


def says(name: str) -> str:
    """Says what a model of the tables is."""
    if name.startswith(SEARCH):
        return f"searched merge of {_MERGED['fused']}: {name.removeprefix(SEARCH)}"
    if name.startswith(_MERGES):
        who, _, method = name.removeprefix(_MERGES).partition("_")
        return f"merge of {_MERGED[who]}: {method}"
    return _SAYS.get(name, name.removeprefix(_SOURCES))


def experts(seeds: Seeds) -> list[str]:
    """Lists the models of which each has learned for itself: base and experts."""
    names = next(iter(seeds.values()))["right"]
    mine = [n for n in names if n.startswith(_SOURCES) and n != JOINT]
    return [UNTOUCHED, *mine]


def made(seeds: Seeds) -> list[str]:
    """Lists the models that are made of others, and their controls, in order."""
    names = next(iter(seeds.values()))["right"]
    order = (
        *(JOINT, "clm", "fused"),
        *(f"{_MERGES}{who}" for who in _MERGED),
        SEARCH,
    )
    return [name for head in order for name in names if name.startswith(head)]


def shares(seeds: Seeds, name: str, skill: str) -> list[float]:
    """Returns how many of a skill's items a model answers, in percent, a seed each."""
    found = (seed["right"][name][skill] for seed in seeds.values())
    return [reasoning_answers.share(right) for right in found]


def counts(seeds: Seeds, name: str, pair: str) -> tuple[list[int], list[int]]:
    """Counts items of a pair that a model alone answers, and that it alone does not.

    Alone is: against the base and the experts together.

    Returns:
      Both, a count for each seed.
    """
    more, less = [], []
    for seed in seeds.values():
        right = seed["right"]
        others = [right[expert][pair] for expert in experts(seeds)]
        more.append(reasoning_answers.emergent(right[name][pair], others))
        less.append(reasoning_answers.lost(right[name][pair], others))
    return more, less


def table(seeds: Seeds) -> str:
    """Writes the share of items that are answered, by model and skill."""
    lines = []
    for name in (*experts(seeds), *made(seeds)):
        bits = [seed["bits"].get(name) for seed in seeds.values()]
        told = comparison.spread(bits, ".3f") if None not in bits else ""
        cells = (shares(seeds, name, skill) for skill in (*SINGLE, *PAIRS))
        lines.append([says(name), told, *(comparison.spread(c, ".0f") for c in cells)])
    first = next(iter(seeds.values()))["right"][UNTOUCHED]
    sizes = [f"{len(first[skill])}" for skill in (*SINGLE, *PAIRS)]
    heads = ["% answered", "bits per byte", *SINGLE, *PAIRS]
    return comparison.table(heads, [*lines, ["items", "", *sizes]])


def emergence(seeds: Seeds) -> str:
    """Writes how many items of two skills only a model, or all but it, answers."""
    lines = []
    for name in made(seeds):
        cells = []
        for pair in PAIRS:
            more, less = counts(seeds, name, pair)
            told = (comparison.spread(each, ".1f") for each in (more, less))
            cells.append(" / ".join(told))
        lines.append([says(name), *cells])
    return comparison.table(["emergent / lost", *PAIRS], lines)


def total(seeds: Seeds, name: str) -> list[int]:
    """Counts the items of all pairs that a model answers and no expert, a seed each."""
    by_pair = (counts(seeds, name, pair)[0] for pair in PAIRS)
    return [sum(each) for each in zip(*by_pair, strict=True)]


def findings(seeds: Seeds) -> Iterator[str]:
    """Says who is competent, and what emerges, beside what controls show."""
    for name in (*_OTHERS, *(f"{_SOURCES}{skill}" for skill in SINGLE)):
        if name in experts(seeds):
            skill = _OTHERS.get(name, name.removeprefix(_SOURCES))
            told = comparison.spread(shares(seeds, name, skill), ".0f")
            yield f"The expert of {says(name)}, answers {told} % of its own skill."
    items = sum(len(next(iter(seeds.values()))["right"][UNTOUCHED][p]) for p in PAIRS)
    for name in made(seeds):
        told = ", ".join(map(str, total(seeds, name)))
        yield f"Of {items} items of two skills, {says(name)} answers {told} that no" + (
            " expert does, by seed."
        )
    fused, clm = total(seeds, "fused"), total(seeds, "clm")
    more = sum(one > other for one, other in zip(fused, clm, strict=True))
    yield (
        f"Fused answers more such items than its control in {more} of {len(fused)}"
        f" seeds: {statistics.fmean(fused):.1f} against {statistics.fmean(clm):.1f}."
    )


def searches(seeds: Seeds) -> str:
    """Writes what the arms of the searches came to on the report split."""
    first = next(iter(seeds.values()))["searches"]
    lines = []
    for method, result in first.items():
        for arm in result["arms"]:
            best = [s["searches"][method]["arms"][arm]["best"] for s in seeds.values()]
            if None in best:
                continue
            lines.append([method, search_page.SAYS[arm], *_figures(best)])
    heads = ["method", "arm", "objective", "bits per byte", "% answered"]
    return comparison.table(heads, lines)


def _figures(best: Sequence[Mapping[str, Any]]) -> list[str]:
    """Writes what best trials came to: objective, bits per byte, items answered."""
    report = [one["report"] for one in best]
    costs = [one["objective"] for one in report]
    bits = [statistics.fmean(one["bits"].values()) for one in report]
    right = [100 * statistics.fmean(one["accuracy"].values()) for one in report]
    forms = ((costs, ".3f"), (bits, ".3f"), (right, ".0f"))
    return [comparison.spread(values, form) for values, form in forms]


def page(found: Mapping[str, Any]) -> str:
    """Writes a whole part; `found` is what the runs of all seeds came to."""
    seeds: Seeds = found["seeds"]
    minutes = statistics.fmean(seed["minutes"] for seed in seeds.values())
    several = len(seeds) > 1
    told = "; mean, and least to greatest over seeds" if several else ""
    parts = [f"Seed{'s' if several else ''} {', '.join(seeds)}{told}.", table(seeds)]
    parts += [emergence(seeds), "\n".join(f"- {line}" for line in findings(seeds))]
    if next(iter(seeds.values()))["searches"]:
        parts += ["The searches, on the report split:", searches(seeds)]
    parts.append(f"{comparison.made_line(found['run'])}; {minutes:.0f} min a seed.")
    return "\n\n".join(parts)
