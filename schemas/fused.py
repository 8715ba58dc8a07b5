"""Fused rows: packed training sequences with their distributions, and their files.

A fused folder holds one Parquet file for each slice. Everything but the distributions
stands in plain columns that any Parquet reader shows; `distribution` is one frame of
`transforms.functional.codec`, with checksum. The footer names `sources` (those that
`weights` speaks of, in order) and `ranks` (the codec's table for this file).
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int32

from schemas import parquet
from schemas.arrays import Mask, TokenIds
from schemas.errors import SchemaError

STAGE = "fused"
ROW_GROUP_ROWS = 64
"""Rows of a row group: about 2 MB at 2,048 tokens a row and k = 10."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FusedRow:
    """One packed training sequence.

    Position p predicts `input_ids[p + 1]`, where both are of one segment.

    Attributes:
      input_ids: the target's token ids, segment after segment.
      segment_lengths: tokens of each segment; a segment is a window, and segments do
        not attend to each other.
      loss_mask: whether position p counts in the loss.
      distribution: the codec's frame: kept ids, probabilities, tail mass of every
        position.
      window_ids: the window of each segment.
      domains: its label, or None.
      weights: share of each source in each segment's distributions, in [0, 1]; rows
        sum to 1, or 0 where no position is covered. A chosen source has weight 1.
      counted: positions that count.
      covered: positions that count and have a distribution.
    """

    input_ids: TokenIds
    segment_lengths: Int32[np.ndarray, " g"]
    loss_mask: Mask
    distribution: bytes
    window_ids: tuple[str, ...]
    domains: tuple[str | None, ...]
    weights: Float32[np.ndarray, "w s"]
    counted: int
    covered: int

    def __post_init__(self) -> None:
        """Checks that the parts belong together."""
        tokens, segments = len(self.input_ids), len(self.segment_lengths)
        if int(self.segment_lengths.sum()) != tokens or len(self.loss_mask) != tokens:
            raise SchemaError(
                f"the segments and the mask of a fused row must hold its {tokens}"
                f" tokens, they hold {int(self.segment_lengths.sum())} and"
                f" {len(self.loss_mask)}"
            )
        parts = (len(self.window_ids), len(self.domains), len(self.weights))
        if parts != (segments, segments, segments):
            raise SchemaError(
                f"window_ids, domains and weights of a fused row must describe its"
                f" {segments} segments, they describe {parts}"
            )
        if not 0 <= self.covered <= self.counted <= tokens:
            raise SchemaError(
                f"of the {tokens} tokens of a fused row, covered <= counted must hold,"
                f" got {self.covered} and {self.counted}"
            )


def _column(name: str, kind: pa.DataType, doc: str) -> pa.Field:
    return pa.field(name, kind, nullable=False, metadata={"doc": doc})


SCHEMA = pa.schema(
    [
        _column("input_ids", pa.list_(pa.int32()), "(n,) token ids of the target"),
        _column("segment_lengths", pa.list_(pa.int32()), "(g,) tokens; they sum to n"),
        _column("loss_mask", pa.list_(pa.bool_()), "(n,) position p counts"),
        _column("distribution", pa.binary(), "codec frame: ids, probabilities, tails"),
        _column("window_ids", pa.list_(pa.string()), "(g,) window of each segment"),
        _column("domains", pa.list_(pa.string()), "(g,) its label, may be null"),
        _column("weights", pa.list_(pa.float32()), "(g * s,) in [0, 1], by segment"),
        _column("n_tokens", pa.int32(), "n, tokens"),
        _column("counted", pa.int32(), "positions that count"),
        _column("covered", pa.int32(), "counted positions with a distribution"),
    ]
)

# Whole int32 tokens repeat, so zstandard takes 1.2 B for each, 1.3 B where their bytes
# are split, 1.6 B where they go through a dictionary.
WRITER_OPTIONS: dict[str, Any] = {"use_dictionary": ["domains.list.element"]}
"""Of pyarrow's ParquetWriter, beside those all our files have."""

_LISTS = {"input_ids": np.int32, "segment_lengths": np.int32, "loss_mask": np.bool_}
_TEXTS = ("window_ids", "domains")
_COUNTS = ("counted", "covered")


def to_table(rows: Sequence[FusedRow]) -> pa.Table:
    """Packs fused rows into one Arrow table, in order."""
    columns: dict[str, Any] = {
        name: _lists([getattr(row, name) for row in rows], dtype)
        for name, dtype in _LISTS.items()
    }
    columns["weights"] = _lists([row.weights.ravel() for row in rows], np.float32)
    for name in (*_TEXTS, *_COUNTS, "distribution"):
        columns[name] = [getattr(row, name) for row in rows]
    columns["n_tokens"] = [len(row.input_ids) for row in rows]
    return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def _lists(arrays: list[np.ndarray], dtype: type) -> pa.ListArray:
    ends = np.cumsum([0, *(len(array) for array in arrays)], dtype=np.int32)
    flat = np.concatenate([np.zeros(0, dtype), *arrays])
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(flat))


def from_table(table: pa.Table) -> list[FusedRow]:
    """Unpacks the fused rows of an Arrow table, numbers without copying them."""
    lists = {name: _split(table.column(name)) for name in (*_LISTS, "weights")}
    plain = {
        name: table.column(name).to_pylist()
        for name in (*_TEXTS, *_COUNTS, "distribution")
    }
    rows = []
    for row in range(table.num_rows):
        record: dict[str, Any] = {name: lists[name][row] for name in _LISTS}
        record |= {name: plain[name][row] for name in (*_COUNTS, "distribution")}
        record |= {name: tuple(plain[name][row]) for name in _TEXTS}
        flat, segments = lists["weights"][row], len(record["segment_lengths"])
        weights = flat.reshape(segments, len(flat) // max(segments, 1))
        rows.append(FusedRow(**record, weights=weights))
    return rows


def _split(column: pa.ChunkedArray) -> list[np.ndarray]:
    """Cuts a list column into one array a row."""
    arrays: list[np.ndarray] = []
    for chunk in column.chunks:
        bounds = chunk.offsets.to_numpy()
        flat = chunk.values.to_numpy(zero_copy_only=False)
        arrays += [flat[start:stop] for start, stop in itertools.pairwise(bounds)]
    return arrays


def read(
    path: str, row_groups: Iterable[int] | None = None
) -> Iterator[list[FusedRow]]:
    """Yields the rows of a file, a list for each row group.

    Raises:
      SchemaError: if the file is corrupt or holds other columns.
    """
    for table in parquet.read(path, SCHEMA, row_groups):
        yield from_table(table)
