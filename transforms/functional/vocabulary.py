"""Maps the tokens of a source onto the vocabulary of the target.

Every source token s stands for bytes; seq(s) is the target's own tokenization of these.
Where the target has a token of the same bytes that is all of seq(s). Control tokens map
by role, never by spelling. The map is built once for a pair of tokenizers and kept in
one small Parquet file::

    source  |unbelievable|         seq  |un|believ|able|
    source  |<0xE4>|               seq  |<0xE4>|            a single byte
    source  <|im_end|> (no role)   seq  nothing: its mass is tail
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int32, Int64, Shaped, UInt8
from numpy.typing import DTypeLike

from schemas import tables
from schemas.errors import SchemaError
from schemas.tables import File
from transforms.functional import kernels

FORMAT = "fusebeam.vocabulary_map.1"
"""Name and version of the file, in its metadata."""

WHAT = "vocabulary map"
"""What an error calls the file."""

SCHEMA = pa.schema(
    [
        pa.field("target_ids", pa.large_list(pa.int32())),
        pa.field("source_bytes", pa.large_binary()),
    ]
)
"""Columns that every file has; some have `start_target_ids`, too."""

ROLES = ("pad_id", "unk_id", "bos_id", "eos_id")
"""Roles by which control tokens map. A later role wins where one id has several: what
a model with a single <|endoftext|> predicts is the end."""


@runtime_checkable
class TokenizerLike(Protocol):
    """What a map needs of a tokenizer; `transforms.tokenizer.Tokenizer` is one."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def token_bytes(self) -> Sequence[bytes | None]: ...
    @property
    def has_dummy_prefix(self) -> bool: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_id(self) -> int | None: ...
    @property
    def pad_id(self) -> int | None: ...
    @property
    def unk_id(self) -> int | None: ...
    def encode_middle_batch(self, texts: Sequence[str]) -> Sequence[Sequence[int]]: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VocabularyMap:
    """seq(s) for every source token s: ids[offsets[s]:offsets[s + 1]].

    Attributes:
      source_fingerprint: of the source's tokenizer.
      target_fingerprint: of the target's.
      target_size: ids of the target are in [0, target_size).
      offsets: int64, source size + 1.
      ids: target ids, flat.
      start_offsets: the same for a token that begins a window; None where it is the
        same: if both tokenizers add a dummy prefix there, or neither does.
      start_ids: flat.
      byte_offsets: int64, source size + 1.
      flat_bytes: bytes of every source token inside running text; none for control
        tokens.
      mid: offsets, ids and first ids, as the kernels take them.
      start: the same for a token that begins a window.
      text: byte offsets and bytes, as the kernels take them.
    """

    source_fingerprint: str
    target_fingerprint: str
    target_size: int
    offsets: Int64[np.ndarray, " v"]
    ids: Int32[np.ndarray, " n"]
    start_offsets: Int64[np.ndarray, " v"] | None
    start_ids: Int32[np.ndarray, " m"] | None
    byte_offsets: Int64[np.ndarray, " v"]
    flat_bytes: UInt8[np.ndarray, " b"]

    mid: kernels.Seqs = field(init=False, repr=False)
    start: kernels.Seqs = field(init=False, repr=False)
    text: kernels.Text = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for ids in (self.ids, self.start_ids):
            if ids is None or not ids.size:
                continue
            if ids.min() < 0 or ids.max() >= self.target_size:
                raise SchemaError(
                    f"target ids of a vocabulary map must be in [0, {self.target_size})"
                    f", got {ids.min()} to {ids.max()}"
                )
        mid = _as_seqs(self.offsets, self.ids)
        start = mid
        if self.start_offsets is not None and self.start_ids is not None:
            start = _as_seqs(self.start_offsets, self.start_ids)
        text = (
            kernels.freeze(self.byte_offsets, np.int64),
            kernels.freeze(self.flat_bytes, np.uint8),
        )
        for name, value in (("mid", mid), ("start", start), ("text", text)):
            object.__setattr__(self, name, value)

    @property
    def source_size(self) -> int:
        """Source tokens that the map knows."""
        return self.offsets.size - 1

    def seq(self, token_id: int) -> Int32[np.ndarray, " n"]:
        """The target's tokenization of a source token inside running text."""
        return self.ids[self.offsets[token_id] : self.offsets[token_id + 1]]

    def puts_space(
        self,
        token_ids: Int32[np.ndarray, " n"],
        byte_ends: Int32[np.ndarray, " n"],
    ) -> bool:
        """Says whether the source put a space of its own in front of a window.

        Then the first token spells a space that has no bytes in the text. A tokenizer
        with a dummy prefix may leave it out where a text begins with a space.

        Args:
          token_ids: of the window, start token included.
          byte_ends: end of each.
        """
        offsets, flat = self.text
        if len(token_ids) < 2 or token_ids[1] >= self.source_size:
            return False
        first, stop = offsets[token_ids[1]], offsets[token_ids[1] + 1]
        return bool(stop - first > byte_ends[1] and flat[first] == ord(" "))

    def beginning(self, alike: bool) -> kernels.Seqs:
        """Returns what tokens that begin a window become.

        Args:
          alike: whether both tokenizers, or neither, put a space in front of it. Where
            they do not and we have no table for it, no token becomes anything.
        """
        if alike:
            return self.mid
        if self.start_offsets is not None:
            return self.start
        none = np.zeros(self.source_size + 1, np.int64)
        return _as_seqs(none, np.zeros(0, np.int32))

    def start_seq(self, token_id: int) -> Int32[np.ndarray, " n"]:
        """The same for a source token that begins a window."""
        offsets, ids, _ = self.start
        return ids[offsets[token_id] : offsets[token_id + 1]]


