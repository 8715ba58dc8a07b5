"""The part of docs/results.md that tells what FuseChat's way comes to, from one run."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from examples import comparison
from pipelines.branches import MERGE, PAIR, SOURCE, UNTOUCHED
from train import evaluate

ALL = evaluate.ALL
_MERGES, _SOURCES = (f"{head[:-1]}:" for head in (MERGE, SOURCE))
_SAYS = {
    UNTOUCHED: "the pivot as it was",
    "clm": "CLM alone, the same dialogues",
    "many_to_one": "many-to-one: all sources",
}

Rows = Mapping[str, Mapping[str, float]]
"""Bits per byte of each model, by domain and over all."""


def says(name: str) -> str:
    """Says what a model of the table is."""
    for head, words in (
        (PAIR, "pair: {} alone"),
        (_MERGES, "merge: {}"),
        (_SOURCES, "source: {}"),
    ):
        if name.startswith(head):
            return words.format(name.removeprefix(head))
    return _SAYS.get(name, name)


def table(found: Mapping[str, Any]) -> str:
    """Writes bits per byte by model and domain; the least of what was trained is bold.

    Sources stand apart: none of them is what is made here.
    """
    rows: Rows = found["models"]
    domains = [*found["bytes"], ALL]
    made = [name for name in rows if not name.startswith(_SOURCES)]
    least = {domain: min(rows[name][domain] for name in made) for domain in domains}

    def cell(name: str, domain: str) -> str:
        figure = f"{rows[name][domain]:.4f}"
        best = name in made and rows[name][domain] == least[domain]
        return f"**{figure}**" if best else figure

    lines = [[says(n), *(cell(n, domain) for domain in domains)] for n in rows]
    sizes = {**found["bytes"], ALL: sum(found["bytes"].values())}
    lines.append(["bytes that count", *(f"{sizes[domain]:,}" for domain in domains)])
    return comparison.table(["bits per byte", *domains], lines)


def taught(found: Mapping[str, Any]) -> str:
    """Writes which share of a domain's dialogues each fusion's candidates taught."""
    domains = list(found["bytes"])
    lines = []
    for fusion, by_domain in found["taught"].items():
        names = {name for row in by_domain.values() for name in row}
        for name in sorted(names - {"target"}):
            rows = [by_domain.get(domain, {}) for domain in domains]
            shares = [row.get(name, 0) / (sum(row.values()) or 1) for row in rows]
            lines.append([fusion, name, *(f"{share:.0%}" for share in shares)])
    return comparison.table(["fusion", "source", *domains], lines)


def orders(found: Mapping[str, Any]) -> Iterator[str]:
    """Says over all bytes which models are below which others."""
    cost = {name: row[ALL] for name, row in found["models"].items()}
    pairs, merges = ([n for n in cost if n.startswith(h)] for h in (PAIR, _MERGES))
    best = min(cost[name] for name in pairs)
    yield _below(cost, merges, "merges", best, "the best pair")
    yield _below(cost, merges, "merges", cost["many_to_one"], "many-to-one")
    yield _below(cost, merges, "merges", cost["clm"], "CLM alone")
    yield _below(cost, pairs, "pairs", cost["many_to_one"], "many-to-one")
    yield _below(cost, pairs, "pairs", cost["clm"], "CLM alone")
    many = "below" if cost["many_to_one"] < cost["clm"] else "not below"
    yield f"many-to-one is {many} CLM alone."
    tuned = "below" if cost["clm"] < cost[UNTOUCHED] else "not below"
    yield f"CLM alone is {tuned} the pivot as it was."


def _below(
    cost: Mapping[str, float], names: Sequence[str], kind: str, bound: float, what: str
) -> str:
    under = [name for name in names if cost[name] < bound]
    return f"{len(under)} of {len(names)} {kind} are below {what} ({bound:.4f})."


def page(found: Mapping[str, Any]) -> str:
    """Writes the whole part; `found` is what a finished run holds."""
    return "\n\n".join(
        [
            table(found),
            "\n".join(f"- {line}" for line in orders(found)),
            "Dialogues that a source taught, by fusion; the pivot's own rows the rest:",
            taught(found),
            f"{comparison.made_line(found['run'])}; {found['minutes']:.0f} min.",
        ]
    )
