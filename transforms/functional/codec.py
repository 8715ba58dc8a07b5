"""Write the distributions of one packed row as one small, checked zstandard frame.

A row of t positions keeps up to k ids with their probabilities and a tail mass. The
frame holds them as streams of bytes, alike beside alike::

    head     version, k, t, names and spelt ids in number
    counts   (t,)  entries that a position uses; m positions use any
    tails    (m,)  level of the tail mass                          `levels`
    rises         levels of entries 2..k, a plane for each rank    `levels`
    places   (m,)  rank of the token that does come next           `recall`
    flags    (m,) for each eight ranks: which ids are spelt        `recall`
    names         the others' places in the recall lists           `recall`
    spelt         high, middle and low bytes of their ranks        `ranks`

Each stream has zstandard blocks of its own, so a table of code lengths of its own.
Long matches hardly occur, and short ones cost more than they save: the match finder is
all but switched off, which also makes it fast.
"""

import dataclasses
import itertools
import struct

import numpy as np
import zstandard

from schemas.arrays import Counts, Probs, TailMass, TokenIds, TopIds
from schemas.errors import SchemaError
from transforms.functional import levels, recall
from transforms.functional.ranks import RankTable

VERSION = 2
LEVELS = {1: levels.FIRST, VERSION: levels.FINE}
"""By version of a frame; of those before, levels are all that differs."""
MAX_K = 255

