"""What a search leaves for people: a table, a plot, and the best merge's recipe."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines import card, plots, searching
from pipelines.merging import Merging
from pipelines.plots import Line, Panel
from pipelines.searching import Searching
from schemas import files
from train.merge import rules
from train.merge.inputs import Input
from train.search import genome as genomes
from train.search import strategies
from train.search.genome import Genome
from train.search.trials import DEAD, Trial

RECIPE, TABLE, PLOT = "recipe.toml", "table.md", "search.svg"
NAMES = (RECIPE, TABLE, PLOT)

SAYS = {
    searching.UNIFORM: "uniform weights",
    searching.ONE_FOR_ALL: "one global value",
    searching.RANDOM: "random search",
    searching.EVOLUTION: "CMA-ES",
}
"""What tables and plots call the arms."""


def write(
    given: Searching,
    genome: Genome,
    models: Sequence[Input],
    result: Mapping[str, Any],
    arms: Mapping[str, Sequence[Trial]],
) -> None:
    """Writes table, plot and recipe into the output.

    Args:
      given: what was searched.
      genome: what was varied.
      models: the inputs.
      result: what was found.
      arms: all trials.
    """
    chosen = result["chosen"]
    best = arms[chosen][result["arms"][chosen]["best"]["trial"]]
    text = "\n\n".join([table(result), "\n".join(notes(result))]) + "\n"
    output = given.config.output
    files.write_bytes(files.join(output, TABLE), text.encode())
    files.write_bytes(files.join(output, PLOT), plot(arms).encode())
    made = recipe(given.merging(genome, best.x), models)
    files.write_bytes(recipe_path(given), made.encode())


def recipe_path(given: Searching) -> str:
    """Returns where the recipe of the best merge is."""
    return files.join(given.config.output, RECIPE)


def recipe(merging: Merging, models: Sequence[Input]) -> str:
    """Writes a merge as the recipe that `fusebeam merge` makes it by.

    A model of the hub is written with the commit that was measured.
    """
    config = merging.config
    places = {**config.places, **{m.name: m.pinned for m in models if m.commit}}
    told = {
        f.name: getattr(config, f.name)
        for f in dataclasses.fields(config)
        if getattr(config, f.name) != f.default
    }
    told["base"] = places.pop(rules.BASE)
    top = {**told, "models": places, "settings": merging.settings}
    return card.merge_table(top, merging.tables)


def table(result: Mapping[str, Any]) -> str:
    """Writes a line a model: the objective on both splits, and its parts on one."""
    rows = [
        (name, "", "", row["search"], row["report"])
        for name, row in result["models"].items()
    ]
    dead: dict[str, Any] = {"objective": None, "bits": {}, "accuracy": {}}
    for name, arm in result["arms"].items():
        says = f"**{SAYS[name]}**" if name == result["chosen"] else SAYS[name]
        best = arm["best"] or {"search": dead, "report": dead}
        at = f"{best['trial'] + 1:,}" if "trial" in best else "none"
        count = f"{arm['evaluations']:,}"
        rows.append((says, count, at, best["search"], best["report"]))
    bits, tasks = (list(rows[0][-1][kind]) for kind in ("bits", "accuracy"))
    heads = ["model", "evaluations", "best at", "J, search", "J, report"]
    heads += [f"{name}, bits per byte" for name in bits]
    heads += [f"{name}, answered" for name in tasks]
    lines = [heads, ["---"] * len(heads)]
    for name, count, at, mine, theirs in rows:
        figures = [mine["objective"], theirs["objective"]]
        figures += [theirs["bits"].get(domain) for domain in bits]
        shares = [theirs["accuracy"].get(task) for task in tasks]
        lines.append([name, count, at, *map(_bits, figures), *map(_share, shares)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _bits(value: float | None) -> str:
    return "dead" if value is None else f"{value:.4f}"


def _share(value: float | None) -> str:
    return "dead" if value is None else f"{value:.1%}"


def notes(result: Mapping[str, Any]) -> Iterator[str]:
    """Says what of the arms is not as it should be, and which was best."""
    for name, arm in result["arms"].items():
        if arm["dead"]:
            yield (
                f"- {SAYS[name]}: {arm['dead']:,} of {arm['evaluations']:,} trials had"
                " no finite objective, and counted as worse than all others."
            )
        if arm["flat"]:
            yield (
                f"- {SAYS[name]}: all trials had the same objective, so the first was"
                " taken; what is measured does not depend on what is searched."
            )
    yield f"- Least on the split that was searched on: {SAYS[result['chosen']]}."


def plot(arms: Mapping[str, Sequence[Trial]]) -> str:
    """Draws the least objective so far against evaluations, an arm a line."""
    return plots.draw([panel(arms, "least J so far, on the split searched on")])


def panel(arms: Mapping[str, Sequence[Trial]], title: str) -> Panel:
    """Returns the plot of a search; an arm whose trials are all dead has no line."""
    last = max(len(done) for done in arms.values())
    lines = {SAYS[name]: _falling(done, last) for name, done in arms.items()}
    return Panel(
        title=title,
        below="evaluations",
        lines={name: line for name, line in lines.items() if line},
        is_log=False,
        evenly=True,
        closely=True,
    )


def _falling(done: Sequence[Trial], last: int) -> Line:
    """Returns the corners of a line of steps, which goes on to the last evaluation."""
    corners: list[tuple[float, float]] = []
    least = DEAD
    for trial in done:
        if trial.found.rank < least:
            if corners:
                corners.append((trial.number + 1, least))
            least = trial.found.rank
            corners.append((trial.number + 1, least))
    return [*corners, (last, least)] if corners else []


def genome_lines(genome: Genome) -> Iterator[str]:
    """Yields what is searched: cells, genes with their ranges, and how many."""
    for cell in genome.cells:
        yield f"{cell.name}: {', '.join(cell.patterns)}"
        yield from _genes(genome, cell.name)
    if shared := list(_genes(genome, genomes.ALL)):
        yield "all cells:"
        yield from shared
    yield f"{len(genome.genes):,} genes in {len(genome.cells):,} cells"


def arm_lines(given: Searching, genome: Genome) -> Iterator[str]:
    """Yields what is done with the genome: evaluations by arm, updates of CMA-ES."""
    config = given.config
    for name, count in given.evaluations.items():
        told = f"{SAYS[name]}: {count:,} evaluation{'s' if count > 1 else ''}"
        if name == searching.ONE_FOR_ALL and count > 1:
            low, high = strategies.reach(genome, given.scale)
            of = "lambda" if given.scale == "lambda" else "weight times lambda"
            told += f", {of} from {low:g} to {high:g}"
        if name == searching.EVOLUTION:
            each = config.population or strategies.population_of(len(genome.genes))
            told += f", {count // each:,} updates, one after every {each:,}"
        yield told


def _genes(genome: Genome, cell: str) -> Iterator[str]:
    for gene in genome.genes:
        if gene.cell == cell:
            of = f" of {gene.model}" if gene.model else ""
            yield (
                f"  {gene.setting}{of}: {gene.low:g} to {gene.high:g}, from"
                f" {gene.start:g}"
            )
