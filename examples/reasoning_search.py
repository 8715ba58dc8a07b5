"""Searches the weights with which what is fused merges with experts of its make.

The objective is the mean of bits per byte over skills, less the share of items that are
answered, of the split `search`, in which there is no item of two skills.
"""

from typing import Any

from examples import skills
from examples.skills import SINGLE
from pipelines import card, merge, merging, search, search_page, searching
from pipelines.recipe import Recipe
from schemas import files

MERGED = "fused_ties"
"""Merge of the recipe whose models are merged here, too."""


def write_recipe(plan: Recipe, method: str, budget: int, seed: int) -> str:
    """Writes the recipe of a search of the merge of `MERGED`; returns its path."""
    names = next(one.models for one in plan.merges if one.name == MERGED)
    place = plan.folder("searches", method)
    asked = plan.folder("inputs", "asked")
    told = {
        "windows": plan.folder("windows", "search"),
        "report": plan.folder("windows", "report"),
        "output": files.join(place, "search"),
        "budget": budget,
        "groups": 2,
        "max_new_tokens": 160,
        "run_code": True,
        "seed": seed,
        "device": "cpu",
    }
    made = {
        "models": {name.rpartition(".")[2]: plan.places[name] for name in names},
        "base": plan.target,
        "method": method,
        "output": merged(plan, method),
    }
    lines = [card.merge_table(made, ()), "[search]"]
    lines += [f"{key} = {card.toml(value)}" for key, value in told.items()]
    for skill in SINGLE:
        lines += ["", f"[search.tasks.{skill}]"]
        for split in ("search", "report"):
            path = files.join(asked, f"{split}.{skill}.jsonl")
            lines.append(f"{split} = {card.toml(path)}")
        lines.append(f"answer_after = {card.toml(skills.MARK)}")
        lines.append("chat_prompts = true")
    path = files.join(place, "recipe.toml")
    files.write_bytes(path, ("\n".join(lines) + "\n").encode())
    return path


def merged(plan: Recipe, method: str) -> str:
    """Returns the folder of the merge that a search has found."""
    return plan.folder("searches", method, "merged")


def run(plan: Recipe, budget: int, seed: int) -> dict[str, Any]:
    """Searches with every method, and makes the merge that it has found.

    Args:
      plan: the recipe, whose models are made.
      budget: evaluations of each arm; 0 for no search.
      seed: of the searches.

    Returns:
      The result of each search, by method.
    """
    found = {}
    for method in searching.METHODS if budget else ():
        print(f"── search {method}", flush=True)
        path = write_recipe(plan, method, budget, seed)
        given = searching.read_recipe(path, {})
        found[method] = search.search(given, lambda _: None)
        merge.merge_models(merging.read_recipe(search_page.recipe_path(given), {}))
    return found
