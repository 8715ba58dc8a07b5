"""In which order rows are trained on: a function of (fingerprint, seed, epoch) alone.

The order of an epoch is a bijection that is computed place by place and never written
down, so going on costs the same after any number of steps and rows::

    rows      |group 0|group 1|group 2|..|group 0 of file 1 ..|   64 each; what files
    groups     permuted over all files                           have left is put end to
    blocks    |64 groups, rows permuted|64 groups, ...|          end and cut, too

So a row may come anywhere in its block, and its group anywhere in the epoch; but a
reader that holds one block reads every group of 64 rows once an epoch, however large
the data, and what a file has left behind them three times at most. A group is what can
be read in one piece. Where all rows fit in one block, the order is a plain permutation.

The whole run is one stream: epoch after epoch, cut into steps of equal size. Nothing
but the number of samples seen is needed to go on, on however many processes.
"""

import hashlib
import math
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Int64

from schemas import fused

GROUP_ROWS = fused.ROW_GROUP_ROWS
"""Rows that lie together in a file and are read together: the row groups of fuse."""

BLOCK_GROUPS = 64
"""Groups among which rows are permuted, and which a reader keeps."""

BLOCK_ROWS = GROUP_ROWS * BLOCK_GROUPS

VERSION = 2
"""Of the order: a run that another one has begun cannot go on."""

Places: TypeAlias = Int64[np.ndarray, " n"]

_ROUNDS = 8


def permute(places: Places, size: int, words: str) -> Places:
    """Permutes [0, size) by a key, each place for itself.

    A generalized Feistel network over [0, a) x [0, b), a b >= size, whose images at or
    above `size` are permuted again until they are below it (cycle walking): as a b -
    size < a, hardly any are.

        x = l + a r;   l <- (l + f(r)) mod a,  r <- (r + f(l)) mod b,  in turns

    Args:
      places: in [0, size).
      size: at least 1.
      words: the key.

    References:
      Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains", methods 2 and 3.
      f is the finalizer of SplitMix64 (Steele et al. 2014, "Fast Splittable
      Pseudorandom Number Generators") under a hash of the key: this shuffles, and
      keeps no secrets.
    """
    digest = hashlib.blake2b(words.encode(), digest_size=8 * _ROUNDS).digest()
    keys = np.frombuffer(digest, "<u8")
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    found = _network(places.astype(np.uint64), a, b, keys)
    while (outside := found >= size).any():
        found[outside] = _network(found[outside], a, b, keys)
    return found.astype(np.int64)


def _network(places: np.ndarray, a: int, b: int, keys: np.ndarray) -> np.ndarray:
    width, height = np.uint64(a), np.uint64(b)
    left: np.ndarray = places % width
    right: np.ndarray = places // width
    for number in range(0, _ROUNDS, 2):
        left = (left + _mixed(right, keys[number]) % width) % width
        right = (right + _mixed(left, keys[number + 1]) % height) % height
    return right * width + left


