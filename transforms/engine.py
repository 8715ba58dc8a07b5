"""Runs a model over windows' tokens, batch by batch, and keeps what is to be kept.

    engine = Engine(model, top_k=10, n_ids=tokenizer.size)
    for ran in engine.run(rows):
        ran.rows, ran.kept          # in the order of the rows where `engine.packs`

It knows neither text nor files: `transforms.scorer` makes rows of windows, and scores
of what comes back. Whatever else runs models may stand in its place.
"""

import dataclasses
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from schemas.shapes import Float, Int64
from transforms import causal, logits
from transforms.functional import batches
from transforms.logits import Kept

_CHUNK = 512
"""Positions whose logits exist at once: fewer make the head's product slower."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """The tokens of a window.

    Attributes:
      place: its number among all rows of a run.
      token_ids: (t + 1,) int32, t at least 1; each but the first is predicted.
      chances: (t, r) float64 in [0, 1), which decide the draws of each position.
    """

    place: int
    token_ids: np.ndarray
    chances: np.ndarray

    def __len__(self) -> int:
        """Counts the tokens that the model reads: all but the last."""
        return len(self.token_ids) - 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ran:
    """What became of some rows.

    Attributes:
      rows: the rows.
      kept: what is kept of each, or None where memory does not hold it alone.
      halved: how many batches were cut in two to get so far, since the last `Ran`.
    """

    rows: Sequence[Row]
    kept: Sequence[Kept | None]
    halved: int


@runtime_checkable
class Runs(Protocol):
    """What runs a model over rows of tokens; threads may share it.

    Attributes:
      width: token ids are below it.
      longest: tokens that it can read, or None where nothing bounds them.
    """

    width: int
    longest: int | None

    def run(self, rows: Iterable[Row]) -> Iterator[Ran]:
        """Runs the model over rows, each of them once, in any order."""
        ...


class Engine:
    """A causal language model of transformers, run in batches; threads may share it.

    Attributes:
      width: logits at each position; token ids are below it.
      longest: tokens that it can read, or None where nothing bounds them.
    """

    def __init__(
        self,
        model: Any,
        *,
        n_ids: int,
        top_k: int = 10,
        batch_tokens: int = 4096,
    ) -> None:
        """Wraps a loaded model.

        Args:
          model: a causal language model of transformers, in evaluation mode.
          n_ids: ids from it on are never kept.
          top_k: entries to keep for each position; 0 = none, which is faster.
          batch_tokens: tokens of a forward pass, padding included.

        Raises:
          ValueError: if the model is not causal.
        """
        self._halves = causal.Halves(model)
        self.width = self._halves.width
        self.longest = causal.longest_input(model)
        self._n_ids = min(self.width, n_ids)
        self._k = top_k
        self._batch_tokens = batch_tokens
        self._lock = threading.Lock()

    def run(self, rows: Iterable[Row]) -> Iterator[Ran]:
        """Runs the model over rows, each of them once.

        Batches are a pure function of the rows' lengths. One that memory does not hold
        is cut in two, down to one row.
        """
        halved, too_large = 0, float("inf")
        for planned in self._plan(rows):
            waiting = [planned]
            while waiting:
                batch = waiting.pop()
                size = len(batch) * max(map(len, batch))
                kept: list[Kept] | None = None
                if len(batch) == 1 or size < too_large:
                    kept = self._run_batch(batch)
                if kept is None and len(batch) > 1:
                    too_large = min(too_large, size)
                    middle = len(batch) // 2
                    waiting += [batch[middle:], batch[:middle]]
                    halved += 1
                    continue
                yield Ran(rows=batch, kept=kept or [None], halved=halved)
                halved = 0

    def _plan(self, rows: Iterable[Row]) -> Iterator[list[Row]]:
        """Groups rows into batches."""
        known = list(rows)
        for batch in batches.plan_batches(list(map(len, known)), self._batch_tokens):
            yield [known[place] for place in batch]

    def _run_batch(self, batch: Sequence[Row]) -> list[Kept] | None:
        """Runs the model over one batch; None where memory does not hold it."""
        try:
            with self._lock:
                kept = self._forward(batch)
        except (RuntimeError, MemoryError) as error:
            if not causal.is_out_of_memory(error):
                raise
            kept = None
        if kept is None:  # the error, which held on to the tensors, is gone
            if self._halves.device.type == "cuda":
                torch.cuda.empty_cache()
            return None
        return logits.split(kept, np.cumsum([len(row) for row in batch]))

    @torch.inference_mode()
    def _forward(self, batch: Sequence[Row]) -> Kept:
        """Keeps what is to be kept of all positions of a batch, row after row."""
        device = self._halves.device
        gold = np.concatenate([row.token_ids[1:] for row in batch])
        decide = np.concatenate([row.chances for row in batch])
        fields = (
            self._features([row.token_ids[:-1] for row in batch]),
            torch.from_numpy(gold).long().to(device),
            torch.from_numpy(decide).to(device),
        )
        parts = zip(*(torch.split(field, _CHUNK) for field in fields), strict=True)
        return logits.to_arrays(
            [
                logits.reduce_logits(
                    self._halves.logits(part), next_ids, chance, self._n_ids, self._k
                )
                for part, next_ids, chance in parts
            ]
        )

    def _features(self, rows: Sequence[np.ndarray]) -> Float[torch.Tensor, "p f"]:
        """Runs the model's body over rows; returns what it makes of each position."""
        device = self._halves.device
        ids, real = _padded(rows)
        features = self._halves.features(ids.to(device)).flatten(0, 1)
        return features if real.all() else features[real.flatten().to(device)]


def _padded(
    rows: Sequence[np.ndarray],
) -> tuple[Int64[torch.Tensor, "b t"], torch.Tensor]:
    """Pads rows on the right to the longest; says which tokens are real."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.empty(len(rows), int(lengths.max()), dtype=torch.int64)
    for into, row in zip(ids, rows, strict=True):
        into[: len(row)] = torch.from_numpy(row)
        # Padding weighs 0 in front of it, but 0 * NaN is NaN: where a token is
        # broken, as it may be, its own window should break and no other.
        into[len(row) :] = int(row[-1])
    return ids, torch.arange(ids.shape[1]) < lengths[:, None]
