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
from jaxtyping import Float32, Float64, Int32

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
      source_logprobs: natural-log probability that each source gives the bytes of each
        segment that count, the EOS not among them; NaN where it failed.
      source_coverage: share of a segment's positions that each source speaks about.
      n_bytes: bytes of each segment that count.
      chunk_ends: tokens that end a chunk. A chunk begins behind the one before, or
        behind its segment's first token, and the source that weighs most in the segment
        (of equals the first) has borders where it begins and ends. Chunks tile the
        segments.
      chunk_logprobs: natural-log probability that this source gives each chunk, after
        all of the segment before it, rounded to 11 significant bits; NaN where it says
        nothing: of an EOS that it has not, and of segments without any source.
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
    source_logprobs: Float64[np.ndarray, "_ s"]
    source_coverage: Float32[np.ndarray, "_ s"]
    n_bytes: Int32[np.ndarray, " _"]
    chunk_ends: Int32[np.ndarray, " c"]
    chunk_logprobs: Float32[np.ndarray, " _"]
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
        for name in ("window_ids", "domains", "n_bytes", *_BY_SOURCE):
            if (described := len(getattr(self, name))) != segments:
                raise SchemaError(
                    f"{name} of a fused row must describe its {segments} segments, they"
                    f" describe {described}"
                )
        if not 0 <= self.covered <= self.counted <= tokens:
            raise SchemaError(
                f"of the {tokens} tokens of a fused row, covered <= counted must hold,"
                f" got {self.covered} and {self.counted}"
            )
        self._check_chunks()

    def _check_chunks(self) -> None:
        """Checks that the chunks tile every segment behind its first token."""
        stops = np.cumsum(self.segment_lengths)
        starts = stops - self.segment_lengths
        longer = self.segment_lengths > 1
        ends, tokens = self.chunk_ends, len(self.input_ids)
        if (
            len(ends) != len(self.chunk_logprobs)
            or (np.diff(ends, prepend=0, append=tokens) <= 0).any()
            or np.isin(starts, ends).any()
            or not np.isin(stops[longer] - 1, ends).all()
        ):
            raise SchemaError(
                "chunk_ends of a fused row must rise, one for each of its"
                f" {len(self.chunk_logprobs)} chunk_logprobs, with the last token of"
                f" every segment among them and the first of none, got {len(ends)}"
                f" for segments of {self.segment_lengths.tolist()} tokens"
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
        _column("source_logprobs", pa.list_(pa.float64()), "(g * s,) nats, or NaN"),
        _column("source_coverage", pa.list_(pa.float32()), "(g * s,) in [0, 1]"),
        _column("n_bytes", pa.list_(pa.int32()), "(g,) bytes that count"),
        _column("chunk_ends", pa.list_(pa.int32()), "(c,) last token of each chunk"),
        _column("chunk_logprobs", pa.list_(pa.float32()), "(c,) nats, or NaN"),
        _column("n_tokens", pa.int32(), "n, tokens"),
        _column("counted", pa.int32(), "positions that count"),
        _column("covered", pa.int32(), "counted positions with a distribution"),
    ]
)

# Whole int32 tokens repeat, so zstandard takes 1.2 B for each, 1.3 B where their bytes
# are split, 1.6 B where they go through a dictionary.
WRITER_OPTIONS: dict[str, Any] = {
    "use_dictionary": ["domains.list.element"],
    "column_encoding": {
        "chunk_ends.list.element": "DELTA_BINARY_PACKED",
        "chunk_logprobs.list.element": "BYTE_STREAM_SPLIT",
    },
}
"""Of pyarrow's ParquetWriter, beside those all our files have."""

_BY_SOURCE = {
    "weights": np.float32,
    "source_logprobs": np.float64,
    "source_coverage": np.float32,
}
_LISTS = {
    "input_ids": np.int32,
    "segment_lengths": np.int32,
    "loss_mask": np.bool_,
    "n_bytes": np.int32,
    "chunk_ends": np.int32,
    "chunk_logprobs": np.float32,
}
_TEXTS = ("window_ids", "domains")
_COUNTS = ("counted", "covered")


def to_table(rows: Sequence[FusedRow]) -> pa.Table:
    """Packs fused rows into one Arrow table, in order."""
    columns: dict[str, Any] = {
        name: _lists([getattr(row, name).ravel() for row in rows], dtype)
        for name, dtype in (_LISTS | _BY_SOURCE).items()
    }
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
    lists = {name: _split(table.column(name)) for name in _LISTS | _BY_SOURCE}
    plain = {
        name: table.column(name).to_pylist()
        for name in (*_TEXTS, *_COUNTS, "distribution")
    }
    rows = []
    for row in range(table.num_rows):
        record: dict[str, Any] = {name: lists[name][row] for name in _LISTS}
        record |= {name: plain[name][row] for name in (*_COUNTS, "distribution")}
        record |= {name: tuple(plain[name][row]) for name in _TEXTS}
        segments = len(record["segment_lengths"])
        for name in _BY_SOURCE:
            flat = lists[name][row]
            record[name] = flat.reshape(segments, len(flat) // max(segments, 1))
        rows.append(FusedRow(**record))
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
