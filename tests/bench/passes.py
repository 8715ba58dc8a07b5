"""Ways to go over the same batches of windows with one engine, whole or in part."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.bench import gpu
from transforms.engine import Engine, Row

Batch = Sequence[Row]
Ways = dict[str, Callable[[], Any]]


class Passes:
    """The ways to go over the same batches of windows with one engine."""

    def __init__(self, engine: Engine, rows: Sequence[Row]) -> None:
        """Plans the batches as the engine does."""
        self._engine, self._rows = engine, rows
        self._batches: list[Batch] = [*engine.plan(rows)]
        device = engine.halves.device
        self._gold = [
            torch.from_numpy(np.concatenate([row.token_ids[1:] for row in batch]))
            .long()
            .to(device)
            for batch in self._batches
        ]
        self._none = torch.empty(1, 0, dtype=torch.float64, device=device)

    def ways(self) -> Ways:
        """Returns the ways by name."""
        head = self._engine.halves.logits
        return {
            "body": self._over(lambda features, gold: None),
            "bare": self._over(lambda features, gold: head(features)),
            "chunked": self._over(lambda features, gold: self._head(features)),
            "reduced": self._over(self._reduce),
            "scored": self.score,
        }

    @torch.inference_mode()
    def head_extra_bytes(self) -> int | None:
        """Returns what head and reduction hold above features of the first batch."""
        features = self._features(self._batches[0])
        gpu.release()
        before = gpu.held_bytes()
        peak = gpu.peak_bytes(lambda: self._reduce(features, self._gold[0]))
        return None if peak is None else peak - before

    def score(self) -> None:
        """Does all that the engine does; what comes back is let go of."""
        for ran in self._engine.run(self._rows):
            assert None not in ran.kept, "memory must hold each window"

    def _over(self, after: Callable[[Tensor, Tensor], Any]) -> Callable[[], None]:
        """Makes a pass of the body over all batches, and of something after each."""

        @torch.inference_mode()
        def go() -> None:
            for batch, gold in zip(self._batches, self._gold, strict=True):
                after(self._features(batch), gold)

        return go

    def _features(self, batch: Batch) -> Tensor:
        return self._engine.way.features([row.token_ids[:-1] for row in batch])

    def _head(self, features: Tensor) -> None:
        for part in torch.split(features, self._engine.chunk):
            self._engine.halves.logits(part)

    def _reduce(self, features: Tensor, gold: Tensor) -> list[Any]:
        head, reduce = self._engine.halves.logits, self._engine.reduction.reduce
        fields = (features, gold, self._none.expand(len(gold), 0))
        chunk = self._engine.chunk
        parts = zip(*(torch.split(field, chunk) for field in fields), strict=True)
        return [reduce(head(part), *rest) for part, *rest in parts]
