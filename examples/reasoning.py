"""Reasoning experts of several makes become one, and merge with others of its make.

    python -m examples.reasoning --run_code --size full    three seeds, an hour each
    python -m examples.reasoning --run_code --size tiny    minutes: the road, no page

Unconstrained Model Merging (arXiv 2410.13699) in the small: experts of
arithmetic, of units and of programs, each of another architecture and tokenizer, teach
a base on questions with worked answers. What comes out is merged with experts of the
base's own make, with and without a search of the weights; so is its control, the base
trained by CLM on the same rows. All are asked items of one skill, and items that need
two, which nobody has learned; programs that they write are run, with limits, in
`train.sandbox`, which `--run_code` allows. `fusebeam run examples/reasoning.toml` does
the part of it that is fusion and plain merges, with one seed. What is done is kept: the
same command goes on where it stopped.
"""

import dataclasses
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from examples import (
    inputs,
    reasoning_answers,
    reasoning_models,
    reasoning_page,
    reasoning_search,
    results,
    seeds,
    smollm2,
)
from examples import skills as skill_items
from examples.reasoning_models import Size
from examples.skills import PAIRS, SINGLE
from examples.worked import Item
from pipelines import recipe, run
from pipelines.recipe import Recipe
from schemas import files
from transforms import allocator

PARTS = {"full": "reasoning", "smollm2": "reasoning_smollm2"}
"""Parts of the page, by size."""

RECIPES: Mapping[Size, str] = {
    "full": "examples/reasoning.toml",
    "tiny": "examples/reasoning_tiny.toml",
    "smollm2": "examples/reasoning_smollm2.toml",
}