def build_map(source: TokenizerLike, target: TokenizerLike) -> VocabularyMap:
    """Tokenizes every source token with the target's tokenizer.

    The identity where the fingerprints are equal. Bytes that are not UTF-8 become the
    target's tokens of their valid beginning and its single-byte tokens of the rest, and
    nothing if one of these is missing. Takes seconds for the largest vocabularies.

    Returns:
      The map, with a second table for tokens that begin a window where one of the two
      tokenizers puts a dummy prefix there: "▁The" stands for "The" then. Whether
      they did in one window, `puts_space` tells.
    """
    offsets, flat_bytes = _flatten((b or b"" for b in source.token_bytes), np.uint8)
    if source.fingerprint == target.fingerprint:
        mid, start = _identity(source.size), None
    else:
        mid, start = _spell_all(source, target)
    mid_offsets, mid_ids = _flatten(mid, np.int32)
    start_offsets, start_ids = _flatten(start, np.int32) if start else (None, None)
    return VocabularyMap(
        source_fingerprint=source.fingerprint,
        target_fingerprint=target.fingerprint,
        target_size=target.size,
        offsets=mid_offsets,
        ids=mid_ids,
        start_offsets=start_offsets,
        start_ids=start_ids,
        byte_offsets=offsets,
        flat_bytes=flat_bytes,
    )


def save_map(vocabulary: VocabularyMap, sink: File) -> None:
    """Writes a map as Parquet, one row a source token; the same map, the same bytes."""
    columns = {"target_ids": _lists(*vocabulary.mid[:2])}
    if vocabulary.start_offsets is not None:
        columns["start_target_ids"] = _lists(*vocabulary.start[:2])
    offsets, flat_bytes = vocabulary.text
    columns["source_bytes"] = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(),
        offsets.size - 1,
        [None, pa.py_buffer(offsets), pa.py_buffer(flat_bytes)],
    )
    told = identity(vocabulary.source_fingerprint, vocabulary.target_fingerprint)
    size = {"target_size": str(vocabulary.target_size)}
    tables.save(pa.table(columns), {**told, **size}, sink)


def identity(source_fingerprint: str, target_fingerprint: str) -> dict[str, str]:
    """Returns what a map's file says of itself: that tells it from another."""
    return {
        "format": FORMAT,
        "source_fingerprint": source_fingerprint,
        "target_fingerprint": target_fingerprint,
    }


def load_map(
    source: File, *, source_fingerprint: str, target_fingerprint: str
) -> VocabularyMap:
    """Reads a map, and makes sure that it is between these two tokenizers.

    Raises:
      SchemaError: if the file is no map, or one of other tokenizers.
    """
    expected = identity(source_fingerprint, target_fingerprint)
    table, found = tables.load(source, expected, SCHEMA, what=WHAT)
    has_start = "start_target_ids" in table.column_names
    offsets, ids = _unlist(table["target_ids"])
    start = _unlist(table["start_target_ids"]) if has_start else (None, None)
    byte_offsets, flat_bytes = _flatten(table["source_bytes"].to_pylist(), np.uint8)
    return VocabularyMap(
        source_fingerprint=source_fingerprint,
        target_fingerprint=target_fingerprint,
        target_size=int(found["target_size"]),
        offsets=offsets,
        ids=ids,
        start_offsets=start[0],
        start_ids=start[1],
        byte_offsets=byte_offsets,
        flat_bytes=flat_bytes,
    )


def _identity(size: int) -> list[Sequence[int]]:
    return [[token_id] for token_id in range(size)]


