"""Searches the weights with which fused, or its control, merges with experts.

The objective is the mean of bits per byte over skills, less a tenth of the mean share
of items that are answered, of the split `search`, which has no item of two skills.
Both have the same arms, each with as many evaluations; the best trial is merged.
"""

from typing import Any

from examples import reasoning_answers
from examples.skills import SINGLE
from examples.worked import MARK
from pipelines import card, merge, merging, search, search_page, searching
from pipelines.recipe import Recipe
from pipelines.searching import METHODS
from schemas import files

WITH, CONTROL = "fused", "clm"
"""What merges with the experts: the fused model, or its control."""

SEARCH = "search:"
"""What the names of searched merges begin with in tables."""


_ANSWERS = 0.1
"""Bits per byte that all items of all skills are worth: about what the base has."""


def searches() -> list[str]:
    """Lists the searches: of what is fused, and its control in its place, by method."""
    return [f"{who}_{method}" for who in (CONTROL, WITH) for method in METHODS]


def write_recipe(plan: Recipe, name: str, budget: int, seed: int) -> str:
    """Writes the recipe of a search of what merges plainly, too; returns its path."""
    who, _, method = name.partition("_")
    names = next(m.models for m in plan.merges if m.name.startswith(f"{who}_"))
    asked = plan.folder("inputs", "asked")
    told = {
        "windows": plan.folder("windows", "search"),
        "report": plan.folder("windows", "report"),
        "output": plan.folder("searches", name, "search"),
        "budget": budget,
        "groups": 2,
        "population": 4,
        "max_new_tokens": reasoning_answers.MOST_TOKENS,
        "seed": seed,
        "device": "cpu",
    }
    made = {
        "models": {name.rpartition(".")[2]: plan.places[name] for name in names},
        "base": plan.target,
        "method": method,
        "output": merged(plan, name),
    }
    lines = [card.merge_table(made, ()), "[search]"]
    lines += [f"{key} = {card.toml(value)}" for key, value in told.items()]
    for skill in SINGLE:
        lines += ["", f"[search.tasks.{skill}]"]
        for split in ("search", "report"):
            path = files.join(asked, f"{split}.{skill}.jsonl")
            lines.append(f"{split} = {card.toml(path)}")
        lines.append(f"answer_after = {card.toml(MARK)}")
        lines.append("chat_prompts = true")
        lines.append(f"weight = {_ANSWERS / len(SINGLE)}")
    path = plan.folder("searches", name, "recipe.toml")
    files.write_bytes(path, ("\n".join(lines) + "\n").encode())
    return path


def merged(plan: Recipe, name: str) -> str:
    """Returns the folder of the merge that a search has found."""
    return plan.folder("searches", name, "merged")


def run(plan: Recipe, budget: int, seed: int) -> dict[str, Any]:
    """Searches with every method, and makes the merge that it has found.

    Args:
      plan: the recipe, whose models are made; programs that merges write are run.
      budget: evaluations of each arm; 0 for no search.
      seed: of the searches.

    Returns:
      The result of each search, by the name of its merge.
    """
    found = {}
    for name in searches() if budget else ():
        print(f"── search {name}", flush=True)
        path = write_recipe(plan, name, budget, seed)
        given = searching.read_recipe(path, {"run_code": True})
        found[name] = search.search(given, lambda _: None)
        path = search_page.recipe_path(given)
        # What was merged before is of fewer evaluations, where there are more now.
        merge.merge_models(merging.read_recipe(path, {"overwrite": True}))
    return found
