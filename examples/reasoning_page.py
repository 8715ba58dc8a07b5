"""The parts of docs/results.md that tell what fused and merged reasoners answer."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from examples import comparison, reasoning_answers, reasoning_models
from examples.reasoning_search import CONTROL, SEARCH, WITH
from examples.seeds import tell_rates
from examples.skills import PAIRS, SINGLE
from pipelines import search_page
from pipelines.branches import MERGE, SOURCE, UNTOUCHED

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
"""What a run came to, by seed: `bits`, `right`, `searches`, `chosen`."""


def says(name: str) -> str:
    """Says what a model of the tables is."""
    for head, words in ((SEARCH, "searched merge"), (_MERGES, "merge")):
        if name.startswith(head):
            who, _, method = name.removeprefix(head).partition("_")
            return f"{words} of {_MERGED[who]}: {method}"
    return _SAYS.get(name, name.removeprefix(_SOURCES))


def experts(seeds: Seeds) -> list[str]:
    """Lists the models of which each has learned for itself: base and experts."""
    names = next(iter(seeds.values()))["right"]
    mine = [n for n in names if n.startswith(_SOURCES) and n != JOINT]
    return [UNTOUCHED, *mine]


def unasked(seeds: Seeds) -> list[str]:
    """Lists the sources of which bits per byte are known and no answers."""
    seed = next(iter(seeds.values()))
    found = seed["bits"].keys() - seed["right"].keys()
    return [name for name in seed["bits"] if name in found and _SOURCES in name]


def made(seeds: Seeds) -> list[str]:
    """Lists the models that are made of others, and their controls, in order."""
    names = next(iter(seeds.values()))["right"]
    order = (
        *(JOINT, "clm", "fused"),
        *(f"{head}{who}" for head in (_MERGES, SEARCH) for who in _MERGED),
    )
    return [name for head in order for name in names if name.startswith(head)]


def shares(seeds: Seeds, name: str, skill: str) -> list[float]:
    """Returns how many of a skill's items a model answers, in percent, a seed each."""
    found = (seed["right"][name][skill] for seed in seeds.values())
    return [reasoning_answers.share(right) for right in found]


def pairs_of(seeds: Seeds) -> list[str]:
    """Lists the models that have to do with fusion and a twin that has CLM instead."""
    names = made(seeds)
    return [n for n in names if WITH in n and n.replace(WITH, CONTROL) in names]


def answered(seeds: Seeds, name: str, skills: Sequence[str]) -> list[list[bool]]:
    """Returns of each item of some skills whether a model answers it, a seed each."""
    found = (seed["right"][name] for seed in seeds.values())
    return [[one for skill in skills for one in right[skill]] for right in found]


def against(
    seeds: Seeds, name: str, other: str, skills: Sequence[str]
) -> list[tuple[int, int]]:
    """Counts items that one model answers and another does not, and the other way.

    Both are of the same seed, so of the same items.
    """
    both = answered(seeds, name, skills), answered(seeds, other, skills)
    return [
        (reasoning_answers.emergent(one, [two]), reasoning_answers.lost(one, [two]))
        for one, two in zip(*both, strict=True)
    ]


def counts(seeds: Seeds, name: str, pair: str) -> tuple[list[int], list[int]]:
    """Counts items of a pair that a model alone answers, and that it alone does not.

    Alone is: against the base and the experts together, itself apart.

    Returns:
      Both, a count for each seed.
    """
    more, less = [], []
    for seed in seeds.values():
        right = seed["right"]
        others = [right[one][pair] for one in experts(seeds) if one != name]
        more.append(reasoning_answers.emergent(right[name][pair], others))
        less.append(reasoning_answers.lost(right[name][pair], others))
    return more, less


def table(seeds: Seeds) -> str:
    """Writes the share of items that are answered, by model and skill."""
    lines = []
    for name in (*experts(seeds), *unasked(seeds), *made(seeds)):
        bits = [seed["bits"].get(name) for seed in seeds.values()]
        told = comparison.spread(bits, ".3f") if None not in bits else ""
        cells = (_share(seeds, name, skill) for skill in (*SINGLE, *PAIRS))
        lines.append([says(name), told, *cells])
    first = next(iter(seeds.values()))["right"][UNTOUCHED]
    sizes = [f"{len(first[skill])}" for skill in (*SINGLE, *PAIRS)]
    heads = ["% answered", "bits per byte", *SINGLE, *PAIRS]
    return comparison.table(heads, [*lines, ["items", "", *sizes]])


