"""One target token for each source token: the record, and its file.

`vocabulary` writes a source token as a sequence of target tokens; the alignments of
FuseLLM and FuseChat trade token for token, and want a single one, or none. How it is
chosen is said in `counterparts`. The file is for people too: one row a source id, with
the text of both tokens.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int32, UInt8

from schemas import tables
from schemas.errors import SchemaError
from schemas.tables import File
from transforms.functional.vocabulary import TokenizerLike

FORMAT = "fusebeam.token_map.1"
"""Name and version of the file, in its metadata."""

WHAT = "token map"
"""What an error calls the file."""

STRATEGIES = ("first", "mined", "statistics")

HOW = ("none", "bytes", "role", "first", "edit", "statistics")
"""How a token was mapped, by number."""

NONE, BYTES, ROLE, FIRST, EDIT, STATISTICS = range(len(HOW))

SCHEMA = pa.schema(
    [
        pa.field("source_id", pa.int32(), nullable=False),
        pa.field("source_token", pa.string()),
        pa.field("target_id", pa.int32()),
        pa.field("target_token", pa.string()),
        pa.field("distance", pa.int32()),
        pa.field("how", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenMap:
    """One target token for each source token, or none.

    Attributes:
      source_fingerprint: of the source's tokenizer.
      target_fingerprint: of the target's.
      target_size: ids of the target are in [0, target_size).
      strategy: one of STRATEGIES.
      counts: fingerprint of the co-occurrences that a map by statistics was made of;
        None for the others.
      target_ids: target id of each source id; -1 = none.
      distances: edit distance between the two, in characters; -1 where one of them is
        no text, or there is none.
      how: what was done, a number of HOW.
    """

    source_fingerprint: str
    target_fingerprint: str
    target_size: int
    strategy: str
    counts: str | None
    target_ids: Int32[np.ndarray, " v"]
    distances: Int32[np.ndarray, " v"]
    how: UInt8[np.ndarray, " v"]

    def __post_init__(self) -> None:
        """Checks that the ids are the target's."""
        if self.strategy not in STRATEGIES:
            raise SchemaError(
                f"strategy of a token map must be one of {', '.join(STRATEGIES)}, got"
                f" {self.strategy!r}"
            )
        low = self.target_ids.min(initial=-1)
        high = self.target_ids.max(initial=-1)
        if low < -1 or high >= self.target_size:
            raise SchemaError(
                f"target ids of a token map must be in [-1, {self.target_size}), got"
                f" {low} to {high}"
            )

    @property
    def source_size(self) -> int:
        """Source ids that the map knows; a model may have more logits."""
        return self.target_ids.size

    def translate(
        self, source_ids: Int32[np.ndarray, "*axes"]
    ) -> Int32[np.ndarray, "*axes"]:
        """Maps ids, -1 where there is no target token.

        Args:
          source_ids: of any shape; -1 = no entry. What a model's padding beyond its
            tokenizer gives has no target token.
        """
        known = (source_ids >= 0) & (source_ids < self.source_size)
        found = self.target_ids[np.where(known, source_ids, 0)]
        return np.where(known, found, np.int32(-1))


def save_map(
    made: TokenMap, sink: File, *, source: TokenizerLike, target: TokenizerLike
) -> None:
    """Writes a map as Parquet, one row a source id; the same map, the same bytes.

    Args:
      made: the map.
      sink: a path or a binary file.
      source: the source's tokenizer, for the tokens' text.
      target: the target's.
    """
    none = made.target_ids < 0
    pieces = [target.token_bytes[i] if i >= 0 else None for i in made.target_ids]
    columns: dict[str, Any] = {
        "source_id": np.arange(made.source_size, dtype=np.int32),
        "source_token": [_readable(piece) for piece in source.token_bytes],
        "target_id": pa.array(made.target_ids, mask=none),
        "target_token": [_readable(piece) for piece in pieces],
        "distance": pa.array(made.distances, mask=made.distances < 0),
        "how": [HOW[number] for number in made.how],
    }
    told = identity(
        made.source_fingerprint,
        made.target_fingerprint,
        strategy=made.strategy,
        counts=made.counts,
    )
    size = {"target_size": str(made.target_size)}
    tables.save(pa.table(columns, schema=SCHEMA), {**told, **size}, sink)


def identity(
    source_fingerprint: str,
    target_fingerprint: str,
    *,
    strategy: str,
    counts: str | None = None,
) -> dict[str, str]:
    """Returns what a map's file says of itself: that tells it from another."""
    return {
        "format": FORMAT,
        "strategy": strategy,
        "source_fingerprint": source_fingerprint,
        "target_fingerprint": target_fingerprint,
        "counts": counts or "",
    }


def load_map(
    source: File,
    *,
    source_fingerprint: str,
    target_fingerprint: str,
    strategy: str,
    counts: str | None = None,
) -> TokenMap:
    """Reads a map, and makes sure that it is the one that is wanted.

    Args:
      source: a path or a binary file.
      source_fingerprint: of the source's tokenizer.
      target_fingerprint: of the target's.
      strategy: one of STRATEGIES.
      counts: fingerprint of the co-occurrences, of a map by statistics.

    Raises:
      SchemaError: if the file is no map, or another one; names what differs.
    """
    expected = identity(
        source_fingerprint, target_fingerprint, strategy=strategy, counts=counts
    )
    table, found = tables.load(source, expected, SCHEMA, what=WHAT)
    numbers = {name: number for number, name in enumerate(HOW)}
    return TokenMap(
        source_fingerprint=source_fingerprint,
        target_fingerprint=target_fingerprint,
        target_size=int(found["target_size"]),
        strategy=strategy,
        counts=counts,
        target_ids=_filled(table["target_id"]),
        distances=_filled(table["distance"]),
        how=np.array([numbers[how] for how in table["how"].to_pylist()], np.uint8),
    )


def _filled(column: pa.ChunkedArray) -> Int32[np.ndarray, " v"]:
    return column.fill_null(-1).to_numpy().astype(np.int32)


def _readable(piece: bytes | None) -> str | None:
    r"""Returns a token's text for people, bytes that are no UTF-8 as \xNN."""
    return piece.decode("utf-8", "backslashreplace") if piece else None
