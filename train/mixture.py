"""The samples of a run, by their numbers, out of one fused folder or several.

    mixture = Mixture([FusedFolder("runs/a"), FusedFolder("runs/b")], seed=42)
    example = mixture[17]

Sample 17 is the same row in every process and at every time. Numbers should be asked
for in rising order: each folder has one block of row groups in memory, and a few groups
of the next.
"""

import dataclasses
import itertools
import logging
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from jaxtyping import Int64

from schemas.errors import SchemaError
from train import data
from train.ahead import Ahead
from train.data import Example
from train.interleave import Interleave
from train.order import GROUP_ROWS, Order
from train.shards import FusedFolder, Group

_THREADS = 4
"""Groups that are read at once, of each folder: a bucket answers slowly."""

logger = logging.getLogger(__name__)


class Mixture(torch.utils.data.Dataset[Example]):
    """The stream of samples.

    Attributes:
      folders: what it is of.
      sources: names of those that the examples' weights are of: of all folders.
    """

    def __init__(
        self,
        folders: Sequence[FusedFolder],
        *,
        seed: int,
        weights: Sequence[Fraction] = (),
        read_ahead: int = 0,
        skip_bad: bool = False,
    ) -> None:
        """Mixes folders.

        Args:
          folders: each data once.
          seed: of the order.
          weights: shares of the samples; by the folders' rows where empty.
          read_ahead: row groups of the next block that each folder's stream may hold,
            read in threads; 0 reads each group when it is asked for.
          skip_bad: whether a corrupt row gives a blank example, and no error.

        Raises:
          SchemaError: if two folders hold the same data.
        """
        known: dict[str, str] = {}
        for folder in folders:
            if (other := known.get(folder.fingerprint)) is not None:
                raise SchemaError(
                    f"data must name each data once, but {other} and {folder.folder}"
                    f" are the same (fingerprint {folder.fingerprint}); name it once,"
                    " and give it the weight of both"
                )
            known[folder.fingerprint] = folder.folder
        self.folders = tuple(folders)
        every = itertools.chain.from_iterable(f.sources for f in folders)
        self.sources = tuple(dict.fromkeys(every))
        self._columns = [[self.sources.index(s) for s in f.sources] for f in folders]
        self._interleave = Interleave(weights or [Fraction(len(f)) for f in folders])
        self._streams = [
            _Stream(folder, seed, read_ahead, skip_bad=skip_bad) for folder in folders
        ]

    def __len__(self) -> int:
        """Counts the samples of an epoch: as many as the folders have rows together."""
        return sum(len(folder) for folder in self.folders)

    def __getitem__(self, number: int) -> Example:
        """Decodes a sample.

        Raises:
          SchemaError: if its row is corrupt; names the file and the row.
        """
        stream, place = self._interleave.place(number)
        return self._of_all_sources(self._streams[stream].example(place), stream)

    def _of_all_sources(self, example: Example, stream: int) -> Example:
        """Gives a folder's example a weight of each source of the mixture."""
        columns = self._columns[stream]
        weights = np.zeros(
            (len(example.segment_lengths), len(self.sources)), np.float32
        )
        if not example.skipped:
            if example.weights.shape[1] != len(columns):
                folder = self.folders[stream]
                raise SchemaError(
                    f"rows of {folder.folder} must have a weight of each source,"
                    f" {list(folder.sources)}, but have {example.weights.shape[1]};"
                    " fuse again"
                )
            weights[:, columns] = example.weights
        return dataclasses.replace(example, weights=weights)

    def close(self) -> None:
        """Ends the threads that read ahead."""
        for stream in self._streams:
            stream.close()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Block:
    """Numbers [start, stop) of a stream, and which rows they are."""

    start: int
    stop: int
    rows: Int64[np.ndarray, " n"]


class _Stream:
    """The rows of one folder, in order, epoch after epoch."""

    def __init__(
        self, folder: FusedFolder, seed: int, read_ahead: int, *, skip_bad: bool
    ) -> None:
        self._folder, self._skip_bad = folder, skip_bad
        self._order = Order(folder.file_rows, folder.fingerprint, seed)
        self._read_ahead = read_ahead
        self._ahead = Ahead(self._read, _THREADS if read_ahead else 0)
        self._block: _Block | None = None
        self._next: _Block | None = None

    def example(self, number: int) -> Example:
        """Decodes a number's row."""
        block = self._enter(number)
        file, row = self._folder.place(int(block.rows[number - block.start]))
        group = self._ahead.get((file, row // GROUP_ROWS))
        if group is None:
            return data.blank()
        try:
            return group.example(row % GROUP_ROWS)
        except SchemaError as error:
            if not self._skip_bad:
                raise
            logger.warning("one row is skipped: %s", error)
            return data.blank()

    def close(self) -> None:
        """Ends the threads."""
        self._ahead.close()
        self._block = self._next = None

    def _enter(self, number: int) -> _Block:
        """Returns the block of a number, and lets its groups be read."""
        block = self._block
        if block is not None and block.start <= number < block.stop:
            return block
        after = self._next
        if after is None or not after.start <= number < after.stop:
            after = self._block_of(number)
        self._block = block = after
        wanted = self._folder.groups(block.rows[number - block.start :])
        if self._read_ahead:
            self._next = self._block_of(block.stop)
            wanted += self._folder.groups(self._next.rows)[: self._read_ahead]
        self._ahead.want(wanted)
        return block

    def _block_of(self, number: int) -> _Block:
        start, stop = self._order.block(number)
        return _Block(start=start, stop=stop, rows=self._order.rows_of(start, stop))

    def _read(self, key: tuple[int, int]) -> Group | None:
        """Reads a group; None where it is corrupt and that is no error."""
        try:
            return self._folder.read(*key)
        except SchemaError as error:
            if not self._skip_bad:
                raise
            logger.warning("%d rows are skipped: %s", self._folder.rows_in(*key), error)
            return None
