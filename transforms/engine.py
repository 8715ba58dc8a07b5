"""Runs a model over windows' tokens, batch by batch, and keeps what is to be kept.

    engine = Engine(model, top_k=10, n_ids=tokenizer.size)
    for ran in engine.run(rows):
        ran.rows, ran.kept          # in the order of the rows where `engine.packs`

It knows neither text nor files: `transforms.scorer` makes rows of windows, and scores
of what comes back. Whatever else runs models may stand in its place.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from transforms import causal, logits, packing, reduction, transfers
from transforms.functional.nucleus import Nucleus
from transforms.logits import Kept

logger = logging.getLogger(__name__)


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
      layout: how rows are laid into batches.
      reducer: what reduces logits to what is kept; results depend, in their last bits,
        on it and on the layout.
    """

    width: int
    longest: int | None
    layout: str
    reducer: str

    @property
    def broken(self) -> bool:
        """Whether the model has failed for good, and must be loaded anew."""
        ...

    def run(self, rows: Iterable[Row]) -> Iterator[Ran]:
        """Runs the model over rows, each of them once, in any order."""
        ...

    def close(self) -> None:
        """Lets go of what is held beside the model, which goes with its engine."""
        ...


_Running = Callable[[], Ran]


@functools.cache  # once for each, however many engines there are
def _tell_uncut(model: str, positions: int) -> None:
    logger.warning(
        "the head of a %s does not run apart from its body: logits of all tokens of a"
        " batch exist at once, so that batches are of %d tokens at most; those of a"
        " longer window take more memory in proportion",
        model,
        positions,
    )


def _ran(
    batch: Sequence[Row], kept: Callable[[], list[Kept]] | None, halved: int
) -> Ran:
    """Waits for a batch."""
    return Ran(rows=batch, kept=kept() if kept else [None], halved=halved)


class Engine:
    """A causal language model of transformers, run in batches; threads may share it.

    Engines of one model take turns.

    Attributes:
      halves: the model.
      width: logits at each position; token ids are below it.
      longest: tokens that it can read, or None where nothing bounds them.
      way: how rows are laid into batches.
      reduction: how logits are reduced.
      chunk: positions whose logits exist at once.
      broken: never; what fails of one batch does not keep others from running.
    """

    broken = False

    def __init__(
        self,
        model: Any,
        *,
        n_ids: int,
        top_k: int = 10,
        chosen: Nucleus | None = None,
        batch_tokens: int = 4096,
        packed: bool = True,
        kernels: bool = True,
        compiled: bool = False,
    ) -> None:
        """Wraps a loaded model.

        Args:
          model: a causal language model of transformers, in evaluation mode.
          n_ids: ids from it on are never kept.
          top_k: entries to keep for each position; 0 = none, which is faster.
          chosen: which of them to keep; None = all.
          batch_tokens: tokens of a forward pass, padding included.
          packed: whether rows are laid end to end, where the model takes that.
          kernels: whether Triton's kernels may be used, where they can; not for rows
            with chances.
          compiled: whether torch compiles the model and what reduces its logits, which
            takes minutes at the first batch.

        Raises:
          ValueError: if the model is not causal.
        """
        self._lock = causal.lock_of(model)
        with self._lock:
            self.halves = causal.Halves(model)
            self.way = packing.choose(self.halves, packed=packed)
        self.width = self.halves.width
        self.longest = causal.longest_input(model)
        self.layout: str = self.way.name
        if compiled:
            self.halves.compile()
        device, k = self.halves.device, top_k
        self.reduction = reduction.choose(
            device,
            self.halves.dtype,
            self.width,
            n_ids=min(self.width, n_ids),
            k=k,
            chosen=chosen,
            kernels=kernels,
            compiled=compiled,
        )
        self.reducer: str = self.reduction.name
        held = self.reduction.bytes_a_logit
        self.chunk = logits.positions_at_once(self.width, k, device, held)
        self._batch_tokens = batch_tokens
        if not self.halves.cut:
            fit = logits.positions_that_fit(self.width, k, held)
            self._batch_tokens = min(batch_tokens, fit)
            _tell_uncut(type(model).__name__, fit)

    def close(self) -> None:
        """Does nothing: the engine holds nothing but the model."""

    def run(self, rows: Iterable[Row]) -> Iterator[Ran]:
        """Runs the model over rows, each of them once.

        Batches are a pure function of the rows' lengths. One that memory does not hold
        is cut in two, down to one row. While the caller deals with a batch, and the
        one before is copied, a GPU is at the next already.
        """
        running: _Running | None = None
        for launched in self._launched(rows):
            if running is not None:
                yield running()
            running = launched
        if running is not None:
            yield running()

    def _launched(self, rows: Iterable[Row]) -> Iterator[_Running]:
        """Yields batches that the device has been given, each as what awaits it."""
        halved, too_large = 0, float("inf")
        for planned in self.plan(rows):
            waiting = [planned]
            while waiting:
                batch = waiting.pop()
                size = self.way.size([len(row) for row in batch])
                kept: Callable[[], list[Kept]] | None = None
                if len(batch) == 1 or size < too_large:
                    kept = self._run_batch(batch)
                if kept is None and len(batch) > 1:
                    too_large = min(too_large, size)
                    middle = len(batch) // 2
                    waiting += [batch[middle:], batch[:middle]]
                    halved += 1
                    continue
                yield functools.partial(_ran, batch, kept, halved)
                halved = 0

    def plan(self, rows: Iterable[Row]) -> Iterator[list[Row]]:
        """Groups rows, as they come, into the batches that `run` makes of them."""
        seen: dict[int, Row] = {}

        def lengths() -> Iterator[int]:
            for number, row in enumerate(rows):
                seen[number] = row
                yield len(row)

        for places in self.way.plan(lengths(), self._batch_tokens):
            yield [seen.pop(place) for place in places]

    def _run_batch(self, batch: Sequence[Row]) -> Callable[[], list[Kept]] | None:
        """Starts the model on a batch; None where memory does not hold it.

        Returns:
          A function that waits for what is kept of each row.
        """
        try:
            with self._lock:
                wait = self._forward(batch)
        except (RuntimeError, MemoryError) as error:
            if not causal.is_out_of_memory(error):
                raise
            wait = None
        if wait is None:  # the error, which held on to the tensors, is gone
            if self.halves.device.type == "cuda":
                torch.cuda.empty_cache()
            return None
        ends = np.cumsum([len(row) for row in batch])
        return lambda: logits.split(wait(), ends)

    @torch.inference_mode()
    def _forward(self, batch: Sequence[Row]) -> Callable[[], Kept]:
        """Starts the model on a batch; returns what waits for all of its positions."""
        gold = np.concatenate([row.token_ids[1:] for row in batch])
        decide = np.concatenate([row.chances for row in batch])
        features = self.way.features([row.token_ids[:-1] for row in batch])
        fields = (
            features,
            transfers.upload(torch.from_numpy(gold).long(), features.device),
            transfers.upload(torch.from_numpy(decide), features.device),
        )
        parts = zip(*(torch.split(field, self.chunk) for field in fields), strict=True)
        return logits.fetch(
            [
                self.reduction.reduce(self.halves.logits(part), next_ids, chance)
                for part, next_ids, chance in parts
            ]
        )