def _spell_all(
    source: TokenizerLike, target: TokenizerLike
) -> tuple[list[Sequence[int]], list[Sequence[int]] | None]:
    """Returns seq of every source token in running text, and where it begins one."""
    pieces = [piece or b"" for piece in source.token_bytes]
    roles = pair_roles(source, target)
    known = ids_by_bytes(target)
    mid = spell(pieces, roles, known, target)
    if source.has_dummy_prefix == target.has_dummy_prefix:
        return mid, None
    if source.has_dummy_prefix:
        pieces = [piece.removeprefix(b" ") for piece in pieces]
    else:  # the target's first token carries the space that it puts in front
        pieces = [b" " + piece if piece else b"" for piece in pieces]
    return mid, spell(pieces, roles, known, target)


def pair_roles(source: TokenizerLike, target: TokenizerLike) -> dict[int, list[int]]:
    """Maps the source's tokens that have a role; nothing where the target lacks it."""
    pairs: dict[int, list[int]] = {}
    for role in ROLES:
        source_id, target_id = getattr(source, role), getattr(target, role)
        if source_id is not None and (target_id is not None or source_id not in pairs):
            pairs[source_id] = [] if target_id is None else [target_id]
    return pairs


def ids_by_bytes(target: TokenizerLike) -> dict[bytes, int]:
    """Finds the target's token of some bytes.

    Where several have the same bytes, as "A" and the fallback "<0x41>" do, the one that
    the target itself would write; the lowest id if it writes none of them.
    """
    known: dict[bytes, int] = {}
    rivals: dict[bytes, list[int]] = {}
    for token_id, piece in enumerate(target.token_bytes):
        if piece and known.setdefault(piece, token_id) != token_id:
            rivals.setdefault(piece, [known[piece]]).append(token_id)
    readable = [piece for piece in rivals if _valid_prefix(piece) == piece]
    written = target.encode_middle_batch([piece.decode() for piece in readable])
    for piece, ids in zip(readable, written, strict=True):
        if len(ids) == 1 and ids[0] in rivals[piece]:
            known[piece] = int(ids[0])
    return known


def spell(
    pieces: Sequence[bytes],
    roles: dict[int, list[int]],
    known: dict[bytes, int],
    target: TokenizerLike,
) -> list[Sequence[int]]:
    """Returns seq of every piece; nothing for an empty one that has no role."""
    unknown = {piece for piece in pieces if piece and piece not in known}
    heads = {piece: _valid_prefix(piece) for piece in sorted(unknown)}
    texts = list(dict.fromkeys(heads.values()))
    written = target.encode_middle_batch([text.decode() for text in texts])
    encoded = dict(zip(texts, written, strict=True))
    seqs: dict[bytes, Sequence[int]] = {b"": []}
    for piece, head in heads.items():
        rest = [known.get(bytes([byte])) for byte in piece[len(head) :]]
        found = [token_id for token_id in rest if token_id is not None]
        complete = len(found) == len(rest)
        seqs[piece] = [*encoded[head], *found] if complete else []
    return [
        roles[s] if s in roles else [known[piece]] if piece in known else seqs[piece]
        for s, piece in enumerate(pieces)
    ]


def _valid_prefix(piece: bytes) -> bytes:
    """The longest beginning that is UTF-8."""
    try:
        piece.decode()
    except UnicodeDecodeError as error:
        return piece[: error.start]
    return piece


def _flatten(
    rows: Iterable[Sequence[int]], dtype: DTypeLike
) -> tuple[Int64[np.ndarray, " v"], Shaped[np.ndarray, " n"]]:
    """Lays rows end to end; row r is flat[offsets[r]:offsets[r + 1]]."""
    kept = list(rows)
    offsets = np.zeros(len(kept) + 1, np.int64)
    np.cumsum([len(row) for row in kept], out=offsets[1:])
    flat = np.fromiter(itertools.chain.from_iterable(kept), dtype, int(offsets[-1]))
    return offsets, flat


def _as_seqs(
    offsets: Int64[np.ndarray, " v"], ids: Int32[np.ndarray, " n"]
) -> kernels.Seqs:
    firsts = np.full(offsets.size - 1, -1, np.int32)
    some = offsets[:-1] < offsets[1:]
    firsts[some] = ids[offsets[:-1][some]]
    return (
        kernels.freeze(offsets, np.int64),
        kernels.freeze(ids, np.int32),
        kernels.freeze(firsts, np.int32),
    )


def _lists(
    offsets: Int64[np.ndarray, " v"], ids: Int32[np.ndarray, " n"]
) -> pa.LargeListArray:
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(ids))


def _unlist(
    column: pa.ChunkedArray,
) -> tuple[Int64[np.ndarray, " v"], Int32[np.ndarray, " n"]]:
    lengths = pc.list_value_length(column).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return offsets, pc.list_flatten(column).to_numpy()
