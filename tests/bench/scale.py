"""Shows that time grows with the corpus and memory does not: prepare, score, fuse.

    python -m tests.bench.scale                    all points, then the page (hours)
    python -m tests.bench.scale --factors 1 3      these sizes of the corpus
    python -m tests.bench.scale --documents 1000   these numbers of tiny slices
    python -m tests.bench.scale --page             the page and the plot alone

A point is a made-up corpus (`tests.bench.scale_corpus`); each step on it runs in a
process of its own. Scores are made up too, by real tokenizers and the product's own
writer: `tests.bench.scale_stub`. What a step took is appended to figures.jsonl at once,
and is not measured again until its line is removed. The page is computed from that file
alone.

Seconds are those of the processor, user and system, so that what else a machine does
counts little; where two threads share a core it still counts.
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from schemas import files
from tests.bench import scale_corpus
from tests.bench.scale_corpus import Shape

FACTORS = (1, 3, 10, 30, 100)
DOCUMENTS = (1_000, 3_000, 10_000)
FIGURES = "figures.jsonl"
DOING = "doing"
"""Stands in a point's folder during a step: one that was stopped has done a part of its
work, which would be skipped and not measured, so that the point begins anew."""
CORPUS_STEPS = ("prepare", "score target", "score source", "fuse")
SLICES_STEPS = (
    *("prepare", "do all slices", "one of an array", "skip all, describe"),
    "whole already",
)
"""Steps in their order: each needs what those before it have written."""

FORETOLD = (1, 10, 100)
"""Sizes of the corpus that `fusebeam plan` is asked about, too."""


def shapes(factors: Sequence[float], documents: Sequence[int]) -> Iterator[Shape]:
    """Yields the points: the same slices of more text, and more slices of one line."""
    for factor in factors:
        yield Shape(factor=factor, group_windows=32, slice_bytes=100_000)
    for number in documents:
        yield Shape(documents=number, group_windows=1, slice_bytes=1)


def measure(shape: Shape, output: Path) -> None:
    """Measures the steps of a point that have not been measured, one after another."""
    figures = output / FIGURES
    steps = CORPUS_STEPS if shape.factor is not None else SLICES_STEPS
    if shape.factor in FORETOLD:
        steps = ("plan", *steps)
    known = {f["step"] for f in read(figures) if f["shape"] == _shape(shape)}
    if known >= set(steps):
        return
    folder = output / f"{shape.factor or shape.documents:g}"
    if not (folder / "text_bytes").exists() or (folder / DOING).exists():
        shutil.rmtree(folder, ignore_errors=True)
        text_bytes = scale_corpus.make(folder, shape)
        (folder / "text_bytes").write_text(str(text_bytes))
        known = set()  # what was measured lies here no more, and the rest needs it
    for step in steps:
        if step in known:
            continue
        print(f"── {folder.name}: {step}", flush=True)
        (folder / DOING).touch()
        taken = _run(folder, step)
        found = {
            "shape": _shape(shape),
            "step": step,
            "text_bytes": int((folder / "text_bytes").read_text()),
            **taken,
            **_made(folder, step),
        }
        with figures.open("a") as file:
            file.write(json.dumps(found) + "\n")
        (folder / DOING).unlink()
        print(
            f"   {taken['cpu_s']:.1f} s of processor, {taken['wall_s']:.1f} s,"
            f" {taken['peak_bytes'] / 1e6:,.0f} MB",
            flush=True,
        )
    shutil.rmtree(folder)


def _shape(shape: Shape) -> dict[str, Any]:
    return dataclasses.asdict(shape)


def _run(folder: Path, step: str) -> dict[str, Any]:
    """Runs a step in a process of one thread each for arithmetic and tokenizers."""
    result = folder / "taken.json"
    command = [sys.executable, "-m", "tests.bench.scale_step"]
    one = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    with (folder / "log.txt").open("a") as log:
        subprocess.run(
            [*command, str(folder), step, str(result)],
            env={**os.environ, **one},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )
    return dict(json.loads(result.read_text()))


def _made(folder: Path, step: str) -> dict[str, Any]:
    """Returns what a step has written, or foretold."""
    if step == "plan":
        found = files.read_json(str(folder / "plan.json"))["sizes"][0]
        return {"foretold": {"volume": found["volume"], "stages": found["stages"]}}
    places = {
        "prepare": "windows/fusion",
        "fuse": "fused",
        "score source": f"scores/{scale_corpus.SOURCE}",
    }
    place = folder / "run" / places.get(step, "scores/target")
    made = place / "manifest.json"
    if not made.exists():
        return {}
    manifest = files.read_json(str(made))
    return {
        "bytes": sum(entry["bytes"] for entry in manifest["files"]),
        "files": len(manifest["files"]),
        "counts": {
            name: manifest["counts"][name]
            for name in ("windows", "tokens")
            if name in manifest["counts"]
        },
    }


def read(figures: Path) -> list[dict[str, Any]]:
    """Reads what has been measured; a line that stands twice counts the second time."""
    if not figures.exists():
        return []
    found = map(json.loads, figures.read_text().splitlines())
    last = {(json.dumps(f["shape"]), f["step"]): f for f in found}
    return list(last.values())


def main(argv: Sequence[str]) -> None:
    """Measures what is missing, and writes the page and the plot."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--factors", nargs="*", type=float)
    parser.add_argument("--documents", nargs="*", type=int)
    parser.add_argument("--page", action="store_true", help="measure nothing")
    parser.add_argument("--output", default="runs/scale", help="folder of the figures")
    given = parser.parse_args(argv)
    output = Path(given.output).resolve()
    output.mkdir(parents=True, exist_ok=True)
    if given.factors is None and given.documents is None:
        given.factors, given.documents = FACTORS, DOCUMENTS
    if not given.page:
        for shape in shapes(given.factors or (), given.documents or ()):
            measure(shape, output)
    from tests.bench import scale_page  # loads much, which the steps have no need of

    scale_page.write(read(output / FIGURES))


if __name__ == "__main__":
    main(sys.argv[1:])