_SLACK = 0.01  # sources may round their logprobs, and their tails with them
_HEAD = struct.Struct("<BBxxIII")
_PARAMETERS = zstandard.ZstdCompressionParameters.from_level(
    3,
    strategy=zstandard.STRATEGY_FAST,
    min_match=7,
    hash_log=6,
    write_checksum=True,
    write_content_size=True,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Distributions:
    """What a packed row keeps of its next-token distributions.

    Attributes:
      counts: how many of the k entries a position uses; 0 where it has none.
      ids: kept ids by falling probability; -1 behind the last.
      probs: their probabilities; 0 behind the last.
      tail: what is left, 1 - sum(probs); 0 where nothing is kept.
    """

    counts: Counts
    ids: TopIds
    probs: Probs
    tail: TailMass


def encode_rows(rows: Distributions, token_ids: TokenIds, table: RankTable) -> bytes:
    """Encodes the distributions of one packed row.

    Args:
      rows: what to keep; position p is about `token_ids[p + 1]`.
      token_ids: the row's input ids, one for each position.
      table: ranks of all ids of the vocabulary.

    Returns:
      One zstandard frame with checksum.

    Raises:
      ValueError: if the arrays do not fit each other, an id is not of the vocabulary,
        or probabilities are not in [0, 1], rise along a row, or miss sum 1.
    """
    _check_rows(rows, token_ids, table)
    t, k = rows.ids.shape
    counts, ids, token_ids = (_frozen(a) for a in (rows.counts, rows.ids, token_ids))
    m, n = np.count_nonzero(counts), int(counts.sum())
    starts = _plane_starts(counts, k)
    tails, rises = np.empty(m, np.uint8), np.empty(starts[-1], np.uint8)
    probs, tail = _frozen(rows.probs), _frozen(rows.tail)
    borders = LEVELS[VERSION].borders
    levels.round_rows(borders, counts, probs, tail, starts.copy(), tails, rises)
    places, flags = np.empty(m, np.uint8), np.zeros((-(-k // 8), m), np.uint8)
    names, spelt = np.empty(n, np.uint8), np.empty(n, np.int32)
    n_names, n_spelt = recall.name_ids(
        token_ids, counts, ids, places, flags, names, spelt
    )
    ranks = table.ranks[spelt[:n_spelt]].astype("<u4").view(np.uint8).reshape(-1, 4)
    streams = [counts.astype(np.uint8), tails]
    streams += [rises[starts[a] : starts[b]] for a, b in _rank_groups(k)]
    streams += [places, *flags, names[:n_names], *ranks.T[2::-1]]
    head = _HEAD.pack(VERSION, k, t, n_names, n_spelt)
    return _compress([head, *(s.tobytes() for s in streams if s.size)])


def _frozen(array: np.ndarray) -> np.ndarray:
    """Returns a contiguous, read-only view: one type, so one compilation."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


def _check_rows(rows: Distributions, token_ids: TokenIds, table: RankTable) -> None:
    t, k = rows.ids.shape
    if not 1 <= k <= MAX_K:
        raise ValueError(f"k must be in [1, {MAX_K}], got {k}")
    lengths = [len(a) for a in (rows.counts, rows.probs, rows.tail, token_ids)]
    if lengths != [t] * 4 or rows.probs.shape[1] != k:
        raise ValueError(
            f"counts, probs, tail and token_ids must have {t} rows as ids has, and"
            f" probs {k} columns, got {lengths} rows and {rows.probs.shape[1]} columns"
        )
    if t and not 0 <= rows.counts.min() <= rows.counts.max() <= k:
        raise ValueError(f"counts must be in [0, {k}]")
    unused = np.arange(k) >= rows.counts[:, None]
    size = table.order.size
    if not (unused | ((rows.ids >= 0) & (rows.ids < size))).all():
        raise ValueError(f"kept ids must be in [0, {size}), the rank table's size")
    sound = (rows.probs >= 0) & (rows.probs <= 1)
    sound[:, 1:] &= rows.probs[:, 1:] <= rows.probs[:, :-1]
    if not ((unused | sound).all() and ((rows.tail >= 0) & (rows.tail <= 1)).all()):
        raise ValueError("probabilities must be in [0, 1], the kept ones never rising")
    total = rows.probs.sum(axis=1, where=~unused) + rows.tail
    if (np.abs(total - 1)[rows.counts > 0] > _SLACK).any():
        raise ValueError(
            f"kept probabilities and tail must sum to 1 within {_SLACK} where a"
            " position keeps anything"
        )


def _plane_starts(counts: Counts, k: int) -> np.ndarray:
    """Returns where each rank's plane begins, and behind the last, where it ends.

    The plane of rank 0 is empty, as the first entry is at level 0 always.
    """
    users = np.bincount(counts, minlength=k + 1)[::-1].cumsum()[::-1]
    users[:2] = 0  # users[i] positions have an entry i, counted from 1
    return users[: k + 1].cumsum()


def _rank_groups(k: int) -> list[tuple[int, int]]:
    """Returns ranges of ranks that share blocks: 1, 2, 3, 4-5, 6-7, 8-11, 12-15, ..."""
    borders = sorted(b for j in range(8) for b in (1 << j, 3 << j) if b < k)
    return list(itertools.pairwise([*borders, k]))


def _compress(streams: list[bytes]) -> bytes:
    """Compresses streams into one frame, blocks of its own for each."""
    packer = zstandard.ZstdCompressor(compression_params=_PARAMETERS)
    frame = packer.compressobj(size=sum(map(len, streams)))
    end_block = zstandard.COMPRESSOBJ_FLUSH_BLOCK
    packed = [frame.compress(s) + frame.flush(end_block) for s in streams]
    return b"".join([*packed, frame.flush()])


def decode_rows(frame: bytes, token_ids: TokenIds, table: RankTable) -> Distributions:
    """Decodes what `encode_rows` wrote.

    Args:
      frame: one zstandard frame.
      token_ids: the row's input ids, as they were given to `encode_rows`.
      table: the rank table that was given to `encode_rows`.

    Returns:
      The kept ids as they were, probabilities and tails to the nearest level, scaled to
      sum 1 where a position keeps anything.

    Raises:
      SchemaError: if the frame is truncated, corrupt, of another version, or does not
        belong to these tokens. The caller knows which file and row it is.
    """
    content = _decompress(frame, token_ids.size)
    if len(content) < _HEAD.size or content[0] not in LEVELS:
        known = " or ".join(map(str, LEVELS))
        raise _broken(f"must be of version {known}, begins {content[:1].hex()!r}")
    version, k, t, n_names, n_spelt = _HEAD.unpack_from(content)
    if t != token_ids.size or k == 0 or len(content) < _HEAD.size + t:
        raise _broken(f"must hold {token_ids.size} positions, states {t} with k = {k}")
    streams, token_ids = _Streams(content), _frozen(token_ids)
    counts = _frozen(streams.take(t).astype(np.int32))
    if t and counts.max() > k:
        raise _broken(f"must hold counts in [0, {k}]")
    starts = _plane_starts(counts, k)
    m = int(np.count_nonzero(counts))
    tails, rises, places = (streams.take(n) for n in (m, int(starts[-1]), m))
    flags = streams.take(m * -(-k // 8)).reshape(-(-k // 8), m)
    names, ranks = streams.take(n_names), streams.take(3 * n_spelt).reshape(3, n_spelt)
    streams.end()
    probs, tail = np.zeros((t, k), np.float32), np.zeros(t, np.float32)
    held, args = LEVELS[version], (counts, starts, tails, rises, probs, tail)
    if not levels.restore_rows(held.weights, held.tail_weights, *args):
        raise _broken(f"must hold levels in [0, {held.weights.size - 1}]")
    ids = np.full((t, k), -1, np.int32)
    spelt = _spell(ranks, table)
    if not recall.recall_ids(token_ids, counts, places, flags, names, spelt, ids):
        raise _broken("must belong to its row's input ids, but names what they lack")
    return Distributions(counts=counts, ids=ids, probs=probs, tail=tail)


class _Streams:
    """Hands out a frame's content from front to back."""

    def __init__(self, content: bytes) -> None:
        self._rest = np.frombuffer(content, np.uint8, offset=_HEAD.size)

    def take(self, size: int) -> np.ndarray:
        if size > self._rest.size:
            raise _broken(f"must hold {size} bytes more, holds {self._rest.size}")
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def end(self) -> None:
        if self._rest.size:
            raise _broken(f"must end, {self._rest.size} bytes follow")


def _broken(law: str) -> SchemaError:
    return SchemaError(f"a distribution frame {law}; fuse the slice again")


def _decompress(frame: bytes, t: int) -> bytes:
    """Decompresses a frame for t positions, its stated size checked first."""
    # an entry takes at most a rise, a flag and three bytes of rank
    most = _HEAD.size + t * (3 + MAX_K * 5 + MAX_K // 8 + 1)
    try:
        stated = zstandard.get_frame_parameters(frame)
        if not (stated.has_checksum and stated.content_size <= most):
            raise _broken(
                f"must have a checksum and state at most {most} bytes for {t}"
                f" positions, states {stated.content_size}"
            )
        unpacker = zstandard.ZstdDecompressor()
        return unpacker.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise _broken(f"must be one whole zstandard frame ({error})") from error


def _spell(ranks: np.ndarray, table: RankTable) -> np.ndarray:
    """Returns the ids of ranks given as high, middle and low bytes."""
    high, middle, low = ranks.astype(np.int32)
    places = high << 16 | middle << 8 | low
    if places.size and places.max() >= table.order.size:
        raise _broken(f"must hold ranks in [0, {table.order.size})")
    return table.order[places]
