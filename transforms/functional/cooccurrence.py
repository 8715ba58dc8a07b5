"""Counts which target tokens stand beside which source tokens.

Both tokenizations of a window are aligned by dynamic time warping, in FuseChat's order
of ties. A pair counts once for each target position and distinct source id among its
partners (Wan et al. 2024, arXiv 2402.16107)::

    source  |un|believ|able|        pairs  (un, unbeliev) (believ, unbeliev)
    target  |unbeliev|able|                (able, able)

Tokens without bytes (start token, EOS, a dummy prefix alone) take no part: their empty
pieces would be near to every short token. Control tokens, which cover text inside a
chat, are aligned by that text and not counted. FuseChat counts all, and padding too.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int32, Int64, Integer

from schemas.arrays import ByteEnds, TokenIds
from schemas.errors import SchemaError
from transforms.functional import dtw
from transforms.functional.dtw import Pairing

Keys = Int64[np.ndarray, " _"]
"""Pairs of ids as one number, source id * 2**32 + target id: it sorts as pairs do."""


Ids = Integer[np.ndarray, " c"]
"""Ids or positions, 0 or more, below 2**31."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Counts:
    """How often tokens stood beside each other; pairs that never did are left out.

    Attributes:
      source_ids: of each pair, rising.
      target_ids: of each pair; rising where the source id is the same.
      counts: target positions at which the pair stood; positive.
    """

    source_ids: Int32[np.ndarray, " c"]
    target_ids: Int32[np.ndarray, " c"]
    counts: Int64[np.ndarray, " c"]

    def __post_init__(self) -> None:
        """Checks that each pair stands once, in order, and was seen."""
        in_order = np.all(np.diff(_key(self.source_ids, self.target_ids)) > 0)
        if not in_order or np.any(self.counts <= 0):
            raise SchemaError(
                "pairs of co-occurrences must rise, each with a positive count; count"
                " them again"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tokens:
    """One tokenization of a window's text.

    Attributes:
      token_ids: ids, start token and EOS included.
      byte_ends: end of each in the window's bytes.
      controls: which ids of the vocabulary are control tokens.
    """

    token_ids: TokenIds
    byte_ends: ByteEnds
    controls: Bool[np.ndarray, " v"]

    def with_bytes(self) -> "Tokens":
        """Returns the tokens that hold bytes; they still follow each other."""
        some = np.diff(self.byte_ends, prepend=np.int32(0)) > 0
        return Tokens(
            token_ids=self.token_ids[some],
            byte_ends=self.byte_ends[some],
            controls=self.controls,
        )


def find_pairs(text: bytes, source: Tokens, target: Tokens) -> Keys:
    """Aligns two tokenizations of a window and lists the pairs, one for each count.

    Args:
      text: the window's bytes.
      source: the source's tokens of it.
      target: the target's.
    """
    source, target = source.with_bytes(), target.with_bytes()
    pairing = dtw.pair_pieces(
        dtw.cut_pieces(text, source.byte_ends),
        dtw.cut_pieces(text, target.byte_ends),
        ties="target_first",
    )
    keys = list_pairs(pairing, source.token_ids, target.token_ids)
    partners, neighbors = _unkey(keys)
    return keys[~(source.controls[partners] | target.controls[neighbors])]


def list_pairs(
    pairing: Pairing,
    source_ids: Int32[np.ndarray, " n"],
    target_ids: Int32[np.ndarray, " m"],
) -> Keys:
    """Lists every target position with each distinct source id among its partners."""
    positions = np.repeat(np.arange(target_ids.size), pairing.partners)
    keys = np.unique(_key(positions, source_ids[pairing.sources]))
    positions, partners = _unkey(keys)
    return _key(partners, target_ids[positions])


def tally(found: Iterable[Keys]) -> Counts:
    """Counts how often each pair is listed."""
    keys = np.concatenate([np.zeros(0, np.int64), *found])
    return _counts(*np.unique(keys, return_counts=True))


def add(parts: Iterable[Counts]) -> Counts:
    """Adds counts up, pair by pair; their order does not matter."""
    keys, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for part in parts:  # one at a time: a corpus has many, most pairs are in each
        joined = np.concatenate([keys, _key(part.source_ids, part.target_ids)])
        keys, places = np.unique(joined, return_inverse=True)
        each = np.concatenate([counts, part.counts])
        counts = np.zeros(keys.size, np.int64)
        np.add.at(counts, places, each)
    return _counts(keys, counts)


def _key(high: Ids, low: Ids) -> Keys:
    return (high.astype(np.int64) << 32) | low


def _unkey(keys: Keys) -> tuple[Int32[np.ndarray, " c"], Int32[np.ndarray, " c"]]:
    return (keys >> 32).astype(np.int32), (keys & 0xFFFFFFFF).astype(np.int32)


def _counts(keys: Keys, counts: Int64[np.ndarray, " c"]) -> Counts:
    source_ids, target_ids = _unkey(keys)
    return Counts(
        source_ids=source_ids, target_ids=target_ids, counts=counts.astype(np.int64)
    )
