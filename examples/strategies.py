"""The strategies of alignment compared: what each keeps, what training makes of it.

    python -m examples.strategies            what each keeps, for all pairs of models
    python -m examples.strategies --train    and what the demo's target learns from it
    python -m examples.strategies --recipe examples/tiny.toml --quick    a first try

It builds on a finished demo. For the first part it trains models of other tokenizer
families on the demo's split `base`, scores the demo's windows with each, and brings
every two of all models together, SmolLM2 among them: each as source, each as target,
under every strategy. On two quiet cores that takes a quarter of an hour, most of it for
training.

The second part fuses the demo's scores under every strategy and continues the target on
each, over seeds: as `examples.results`, and as long an arm.

What is measured is written to results.json at once and not measured again. The page is
computed from it alone, and stands between two markers.
"""

import argparse
import dataclasses
import itertools
import sys
import time
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples import demo, meetings, models, results, strategy_tables
from examples.controls import Bench, Control
from examples.meetings import Participant
from pipelines import recipe, score
from pipelines.fuse import FuseConfig
from pipelines.recipe import Recipe
from schemas import files, manifest, scores
from transforms import allocator
from transforms.strategies import Strategy

PART = "strategies"
STRATEGIES = meetings.STRATEGIES
FUSED: tuple[str, ...] = typing.get_args(typing.get_type_hints(FuseConfig)["strategy"])
"""Those of them that `fusebeam fuse` knows."""

_FULL = dataclasses.replace(models.PLANS["full"][0], name="bytes", steps=200)
FAMILIES = (
    _FULL,
    dataclasses.replace(_FULL, name="digits", architecture="qwen2", vocabulary=8192),
    dataclasses.replace(
        _FULL, name="unigram", architecture="gpt_neox", vocabulary=6144
    ),
    dataclasses.replace(_FULL, name="pieces", architecture="mistral", vocabulary=3072),
)
"""Models of the first part, named by their tokenizers: see `examples.vocabularies`."""

THIRD = "digits"
"""Which of them is the third source of the second part."""


def families(*, quick: bool) -> list[models.Plan]:
    """Returns how the models of the first part are made."""
    if not quick:
        return list(FAMILIES)
    return [
        dataclasses.replace(
            made, vocabulary=made.vocabulary // 4, width=64, layers=2, steps=20
        )
        for made in FAMILIES
    ]


def take_part(
    plan: Recipe, made: Sequence[models.Plan], output: str
) -> list[Participant]:
    """Trains and scores what is not there yet.

    Returns:
      The demo's SmolLM2, where it has one, and the models.
    """
    found = [
        Participant.read(name, plan.folder("scores", name))
        for name in plan.sources
        if name == "smollm2"
    ]
    texts: models.Texts | None = None
    for one in made:
        model = files.join(output, "models", one.name)
        if not files.exists(model):
            print(f"── train the model {one.name}", flush=True)
            texts = texts or models.read_texts(plan.folder("prepared", "base"))
            models.make_model(one, texts, f"{model}.partial")
            Path(f"{model}.partial").rename(model)
        folder = files.join(output, "scores", one.name)
        score.score_windows(
            dataclasses.replace(plan.score("target"), model=model, output=folder)
        )
        found.append(Participant.read(one.name, folder))
    return found


def inputs_of(participants: Sequence[Participant]) -> dict[str, str]:
    """Returns the fingerprints of all that the first part is computed from."""
    return {
        f"scores:{one.name}": manifest.read(one.scores, scores.STAGE).fingerprint
        for one in participants
    }


