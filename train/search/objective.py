"""What a search minimizes, and the splits that it is measured on.

    J = sum_d a_d B_d / sum_d a_d - sum_t b_t A_t

with B_d the bits per byte of domain d, and A_t the share of items of task t that are
answered. So a domain counts by its weight and not by its bytes; a task's weight b_t
says how many bits per byte all of its items are worth.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from schemas import files, manifest, plan, windows
from schemas.errors import FusionError, SchemaError
from schemas.windows import Window
from train import evaluate
from train.search import answers, tasks
from train.search.answers import Item
from train.search.tasks import Task
from train.search.trials import DEAD, Found
from transforms.scorer import Scored, Scorer
from transforms.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """How what was measured becomes one number.

    Attributes:
      domains: weight of each domain; empty: 1 for each that there is.
      tasks: weight of each task.
    """

    domains: Mapping[str, float]
    tasks: Mapping[str, float]

    def __post_init__(self) -> None:
        """Refuses weights that make no mean."""
        for kind in ("domains", "tasks"):
            for name, weight in getattr(self, kind).items():
                if not (math.isfinite(weight) and weight >= 0):
                    raise ValueError(
                        f"the weight of {name!r} in {kind} must be a number of at least"
                        f" 0, got {weight}"
                    )
        if self.domains and not math.fsum(self.domains.values()):
            raise ValueError("one domain at least must have a weight above 0")

    def of(self, bits: Mapping[str, float], accuracy: Mapping[str, float]) -> float:
        """Returns J; NaN or infinite where a part is.

        Raises:
          SchemaError: if a domain has a weight and no windows, or windows and none.
        """
        weights = self.domains or dict.fromkeys(bits, 1.0)
        if forgotten := sorted(bits.keys() - weights.keys()):
            raise SchemaError(
                f"[search.domains] must give every domain that has windows a weight,"
                f" {forgotten} have none; write 0 for one that does not count"
            )
        weights = {name: weight for name, weight in weights.items() if weight}
        if lost := sorted(weights.keys() - bits.keys()):
            raise SchemaError(
                f"every domain that has a weight must have windows, {lost} have none;"
                f" there are {', '.join(bits) or 'none'}"
            )
        value = -math.fsum(self.tasks[name] * accuracy[name] for name in accuracy)
        if bits:
            total = math.fsum(weights.values())
            value += math.fsum(weights[name] * bits[name] for name in weights) / total
        return value


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """What is measured on.

    Attributes:
      windows: a windows folder; None where there are only tasks.
      tasks: files of items, by the task's name.
      run_code: whether programs that models write may run, where items ask for them.
    """

    windows: str | None
    tasks: Mapping[str, str]
    run_code: bool = False

    def inputs(self) -> dict[str, str]:
        """Returns the fingerprints of all that it holds."""
        found = {f"task:{name}": files.checksum(p) for name, p in self.tasks.items()}
        if self.windows is not None:
            made = manifest.read(self.windows, windows.STAGE)
            found["windows"] = made.fingerprint
        return found

    def items(self) -> dict[str, tuple[Item, ...]]:
        """Reads the items of all tasks.

        Raises:
          SchemaError: if a line is no item, or asks for a program that may not run.
        """
        return {
            name: answers.read(path, run_code=self.run_code)
            for name, path in self.tasks.items()
        }


def refuse_overlap(search: Split, report: Split) -> None:
    """Looks whether what is reported on was searched on.

    Raises:
      SchemaError: if a document, or a window's text, or a prompt is in both; says how
        many, and where the first is.
    """
    if search.windows is not None and report.windows is not None:
        _refuse_windows(search.windows, report.windows)
    mine, theirs = search.items(), report.items()
    seen = {one.prompt.strip(): name for name, many in mine.items() for one in many}
    for name, items in theirs.items():
        both = [
            place for place, one in enumerate(items, 1) if one.prompt.strip() in seen
        ]
        if both:
            first = seen[items[both[0] - 1].prompt.strip()]
            raise SchemaError(
                f"a search and its report must be on different items, but"
                f" {len(both)} of {len(items)} prompts of {report.tasks[name]} are in"
                f" {search.tasks[first]}, too, the first as item {both[0]}; part the"
                " items anew"
            )


def _refuse_windows(search: str, report: str) -> None:
    documents, texts = set(), set()
    for window in _all(search):
        documents.add(window.doc_id)
        texts.add(_digest(window))
    for window in _all(report):
        if window.doc_id in documents or _digest(window) in texts:
            what = "document" if window.doc_id in documents else "text"
            raise SchemaError(
                f"a search and its report must be on different documents, but the"
                f" {what} of window {window.window_id} of {report} is in {search}, too;"
                " name two splits of one fusebeam prepare, which parts documents, and"
                " leave copies out of the corpus"
            )


def _all(folder: str) -> Iterable[Window]:
    return windows.read_all(folder, plan.read(folder))


def _digest(window: Window) -> bytes:
    return hashlib.blake2b(window.text.encode(), digest_size=16).digest()


def measure(
    model: Any,
    tokenizer: Tokenizer,
    split: Split,
    asked: Mapping[str, Task],
    objective: Objective,
    *,
    batch_tokens: int,
    max_new_tokens: int,
) -> Found:
    """Measures a model on a split.

    Args:
      model: a causal language model, in evaluation mode.
      tokenizer: its tokenizer.
      split: what it is measured on.
      asked: its tasks, by name.
      objective: what is made of it.
      batch_tokens: tokens of a forward pass, with padding.
      max_new_tokens: most tokens of a response to a task's item.

    Returns:
      What it came to; it is dead where a window could not be scored.

    Raises:
      FusionError: if memory does not hold a window, which says nothing of the model.
      SchemaError: if the windows are corrupt.
    """
    bits: dict[str, float] = {}
    if split.windows is not None:
        scoring = _Scorer(model, tokenizer, top_k=0, batch_tokens=batch_tokens)
        sums = evaluate.measure(scoring, split.windows, lambda _: None)
        if any(domain["failed"] for domain in sums.values()):
            return dead(_failed(sums))
        bits = evaluate.bits_per_byte(sums)
        del bits[evaluate.ALL]  # the objective weighs domains by itself
    accuracy = {
        name: tasks.accuracy(model, tokenizer, task, max_new_tokens)
        for name, task in asked.items()
    }
    value = objective.of(bits, accuracy)
    return Found(objective=value, bits=bits, accuracy=accuracy)


class _Scorer(Scorer):
    """Scores, and gives up where memory does not do: another time it may."""

    def score(self, windows: Sequence[Window]) -> Scored:
        """Scores windows.

        Raises:
          FusionError: if memory does not hold one of them.
        """
        found = super().score(windows)
        if found.too_large:
            raise FusionError(
                "memory must hold a window at a time, but did not hold"
                f" {found.too_large} of {len(windows)}; end what else takes it, or"
                " choose a smaller dtype, and repeat the command, which goes on from"
                " here"
            )
        return found


def _failed(sums: evaluate.Domains) -> str:
    """Says which windows could not be scored."""
    told = ", ".join(
        f"{one['failed']:,} of {one['windows']:,} of {name}"
        for name, one in sums.items()
    )
    return (
        f"every window must be scored, but these failed: {told}; the logits are not"
        " finite, or the windows do not fit the models' tokenizer and context"
    )


def dead(error: str) -> Found:
    """Returns what a merge came to that could not be made or measured."""
    return Found(objective=DEAD, error=error)
