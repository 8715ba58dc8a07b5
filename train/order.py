"""In which order rows are trained on: a function of (fingerprint, seed, epoch) alone.

Row groups are permuted, then rows are permuted within blocks of row groups. A reader
that holds one block therefore reads every group once an epoch, however large the data;
where all groups fit in one block, the order is a plain permutation of the rows.

The whole run is one stream: epoch after epoch, cut into steps of equal size. Nothing
but the number of steps done is needed to go on, on however many processes.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int64

BLOCK_GROUPS = 64
"""Row groups among which rows are permuted, and which a reader keeps."""


def permute_rows(
    group_rows: Int64[np.ndarray, " g"], fingerprint: str, seed: int, epoch: int
) -> Int64[np.ndarray, " n"]:
    """Returns the order of an epoch: every row once.

    Args:
      group_rows: how many rows each row group holds; n in all.
      fingerprint: that of the data.
      seed: of the run.
      epoch: counted from 0.
    """
    words = f"{fingerprint} {seed} {epoch}".encode()
    key = int.from_bytes(hashlib.blake2b(words, digest_size=16).digest())
    random = np.random.Generator(np.random.Philox(key=key))
    starts = np.cumsum(group_rows) - group_rows
    groups = random.permutation(len(group_rows))
    order = np.zeros(0, np.int64)
    blocks = [order]
    for at in range(0, len(groups), BLOCK_GROUPS):
        chosen = groups[at : at + BLOCK_GROUPS]
        rows = [np.arange(group_rows[g]) + starts[g] for g in chosen]
        blocks.append(random.permutation(np.concatenate(rows)))
    return np.concatenate(blocks)


class StepBatches(torch.utils.data.Sampler[list[int]]):
    """Batches of one process: `accumulation` for each optimizer step.

    Row r of step s is number s * step_rows + r of the stream, whatever the number of
    processes; the last step is filled from the epoch after the last. A run that goes on
    after `start` steps computes no order of epochs it has left behind.
    """

    def __init__(
        self,
        group_rows: Int64[np.ndarray, " g"],
        fingerprint: str,
        seed: int,
        *,
        steps: int,
        start: int = 0,
        step_rows: int,
        accumulation: int = 1,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        if step_rows % (accumulation * processes):
            raise ValueError(
                f"batch_size must be a multiple of accumulation x processes ="
                f" {accumulation} x {processes}, got {step_rows}"
            )
        self._group_rows = group_rows
        self._key = fingerprint, seed
        self._steps, self._start, self._accumulation = steps, start, accumulation
        self._process, self._processes = process, processes
        self._batch_rows = step_rows // (accumulation * processes)

    def __len__(self) -> int:
        """Counts the batches of the whole run, those before `start` among them."""
        return self._steps * self._accumulation

    def __iter__(self) -> Iterator[list[int]]:
        """Yields the batches of the run from step `start` on."""
        total, epoch = int(self._group_rows.sum()), -1
        order = np.zeros(0, np.int64)
        for batch in range(self._start * self._accumulation, len(self)):
            start = (batch * self._processes + self._process) * self._batch_rows
            rows = []
            for place in range(start, start + self._batch_rows):
                if place // total != epoch:
                    epoch = place // total
                    order = permute_rows(self._group_rows, *self._key, epoch)
                rows.append(int(order[place % total]))
            yield rows