SMOLLM2 = "smollm2"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How many items there are of each skill, or pair, and how long a search is.

    Attributes:
      learned: items that models are made of, times the toil of a skill.
      windows: items in the windows of each split; of fusion times the toil, too.
      asked: items that models are asked, of each split.
      budget: evaluations of each arm of a search; 0 for none.
    """

    learned: int
    windows: Mapping[str, int]
    asked: Mapping[str, int]
    budget: int


SCALES: dict[Size, Scale] = {
    "full": Scale(
        learned=1400,
        windows={"fusion": 300, "search": 20, "report": 60},
        asked={"search": 6, "report": 60, "combined": 60},
        budget=8,
    ),
    "tiny": Scale(
        learned=20,
        windows={"fusion": 5, "search": 3, "report": 4},
        asked={"search": 1, "report": 2, "combined": 2},
        budget=1,
    ),
    "smollm2": Scale(
        learned=1400,
        windows={"fusion": 120, "search": 20, "report": 24},
        asked={"report": 20, "combined": 20},
        budget=0,
    ),
}


def make_inputs(output: str, size: Size, seed: int = 0) -> None:
    """Makes items and models below `output`; what is there stays.

    Raises:
      SchemaError: if those of other settings are there.
    """
    scale, place = SCALES[size], files.join(output, "inputs")
    texts = _items(scale, seed)
    wanted = {"windows": scale.windows, "asked": scale.asked, "seed": seed}
    wanted["items"] = files.digest(texts)
    with inputs.making(output, wanted) as missing:
        if missing:
            for path, text in texts.items():
                files.write_bytes(files.join(place, path), text.encode())
    allocator.keep_large_blocks()
    toil = reasoning_models.TOIL
    base = {
        s: skill_items.items("base", s, scale.learned * toil[s], seed) for s in SINGLE
    }
    for learner in reasoning_models.PLANS[size]:
        name = learner.plan.name
        items = [one for skill in learner.plan.mixture for one in base[skill]]
        made = {**dataclasses.asdict(learner), "seed": seed}
        made["items"] = files.digest([reasoning_models.text_of(one) for one in items])
        with inputs.making(output, made, f"inputs/{name}.json") as missing:
            if missing:
                nats = reasoning_models.make(learner, base, place, seed)
                print(f"── {name}: {nats:.3f} nats a token at the end", flush=True)
    if size == SMOLLM2:
        unpacked = {"file": smollm2.FILE}
        with inputs.making(output, unpacked, f"inputs/{SMOLLM2}.json") as missing:
            if missing:
                smollm2.unpack(files.join(place, SMOLLM2))


def _items(scale: Scale, seed: int) -> dict[str, str]:
    """Returns the corpus, and the items of each split and skill that is asked.

    Returns:
      Texts of JSON Lines, by their paths below the inputs.
    """
    lines = [
        json.dumps(
            {
                "id": f"{split}-{skill}-{number}",
                "split": split,
                "skill": skill,
                "prompt": item.prompt,
                "response": item.response,
            }
        )
        for split, count in scale.windows.items()
        for skill in SINGLE
        for number, item in enumerate(
            skill_items.items(split, skill, count * _times(split, skill), seed)
        )
    ]
    asked = skill_items.written(scale.asked, seed).items()
    texts = {"items.jsonl": "".join(f"{line}\n" for line in lines)}
    return texts | {f"asked/{name}": text for name, text in asked}


def _times(split: str, skill: str) -> int:
    return reasoning_models.TOIL[skill] if split == "fusion" else 1


def items_of(output: str) -> dict[str, Sequence[Item]]:
    """Reads the items that models are asked in the end, by skill or pair."""
    places = {skill: f"report.{skill}" for skill in SINGLE}
    places |= {pair: f"combined.{pair}" for pair in PAIRS}
    return {
        skill: skill_items.read(files.join(output, "inputs", "asked", f"{at}.jsonl"))
        for skill, at in places.items()
    }


def models_of(plan: Recipe, searches: Collection[str]) -> dict[str, str]:
    """Returns where all models are that are asked, by their names in the table.

    SmolLM2 is not: it knows nothing of lines that begin with `Answer:`.
    """
    asked = {n: at for n, at in plan.models.items() if n != f"source:{SMOLLM2}"}
    found = {m: reasoning_search.merged(plan, m) for m in searches}
    return asked | {f"{reasoning_search.SEARCH}{m}": at for m, at in found.items()}


def run_seed(size: Size, seed: int, output: str) -> dict[str, Any]:
    """Makes and runs all of one seed, but for what is done; returns its figures."""
    path = seeds.write_recipe(RECIPES[size], seed, output)
    plan = recipe.read(path)
    table = run.run(plan)
    searches = reasoning_search.run(plan, SCALES[size].budget, seed)
    items = items_of(output)
    right = {}
    for name, place in models_of(plan, searches).items():
        print(f"── ask {name}", flush=True)
        kept = plan.folder("answers", f"{name.replace(':', '.')}.json")
        right[name] = reasoning_answers.ask(place, items, kept)
    return {
        "bits": {name: row["all"] for name, row in table["models"].items()},
        "right": right,
        "searches": searches,
        "chosen": seeds.chosen(plan),
    }


def main(argv: Sequence[str]) -> None:
    """Runs every seed, and writes the page."""
    given = seeds.parse(
        argv, "examples.reasoning", __doc__, RECIPES, PARTS, runs_code=True
    )
    output = given.output or f"{recipe.read(RECIPES[given.size]).output}-seeds"
    found: dict[str, Any] = {}
    for seed in given.seeds:
        print(f"── seed {seed}", flush=True)
        below = files.join(output, f"seed-{seed}")
        found[str(seed)] = run_seed(given.size, seed, below)
        whole = {"seeds": found, "run": results.about(argv, "examples.reasoning")}
        files.write_json(files.join(output, "reasoning.json"), whole)
    text = reasoning_page.page(whole)
    print(f"\n{text}")
    if given.page is not None:
        results.write_page(given.page, text, PARTS[given.size])
        print(f"\n{given.page} is written")


if __name__ == "__main__":
    main(sys.argv[1:])