def compare(
    plan: Recipe,
    participants: Sequence[Participant],
    found: dict[str, Any],
    path: str,
    strategies: Sequence[Strategy],
) -> None:
    """Measures every ordered pair under every strategy into the results."""
    output = files.join(files.parent(path), "maps")
    pairs = list(itertools.permutations(participants, 2))
    for number, (source, target) in enumerate(pairs, 1):
        name = f"{source.name}>{target.name}"
        had = found["pairs"].get(name, {"strategies": {}})
        if set(strategies) <= set(had["strategies"]):
            continue
        print(f"── {number}/{len(pairs)} {source.name} to {target.name}", flush=True)
        found["pairs"][name] = meetings.measure_pair(
            plan.fusion_windows, source, target, strategies, output
        )
        files.write_json(path, found)


def arms(plan: Recipe, strategies: Sequence[str], third: str) -> list[list[Control]]:
    """Lists the arms of the second part; all seeds of a group come before the next.

    Args:
      plan: of the demo.
      strategies: to compare.
      third: scores folder of the third source.
    """
    first = plan.fuse.sources[0]
    three = (*plan.fuse.sources, f"{THIRD}={third}")
    return [
        [
            Control(name="clm", says="CLM alone", base="clm"),
            *(
                Control(
                    name=strategy,
                    says=f"{strategy}, MinCE",
                    base="fused",
                    fuse={"strategy": strategy},
                )
                for strategy in strategies
            ),
        ],
        [
            Control(
                name="one",
                says=f"spans, MinCE, one source ({first.partition('=')[0]})",
                base="fused",
                fuse={"sources": (first,)},
            ),
            Control(
                name="three",
                says=f"spans, MinCE, three sources (and {THIRD})",
                base="fused",
                fuse={"sources": three},
            ),
        ],
        [
            Control(
                name=f"{strategy}.avgce",
                says=f"{strategy}, AvgCE",
                base="fused",
                fuse={"strategy": strategy, "fusion": "avgce"},
            )
            for strategy in strategies
        ],
    ]


def order(plan: Recipe, third: str) -> list[str]:
    """Lists the names of all arms, as tables have them."""
    return [c.name for group in arms(plan, FUSED, third) for c in group]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.strategies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--train", action="store_true", help="also the second part")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES)
    )
    parser.add_argument("--quick", action="store_true", help="models that know little")
    parser.add_argument("--recipe", default=demo.RECIPES["full"], help="of the demo")
    parser.add_argument("--output", help="folder of it all, below runs if left out")
    parser.add_argument("--page", default="docs/results.md", help="page to write into")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Measures what is missing and writes the page."""
    given = parse(argv)
    if not (Path(given.recipe).exists() and Path(given.page).exists()):
        raise SystemExit("error: run this from the repository's folder")
    plan = recipe.read(given.recipe)
    target = results.read_demo(plan, given.recipe)
    output = given.output or f"runs/strategies{'-quick' * given.quick}"
    allocator.keep_large_blocks()
    start = time.monotonic()
    participants = take_part(plan, families(quick=given.quick), output)
    path = files.join(output, results.RESULTS)
    inputs = {**inputs_of(participants), **results.inputs_of(plan, target)}
    empty = {"inputs": inputs, "runs": [], "pairs": {}, "seeds": {}}
    this = results.about(argv, "examples.strategies")
    third = files.join(output, "scores", THIRD)
    found = {**results.resume(path, empty, this), "order": order(plan, third)}
    compare(plan, participants, found, path, given.strategies)
    results.write_page(given.page, strategy_tables.page(found), PART)
    fused = [name for name in FUSED if name in given.strategies]
    groups = arms(plan, fused, third) if given.train else []
    todo = [(seed, arm) for group in groups for seed in given.seeds for arm in group]
    for number, (seed, control) in enumerate(todo, 1):
        bench = Bench(plan=plan, made=target, output=output, seed=seed)
        results.work(bench, control, found, path, f"{number}/{len(todo)}")
        results.write_page(given.page, strategy_tables.page(found), PART)
    minutes = (time.monotonic() - start) / 60
    print(f"done in {minutes:.0f} min: {path} and {given.page}")


if __name__ == "__main__":
    main(sys.argv[1:])
