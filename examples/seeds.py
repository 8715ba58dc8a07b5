"""Examples that are run with several seeds: their command line, recipes and rates."""

import argparse
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from examples import results
from pipelines import recipe
from pipelines.recipe import Recipe
from schemas import files

SEEDS = [0, 1, 2]
"""Seeds of the pages."""

PAGE = "docs/results.md"


def parse(
    argv: Sequence[str],
    module: str,
    told: str | None,
    sizes: Collection[str],
    parts: Mapping[str, str],
    *,
    runs_code: bool = False,
) -> argparse.Namespace:
    """Reads the command line, and looks whether it can be done from here.

    Args:
      argv: words of the command.
      module: the example's.
      told: its docstring.
      sizes: that it has.
      parts: of the page, by size; one is written with all seeds, or where the command
        names the page.
      runs_code: whether it runs programs that models write, which the command must
        allow, then.

    Returns:
      `size`, `seeds`, `output` (None: the example's own) and `page` (None: none).

    Raises:
      SystemExit: if the words are wrong, there is no such page or no place on it, or
        this is not the repository's folder.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=told,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--size", choices=tuple(sizes), default="full")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--output", help="folder (default: below runs)")
    parser.add_argument(
        "--page", help=f"page to write into ({PAGE} with all three seeds; tiny: none)"
    )
    if runs_code:
        parser.add_argument(
            "--run_code",
            action="store_true",
            help="let programs that models write run on this machine; it must be given",
        )
    given = parser.parse_args(argv)
    if runs_code and not given.run_code:
        raise SystemExit(
            "error: models are asked for programs, and what they write must be allowed"
            " to run on this machine; pass --run_code, in a container at best"
        )
    if given.page is None and given.size in parts and given.seeds == SEEDS:
        given.page = PAGE
    if given.page is not None and given.size not in parts:
        raise SystemExit(f"error: there is no page of --size {given.size}")
    if not Path(*module.split(".")).with_suffix(".py").exists():
        raise SystemExit("error: run this from the repository's folder")
    if given.page is not None:
        results.read_page(given.page, parts[given.size])
    return given


def write_recipe(given: str, seed: int, output: str) -> str:
    """Writes a recipe with another seed in place of 0, and another folder.

    Args:
      given: path of the recipe.
      seed: takes the place of its seed, which is 0.
      output: takes the place of its folder; gets the recipe.

    Returns:
      The new recipe's path.
    """
    text, folder = Path(given).read_text(), recipe.read(given).output
    made = text.replace(f'"{folder}', f'"{output}')
    made = made.replace("seed = 0", f"seed = {seed}")
    path = files.join(output, "recipe.toml")
    files.write_bytes(path, made.encode())
    return path


def chosen(plan: Recipe) -> dict[str, Any]:
    """Reads what dev chose of each arm's rates, and what it had of them, by arm."""
    return {
        arm.name: files.read_json(files.join(plan.models[arm.name], "choice.json"))
        for arm in plan.arms
        if arm.rates
    }


def tell_rates(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Says which rates dev chose, and what it had of each; `chosen` of every seed."""
    for seed, arms in found.items():
        told = "; ".join(
            f"{arm} {choice['chosen']:g}{_edge(choice)} of "
            + ", ".join(
                f"{r} ({c:.4f})" for r, c in choice["dev_bits_per_byte"].items()
            )
            for arm, choice in arms.items()
        )
        yield f"Seed {seed}, by bits per byte over all on dev: {told}."


def _edge(choice: Mapping[str, Any]) -> str:
    """Says where a rate is the least or greatest that was tried."""
    tried = [float(rate) for rate in choice["dev_bits_per_byte"]]
    return " (an edge)" if choice["chosen"] in (min(tried), max(tried)) else ""
