"""Scores: what one model says of every window, and the files it is kept in.

A scores folder holds one Parquet file for each slice of the windows' plan, row for row
in the order of the windows. List columns are flat, so that any Parquet reader shows
them: row t of `top_ids` is `top_ids[t * k : (t + 1) * k]`, k being in the footer and in
the manifest. The column `sampled_ids`, r a position, is there where ids were drawn.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from schemas import parquet
from schemas.arrays import (
    ByteEnds,
    GoldLogprobs,
    SampledIds,
    TokenIds,
    TopIds,
    TopLogprobs,
)
from schemas.errors import SchemaError

STAGE = "scores"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Score:
    """What a model says of one window.

    With n tokens there are n - 1 positions; position t predicts `token_ids[t + 1]`. A
    window that failed has empty arrays and an `error`.

    Attributes:
      window_id: the window.
      token_ids: start token (BOS, or EOS where the model has none), the window's
        tokens, and EOS where the window ends its document.
      byte_ends: end offset of each token in the window's UTF-8; 0 for the start token.
      top_ids: kept ids by falling logprob, ties by rising id; -1 behind the last.
      top_logprobs: their natural-log probabilities over the full vocabulary; -inf
        behind the last. In files they are rounded, and so are the next two: how is
        told in `transforms/functional/rounding.py`.
      logsumexp: log-sum-exp of the logits, so that logits = logprobs + logsumexp; None
        where what ran the model does not tell it.
      gold_logprob: natural-log probability of `token_ids[t + 1]`.
      nll_nats: -sum of `gold_logprob` over the tokens that hold bytes that count.
      n_bytes: bytes that count: all of the window, or those of its loss spans.
      error: why the window could not be scored, or None.
      sampled_ids: r ids a position, drawn with replacement by their probability from
        what is neither kept nor `token_ids[t + 1]`; -1 where a draw found no id. None
        where none were asked for. What they weigh: `transforms/functional/tail.py`.
    """

    window_id: str
    token_ids: TokenIds
    byte_ends: ByteEnds
    top_ids: TopIds
    top_logprobs: TopLogprobs
    logsumexp: GoldLogprobs | None
    gold_logprob: GoldLogprobs
    nll_nats: float | None
    n_bytes: int
    error: str | None = None
    sampled_ids: SampledIds | None = None

    def __post_init__(self) -> None:
        """Checks that the arrays belong together."""
        positions = max(0, len(self.token_ids) - 1)
        lengths = [
            len(self.byte_ends) - len(self.token_ids) + positions,
            *(len(a) for a in (self.top_ids, self.top_logprobs)),
            len(self.gold_logprob),
            *(len(a) for a in (self.logsumexp, self.sampled_ids) if a is not None),
        ]
        if any(length != positions for length in lengths):
            raise SchemaError(
                f"the score of window {self.window_id} must have {positions} rows in"
                f" every array, got {lengths}"
            )

    @property
    def bits_per_byte(self) -> float:
        """Cost of the bytes that count; NaN for a window that failed or holds none."""
        if self.nll_nats is None or self.n_bytes == 0:
            return float("nan")
        return self.nll_nats / np.log(2) / self.n_bytes


def failed(
    window_id: str, n_bytes: int, error: str, k: int, tail_samples: int = 0
) -> Score:
    """Returns the row of a window that could not be scored."""
    empty = np.zeros(0, np.float32)
    return Score(
        window_id=window_id,
        token_ids=np.zeros(0, np.int32),
        byte_ends=np.zeros(0, np.int32),
        top_ids=np.zeros((0, k), np.int32),
        top_logprobs=np.zeros((0, k), np.float32),
        logsumexp=empty,
        gold_logprob=empty,
        nll_nats=None,
        n_bytes=n_bytes,
        error=error,
        sampled_ids=np.zeros((0, tail_samples), np.int32) if tail_samples else None,
    )


_INTS = ("token_ids", "byte_ends", "top_ids")
_FLOATS = ("top_logprobs", "logsumexp", "gold_logprob")

SCHEMA = pa.schema(
    [
        pa.field("window_id", pa.string(), nullable=False),
        *(pa.field(name, pa.list_(pa.int32())) for name in _INTS),
        *(pa.field(name, pa.list_(pa.float32())) for name in _FLOATS),
        pa.field("nll_nats", pa.float64()),
        pa.field("n_bytes", pa.int32(), nullable=False),
        pa.field("error", pa.string()),
    ]
)

_SAMPLED = pa.field("sampled_ids", pa.list_(pa.int32()))


def schema_of(tail_samples: int) -> pa.Schema:
    """Returns the columns of a file with so many draws a position."""
    return SCHEMA.append(_SAMPLED) if tail_samples else SCHEMA


_ENCODINGS = {"byte_ends": "DELTA_BINARY_PACKED"} | dict.fromkeys(
    _FLOATS, "BYTE_STREAM_SPLIT"
)
_LEVEL = 16
_PAGE_BYTES = 4 << 20


def options_of(schema: pa.Schema) -> dict[str, Any]:
    """Returns the writer's options for these columns.

    Ids are the most of a file, and what the compressor finds in them are ids and pairs
    of ids that it has seen: whole ones, so plain and not split by bytes, in pages long
    enough to find them in, and from the level on that looks for the cheapest way to say
    it. It takes some 10 us of one core a token at k = 10, behind the model: half of a
    forward pass of 7B on a fast GPU.
    """
    return {
        "use_dictionary": ["error"],
        "column_encoding": {
            f"{name}.list.element": _ENCODINGS.get(name, "PLAIN")
            for name in _lists_of(schema)
        },
        "compression_level": _LEVEL,
        "data_page_size": _PAGE_BYTES,
    }


def _lists_of(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if pa.types.is_list(field.type)]


WRITER_OPTIONS = options_of(SCHEMA)


def to_table(scores: Sequence[Score], schema: pa.Schema = SCHEMA) -> pa.Table:
    """Packs scores into one Arrow table, in order; a failed window has null lists."""
    columns: dict[str, Any] = {
        "window_id": [score.window_id for score in scores],
        "nll_nats": [score.nll_nats for score in scores],
        "n_bytes": [score.n_bytes for score in scores],
        "error": [score.error for score in scores],
    }
    for name in _lists_of(schema):
        kind = schema.field(name).type.value_type
        columns[name] = _lists([_told(score, name) for score in scores], kind)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _told(score: Score, name: str) -> np.ndarray | None:
    array = None if score.error is not None else getattr(score, name)
    return None if array is None else array.ravel()


def _lists(arrays: list[np.ndarray | None], kind: pa.DataType) -> pa.ListArray:
    """Makes a list of each array, and a null of None."""
    there = [array for array in arrays if array is not None]
    ends = np.cumsum([0, *(0 if array is None else len(array) for array in arrays)])
    null = [*(array is None for array in arrays), False]
    offsets = pa.array(ends, pa.int32(), mask=np.array(null))
    flat = np.concatenate(there) if there else np.zeros(0)
    return pa.ListArray.from_arrays(offsets, pa.array(flat, kind))


def from_table(table: pa.Table, k: int, tail_samples: int = 0) -> list[Score]:
    """Unpacks the scores of an Arrow table without copying the numbers."""
    table = table.combine_chunks()
    names = _lists_of(schema_of(tail_samples))
    lists = {name: _split(table.column(name)) for name in names}
    plain = {
        name: table.column(name).to_pylist()
        for name in ("window_id", "nll_nats", "n_bytes", "error")
    }
    untold = table.column("logsumexp").is_null().to_pylist()
    widths = {"top_ids": k, "top_logprobs": k, "sampled_ids": tail_samples}
    scores = []
    for row in range(table.num_rows):
        record: dict[str, Any] = {name: lists[name][row] for name in names}
        if untold[row] and plain["error"][row] is None:
            record["logsumexp"] = None
        for name in widths.keys() & record.keys():
            record[name] = record[name].reshape(-1, widths[name])
        scores.append(Score(**record, **{n: plain[n][row] for n in plain}))
    return scores


def _split(column: pa.ChunkedArray) -> list[np.ndarray]:
    """Cuts a list column into one array a row; a null row is an empty array."""
    lists = column.combine_chunks()
    if isinstance(lists, pa.ChunkedArray):
        lists = lists.chunk(0)
    flat = lists.values.to_numpy(zero_copy_only=True)
    bounds = lists.offsets.to_numpy()
    return [flat[start:stop] for start, stop in itertools.pairwise(bounds)]


def read(path: str) -> Iterator[list[Score]]:
    """Yields the scores of a file, a list for each row group.

    Raises:
      SchemaError: if the file is corrupt or has no `k` in its footer.
    """
    footer = parquet.footer(path)
    k, tail_samples = footer.get("k"), footer.get("tail_samples", 0)
    if not isinstance(k, int):
        raise SchemaError(f"the footer of {path} must name k, got {k!r}")
    for table in parquet.read(path, schema_of(tail_samples)):
        if table.num_rows:
            yield from_table(table, k, tail_samples)
