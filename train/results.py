"""What a run came to, as its card tells it: no speeds, which no two runs share."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from train.metrics import Line

_BITS = "eval/bits_per_byte/"
_FIGURES = {
    "train/loss": "loss, nats",
    "train/clm_nats": "CLM loss, nats a position",
    "train/fusion_nats": "fusion loss, nats a position",
    "train/agreement": "agreement with the fused rows",
    "train/coverage": "positions with a fused row",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Figures of the weights that are published.

    Attributes:
      step: the optimizer step that they are of.
      trained: the last line of metrics up to there.
      before: bits per byte on held-out text by domain, of the target as it came; empty
        if it was not measured.
      after: the same of the weights.
    """

    step: int
    trained: Line
    before: Mapping[str, float]
    after: Mapping[str, float]


def read(path: pathlib.Path, step: int) -> Results:
    """Reads the results of the weights after a step from a file of metrics."""
    lines: list[Line] = [json.loads(line) for line in path.read_text().splitlines()]
    trained = [ln for ln in lines if "train/loss" in ln and ln["step"] <= step]
    return Results(
        step=step,
        trained=trained[-1] if trained else {},
        before=_bits(lines, 0),
        after=_bits(lines, step),
    )


def _bits(lines: list[Line], step: int) -> dict[str, float]:
    return {
        name.removeprefix(_BITS): value
        for line in lines
        if line["step"] == step
        for name, value in line.items()
        if name.startswith(_BITS)
    }


def section(results: Results, counts: Mapping[str, Any]) -> str:
    """Writes the card's section."""
    rows = [
        f"| {told} | {results.trained[name]:.4f} |"
        for name, told in _FIGURES.items()
        if name in results.trained
    ]
    parts = [
        "## Results",
        "\n".join(["| of the last steps | |", "| --- | --- |", *rows]),
    ]
    if "best_step" in counts:
        parts.append(
            f"The weights are those after step {results.step:,} of {counts['steps']:,}:"
            " the evaluation there had the fewest bits per byte on held-out text."
        )
    if results.after:
        bits = [
            f"| {domain} | {_told(results.before.get(domain))} | {after:.4f} |"
            for domain, after in results.after.items()
        ]
        head = ["| bits per byte, held out | before | after |", "| --- | --- | --- |"]
        parts.append("\n".join([*head, *bits]))
    return "\n\n".join(parts)


def _told(before: float | None) -> str:
    """Spells a figure; of a run that was begun without held-out text there is none."""
    return "-" if before is None else f"{before:.4f}"