def _mixed(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """Returns what looks like independent 64-bit numbers, one for each value."""
    z = values ^ key
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Order:
    """The order of a folder's rows, epoch after epoch.

    Attributes:
      rows: how many rows the folder has, and so an epoch.
    """

    def __init__(
        self, file_rows: Int64[np.ndarray, " f"], fingerprint: str, seed: int
    ) -> None:
        """Takes the rows of each file, the fingerprint of the data, and a seed."""
        self.rows = int(file_rows.sum())
        self._key = f"{fingerprint} {seed}"
        self._starts = np.cumsum(file_rows) - file_rows
        self._groups, self._left = file_rows // GROUP_ROWS, file_rows % GROUP_ROWS
        self._group_ends, self._left_ends = (
            np.cumsum(self._groups),
            np.cumsum(self._left),
        )

    def block(self, number: int) -> tuple[int, int]:
        """Returns from which to before which number of the stream a number's block is.

        Example:
          >>> Order(np.array([5000, 192]), "data", 0).block(5192 + 4096)
          (9288, 10384)
        """
        epoch, place = divmod(number, self.rows)
        start = place - place % BLOCK_ROWS
        stop = min(start + BLOCK_ROWS, self.rows)
        return epoch * self.rows + start, epoch * self.rows + stop

    def rows_of(self, start: int, stop: int) -> Places:
        """Returns the rows that numbers in [start, stop) of the stream are.

        Args:
          start: of a block, or within it.
          stop: of the same block.
        """
        epoch, place = divmod(start, self.rows)
        key = f"{self._key} {epoch}"
        block = place // BLOCK_ROWS
        first = block * BLOCK_ROWS
        size = min(BLOCK_ROWS, self.rows - first)
        inside = np.arange(place - first, place - first + stop - start)
        inside = permute(inside, size, f"{key} block {block}")
        return self._found(block, inside, key)

    def _found(self, block: int, inside: Places, key: str) -> Places:
        """Returns the rows of places in a block whose groups are still to permute."""
        whole = self.rows // GROUP_ROWS
        groups = block * BLOCK_GROUPS + inside // GROUP_ROWS
        full = groups < whole  # the last, shorter one stays where it is
        if whole:
            groups[full] = permute(groups[full], whole, f"{key} groups")
        places = groups * GROUP_ROWS + inside % GROUP_ROWS
        in_groups = groups < self._group_ends[-1]
        found = np.empty_like(places)
        found[in_groups] = self._in_groups(places[in_groups])
        rest = places[~in_groups] - self._group_ends[-1] * GROUP_ROWS
        found[~in_groups] = self._in_rest(rest, key)
        return found

    def _in_groups(self, places: Places) -> Places:
        """Returns the rows of places in the files' groups of 64, put end to end."""
        groups = places // GROUP_ROWS
        file = np.searchsorted(self._group_ends, groups, side="right")
        number = groups - (self._group_ends - self._groups)[file]
        return self._starts[file] + number * GROUP_ROWS + places % GROUP_ROWS

    def _in_rest(self, places: Places, key: str) -> Places:
        """Returns the rows of places in what files have left behind their groups.

        Put end to end these begin with another file in every epoch, so that the last
        block, which has what fills no group, has no row always.
        """
        if not len(places):
            return places
        files = len(self._left)
        first = int(permute(np.zeros(1, np.int64), files, f"{key} rest")[0])
        shift = int(self._left_ends[first] - self._left[first])
        places = (places + shift) % int(self._left_ends[-1])
        file = np.searchsorted(self._left_ends, places, side="right")
        inside = places - (self._left_ends - self._left)[file]
        return self._starts[file] + self._groups[file] * GROUP_ROWS + inside


class StepBatches(torch.utils.data.Sampler[list[int]]):
    """Batches of one process: `accumulation` for each optimizer step.

    Row r of step s is sample number s * step_rows + r, whatever the number of
    processes; the last step is filled from the epoch after the last.
    """

    def __init__(
        self,
        *,
        steps: int,
        start: int = 0,
        step_rows: int,
        accumulation: int = 1,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        """Takes how many steps the run has, and how many of them are done."""
        if step_rows % (accumulation * processes):
            raise ValueError(
                f"batch_size must be a multiple of accumulation x processes ="
                f" {accumulation} x {processes}, got {step_rows}"
            )
        self._steps, self._start, self._accumulation = steps, start, accumulation
        self._process, self._processes = process, processes
        self._batch_rows = step_rows // (accumulation * processes)

    def __len__(self) -> int:
        """Counts the batches of the whole run, those before `start` among them."""
        return self._steps * self._accumulation

    def __iter__(self) -> Iterator[list[int]]:
        """Yields the sample numbers of each batch from step `start` on."""
        for batch in range(self._start * self._accumulation, len(self)):
            first = (batch * self._processes + self._process) * self._batch_rows
            yield list(range(first, first + self._batch_rows))
