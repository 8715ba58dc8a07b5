"""Order a vocabulary by how often a file's distributions keep each token.

The codec writes a token that it cannot predict as its rank in this order, low byte and
high byte apart. Frequent tokens then share a few high bytes, which compress well. How
tokens are ordered within the 256 ranks of one high byte gains nothing, so they stand
there by rising id, and the order itself takes about a byte a token.
"""

import base64
import binascii
import dataclasses

import numpy as np
import zstandard
from jaxtyping import Int32, Int64

from schemas.errors import SchemaError

Order = Int32[np.ndarray, " v"]
"""A permutation of the vocabulary."""

_BLOCK = 256
_MAX_SIZE = 1 << 24


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RankTable:
    """A permutation of the vocabulary and its inverse.

    Attributes:
      order: ids by rank: those that occur, by blocks of falling frequency, then the
        others by rising id.
      ranks: rank of each id.
      seen: how many ids occur; the order of the others need not be stored.
    """

    order: Order
    ranks: Order
    seen: int


def rank_by_frequency(frequencies: Int64[np.ndarray, " v"]) -> RankTable:
    """Ranks ids by how often they are kept; ties by rising id.

    Args:
      frequencies: how many of a file's kept entries are of each id.
    """
    by_frequency = np.argsort(-frequencies, kind="stable")
    seen = int(np.count_nonzero(frequencies))
    blocks = np.arange(seen) // _BLOCK
    kept = by_frequency[:seen]
    kept = kept[np.lexsort((kept, blocks))]
    return _table(np.concatenate([kept, by_frequency[seen:]]).astype(np.int32), seen)


def _table(order: Order, seen: int) -> RankTable:
    ranks = np.empty_like(order)
    ranks[order] = np.arange(order.size, dtype=np.int32)
    return RankTable(order=order, ranks=ranks, seen=seen)


def dump_ranks(table: RankTable) -> str:
    """Writes a rank table as printable text, for a file's footer."""
    steps = np.diff(table.order[: table.seen], prepend=np.int32(0)).astype("<i4")
    planes = steps.view(np.uint8).reshape(-1, 4).T.tobytes()
    head = np.array([table.order.size, table.seen], "<u4").tobytes()
    packer = zstandard.ZstdCompressor(level=9, write_checksum=True)
    return base64.b85encode(packer.compress(head + planes)).decode("ascii")


def load_ranks(text: str) -> RankTable:
    """Reads what `dump_ranks` wrote.

    Raises:
      SchemaError: if the text is not a whole rank table.
    """
    content = _unpack(text)
    size, seen = (int(n) for n in np.frombuffer(content[:8], "<u4"))
    if not seen <= size <= _MAX_SIZE or len(content) != 8 + 4 * seen:
        raise SchemaError(
            f"a rank table of {size} ids, {seen} of them seen, must take"
            f" {8 + 4 * seen} bytes, got {len(content)}; write the file again"
        )
    planes = np.frombuffer(content[8:], np.uint8).reshape(4, seen)
    steps = np.ascontiguousarray(planes.T).view("<i4").reshape(-1)
    kept = np.cumsum(steps, dtype=np.int32)
    unseen = np.ones(size, bool)
    if seen and not (kept.min() >= 0 and kept.max() < size):
        raise SchemaError(f"a rank table must hold ids in [0, {size}); write it again")
    unseen[kept] = False
    order = np.concatenate([kept, np.flatnonzero(unseen).astype(np.int32)])
    if order.size != size:
        raise SchemaError("a rank table must name each id once; write the file again")
    return _table(order, seen)


def _unpack(text: str) -> bytes:
    """Decompresses a table's text, its size checked first."""
    try:
        packed = base64.b85decode(text)
        stated = zstandard.get_frame_parameters(packed).content_size
        if not 8 <= stated <= 8 + 4 * _MAX_SIZE:
            raise SchemaError(
                f"a rank table must take 8 to {8 + 4 * _MAX_SIZE} bytes, its frame"
                f" states {stated}; write the file again"
            )
        unpacker = zstandard.ZstdDecompressor()
        return unpacker.decompress(packed, allow_extra_data=False)
    except (ValueError, binascii.Error, zstandard.ZstdError) as error:
        if isinstance(error, SchemaError):
            raise
        raise SchemaError(
            f"a rank table must be a whole zstandard frame in base 85: {error};"
            " write the file again"
        ) from error
