"""Examples that are run with several seeds: their command line, and a seed's recipe."""

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path

from pipelines import recipe
from schemas import files

SEEDS = [0, 1, 2]
"""Seeds of the pages."""

PAGE = "docs/results.md"


def parse(
    argv: Sequence[str],
    module: str,
    told: str | None,
    sizes: Sequence[str],
    paged: Collection[str] = ("full",),
) -> argparse.Namespace:
    """Reads the command line, and looks whether it can be done from here.

    Args:
      argv: words of the command.
      module: the example's.
      told: its docstring.
      sizes: that it has.
      paged: those with a part on the page, which is written with all seeds, or where
        the command names it.

    Returns:
      `size`, `seeds`, `output` (None: the example's own) and `page` (None: none).

    Raises:
      SystemExit: if the words are wrong, there is no such page, or this is not the
        repository's folder.
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
    given = parser.parse_args(argv)
    if given.page is None and given.size in paged and given.seeds == SEEDS:
        given.page = PAGE
    if given.page is not None and given.size not in paged:
        raise SystemExit(f"error: there is no page of --size {given.size}")
    if not Path(*module.split(".")).with_suffix(".py").exists():
        raise SystemExit("error: run this from the repository's folder")
    if given.page is not None and not Path(given.page).exists():
        raise SystemExit(f"error: --page must be there already, got {given.page}")
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