def _share(seeds: Seeds, name: str, skill: str) -> str:
    """Writes the share of a skill's items that a model answers; of unasked nothing."""
    if name in unasked(seeds):
        return ""
    return comparison.spread(shares(seeds, name, skill), ".0f")


def emergence(seeds: Seeds) -> str:
    """Writes how many items of two skills only a model, or all but it, answers.

    Each of base and experts is set against the others, for scale.
    """
    lines = []
    for name in (*experts(seeds), *made(seeds)):
        cells = []
        for pair in PAIRS:
            more, less = counts(seeds, name, pair)
            told = (comparison.spread(each, ".1f") for each in (more, less))
            cells.append(" / ".join(told))
        lines.append([says(name), *cells, ", ".join(map(str, total(seeds, name)))])
    heads = ["emergent / lost", *PAIRS, "emergent of all, by seed"]
    return comparison.table(heads, lines)


def twins(seeds: Seeds) -> str:
    """Writes what fusion adds: each model against its twin of the control, and joint.

    A cell has the difference in points of percent, in how many seeds it is above 0, and
    how many items, of all seeds, only the one model answers, and only the other.
    """
    lines = []
    for name in pairs_of(seeds):
        cells = []
        for other in (name.replace(WITH, CONTROL), JOINT):
            for skills in (SINGLE, PAIRS):
                found = against(seeds, name, other, skills)
                items = len(answered(seeds, name, skills)[0])
                points = [100 * (more - less) / items for more, less in found]
                above = sum(more > less for more, less in found)
                only = [sum(each) for each in zip(*found, strict=True)]
                cells.append(
                    f"{comparison.spread(points, '+.1f')}; {above} of {len(found)};"
                    f" {only[0]} / {only[1]}"
                )
        lines.append([says(name), *cells])
    heads = [
        f"{who}, {what}"
        for who in ("CLM in place of fusion", "joint training")
        for what in ("one skill", "two skills")
    ]
    return comparison.table(["against", *heads], lines)


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
    alone = [total(seeds, name) for name in experts(seeds)]
    most = ", ".join(str(max(each)) for each in zip(*alone, strict=True))
    yield (
        f"Of {items} items of two skills a single expert, or the base, answers at most"
        f" {most} that no other does, by seed."
    )
    for name in pairs_of(seeds):
        mine, theirs = total(seeds, name), total(seeds, name.replace(WITH, CONTROL))
        more = sum(one > other for one, other in zip(mine, theirs, strict=True))
        yield (
            f"Emergent with fusion and with CLM in its place, {says(name)}:"
            f" {statistics.fmean(mine):.1f} and {statistics.fmean(theirs):.1f}; more in"
            f" {more} of {len(mine)} seeds."
        )


def searches(seeds: Seeds) -> str:
    """Writes what the arms of the searches came to on the report split."""
    first = next(iter(seeds.values()))["searches"]
    lines = []
    for name, result in first.items():
        who, _, method = name.partition("_")
        for arm in result["arms"]:
            best = [s["searches"][name]["arms"][arm]["best"] for s in seeds.values()]
            if None in best:
                continue
            told = [_MERGED[who], method, search_page.SAYS[arm]]
            lines.append([*told, *_figures(best)])
    heads = ["merge of", "method", "arm", "objective", "bits per byte", "% answered"]
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
    several = len(seeds) > 1
    told = "; mean, and least to greatest over seeds" if several else ""
    parts = [f"Seed{'s' if several else ''} {', '.join(seeds)}{told}.", table(seeds)]
    parts.append(emergence(seeds))
    if JOINT in made(seeds):
        head = (
            "What fusion adds (points; seeds above; items that only the one answers /"
        )
        parts += [f"{head} only the other):", twins(seeds)]
    parts.append(_listed(findings(seeds)))
    if next(iter(seeds.values()))["searches"]:
        parts += ["The searches, on the report split:", searches(seeds)]
    chosen = {seed: told["chosen"] for seed, told in seeds.items()}
    parts += ["Learning rates:", _listed(tell_rates(chosen))]
    parts.append(f"{comparison.made_line(found['run'])}.")
    return "\n\n".join(parts)


def _listed(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
