"""A bounded sample of a corpus, from which its size and make are estimated.

Bytes are drawn, not files: places fall on files by their size. A `.jsonl` file is read
from a random byte on, from the line that begins next; a Parquet file from a random row
group on; what can only be read from its beginning (`.gz`, `.zst`, `.txt`) is read from
there. A corpus that is no larger than the sample may be is read whole.
"""

import codecs
import contextlib
import dataclasses
import io
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from schemas import checked, documents, files
from schemas.checked import Record
from schemas.documents import Document, Fields, Reject

PLACES = 64
"""Places that a sample is read at, at most."""

_ANYWHERE = (".jsonl", ".parquet")
"""Ends of names of files that can be read from any place on."""

_LEAST_PACKED_BYTES = 1 << 16
"""Of a compressed file at least so much is read: less may hold no line."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Piece:
    """What was read of one file from one place on.

    Attributes:
      path: the file.
      stored_bytes: what it takes in the file, compressed as it is there.
      records: its documents and rejects.
      text_bytes: UTF-8 bytes of its documents' texts.
    """

    path: str
    stored_bytes: float
    records: tuple[Document | Reject, ...]
    text_bytes: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """A sample of a corpus, and the corpus's files.

    Attributes:
      sizes: bytes of each file of the corpus, as stored, by path.
      pieces: what was read.
    """

    sizes: Mapping[str, int]
    pieces: tuple[Piece, ...]

    @property
    def documents(self) -> list[Document]:
        """The documents, in the order of the corpus."""
        records = itertools.chain.from_iterable(p.records for p in self.pieces)
        return [record for record in records if isinstance(record, Document)]

    @property
    def rejects(self) -> Counter[str]:
        """How many records could not be used, by reason."""
        records = itertools.chain.from_iterable(p.records for p in self.pieces)
        return Counter(r.reason for r in records if isinstance(r, Reject))

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of the sample's texts."""
        return sum(piece.text_bytes for piece in self.pieces)

    def ratios(self) -> dict[str, float]:
        """Estimates bytes of text for each stored byte, by the ends of files' names."""
        text: Counter[str] = Counter()
        stored: dict[str, float] = {}
        for piece in self.pieces:
            suffix = suffix_of(piece.path)
            text[suffix] += piece.text_bytes
            stored[suffix] = stored.get(suffix, 0.0) + piece.stored_bytes
        return {name: text[name] / max(1.0, size) for name, size in stored.items()}

    def file_bytes(self) -> list[float]:
        """Estimates the bytes of text of each file of the corpus."""
        ratios = self.ratios()
        return [n * ratios.get(suffix_of(path), 0.0) for path, n in self.sizes.items()]

    def is_whole(self) -> bool:
        """Says whether all of the corpus was read."""
        read = sum(piece.stored_bytes for piece in self.pieces)
        return read >= sum(self.sizes.values())


def suffix_of(path: str) -> str:
    """Returns the end of a corpus file's name that says how it is to be read."""
    return next(s for s in documents.SUFFIXES if path.endswith(s))


def take(
    paths: Iterable[str], fields: Fields, max_bytes: int, draw: np.random.Generator
) -> Sample:
    """Reads a sample of about `max_bytes`, a document at each place at least.

    Args:
      paths: files of the corpus.
      fields: where a record's text stands.
      max_bytes: bytes of records, unpacked, to read.
      draw: where places are drawn from; the same draws give the same sample.

    Raises:
      ValueError: if a file's name does not end as a corpus's should.
      SchemaError: if a file is corrupt where it is read.
    """
    sizes = _sizes(list(paths))
    filled = {path: size for path, size in sizes.items() if size}
    if sum(filled.values()) <= max_bytes:
        places = [(path, 0.0, max_bytes) for path in filled]
    else:
        places = list(_places(filled, max_bytes, draw))
    found = [_read(path, fields, place, quota) for path, place, quota in places]
    return Sample(sizes=sizes, pieces=tuple(piece for piece in found if piece.records))


def _sizes(paths: Sequence[str]) -> dict[str, int]:
    """Returns the bytes of each file, with one listing for each folder."""
    for path in paths:
        documents.check_suffix(path)
    folders = list(dict.fromkeys(map(files.parent, paths)))
    listed = dict(zip(folders, files.each(files.stamps, folders), strict=True))
    return {p: listed[files.parent(p)][files.name_of(p)][0] for p in paths}


def _places(
    sizes: Mapping[str, int], max_bytes: int, draw: np.random.Generator
) -> Iterator[tuple[str, float, int]]:
    """Draws places by size, and for every kind of file at least one.

    Yields:
      File, place in [0, 1) of it, and bytes to read there.
    """
    paths = list(sizes)
    weights = np.array([sizes[path] for path in paths], np.float64)
    counts = draw.multinomial(PLACES, weights / weights.sum())
    kinds = np.array([suffix_of(path) for path in paths])
    for kind in dict.fromkeys(kinds):
        if not counts[kinds == kind].any():
            counts[np.argmax(weights * (kinds == kind))] = 1
    quota = max(1, max_bytes // PLACES)
    for path, count in zip(paths, counts.tolist(), strict=True):
        if count and path.endswith(_ANYWHERE):
            yield from ((path, place, quota) for place in sorted(draw.random(count)))
        elif count:
            yield path, 0.0, quota * count


def _read(path: str, fields: Fields, place: float, max_bytes: int) -> Piece:
    """Reads records from a place on, until they hold `max_bytes` or the file ends."""
    records: list[Document | Reject] = []
    name = files.name_of(path)
    read, stored = 0, 0.0
    with files.open_input(path) as raw, documents.told(path):
        if path.endswith(".parquet"):
            found = _rows(path, raw, fields, place)
        elif path.endswith(".txt"):
            found = _beginning(path, raw, fields, max_bytes)
        elif path.endswith(".jsonl"):
            found = _lines(path, raw, place)
        else:
            found = _packed_lines(path, raw, max_bytes)
        for record, stored in found:  # noqa: B007, its last value is meant
            row = len(records)  # among those read here: rows before it were not
            records.append(documents.document_of(record, fields, name, name, row))
            read += _bytes_of(record)
            if read >= max_bytes:
                break
    texts = [len(r.text.encode()) for r in records if isinstance(r, Document)]
    return Piece(
        path=path, stored_bytes=stored, records=tuple(records), text_bytes=sum(texts)
    )


def _bytes_of(record: Record) -> int:
    values = record.values() if isinstance(record, dict) else [record]
    return sum(len(value) for value in values if isinstance(value, bytes))


def _lines(path: str, raw: Any, place: float) -> Iterator[tuple[Record, float]]:
    """Yields lines, each with the bytes of the file read up to its end."""
    if start := int(place * files.size(path)):
        raw.seek(start)
        raw.readline(checked.MAX_DOCUMENT_BYTES)  # the rest of a line
        if not raw.read(1):
            start = 0  # it was the last line: go on at the file's begin
        raw.seek(raw.tell() - 1 if start else 0)
    begin = raw.tell()
    for _, line in documents.lines(path, raw):
        yield line, float(raw.tell() - begin)


def _packed_lines(
    path: str, raw: Any, max_bytes: int
) -> Iterator[tuple[Record, float]]:
    """Yields lines of a compressed file, each with its share of what was unpacked.

    How far a stream has read says little of how far it has come, as it reads ahead. So
    a block is taken from the file and unpacked to its end, and all of it is counted.
    """
    size, block = files.size(path), b""
    lines: list[bytes] = []
    ends: list[int] = []
    while not lines and len(block) < size:
        block += raw.read(max(_LEAST_PACKED_BYTES, max_bytes // 4, len(block)))
        stream = documents.unpacked(path, io.BytesIO(block))
        with contextlib.suppress(*([] if len(block) >= size else [EOFError])):
            for _, line in documents.lines(path, stream):
                lines.append(line)
                ends.append(len(line) + (ends[-1] if ends else 0))
                if ends[-1] >= max_bytes:
                    break
    if not lines:
        return
    with contextlib.closing(documents.unpacked(path, io.BytesIO(block))) as stream:
        unpacked = _bytes_within(stream, is_whole=len(block) >= size)
    for line, end in zip(lines, ends, strict=True):
        yield line, len(block) * end / unpacked


def _bytes_within(stream: Any, *, is_whole: bool) -> int:
    """Counts the bytes of a stream, to where its file was cut off."""
    count = 0
    with contextlib.suppress(*([] if is_whole else [EOFError])):
        while part := stream.read1(_LEAST_PACKED_BYTES):
            count += len(part)
    return count


def _rows(
    path: str, raw: Any, fields: Fields, place: float
) -> Iterator[tuple[Record, float]]:
    """Yields rows from a row group on, each with its share of the file up to it."""
    made = pq.read_metadata(raw)
    sizes = [made.row_group(number).num_rows for number in range(made.num_row_groups)]
    first = np.searchsorted(np.cumsum(sizes), place * made.num_rows, "right")
    row_bytes = files.size(path) / max(1, made.num_rows)
    count = 0
    for number in range(int(first), made.num_row_groups):
        for row in documents.rows(path, raw, fields, number):
            count += 1
            yield row, count * row_bytes


def _beginning(
    path: str, raw: Any, fields: Fields, max_bytes: int
) -> Iterator[tuple[Record, float]]:
    """Yields the beginning of a text, cut between two characters."""
    block = raw.read(max_bytes)
    if len(block) < files.size(path):
        with contextlib.suppress(UnicodeDecodeError):  # then its reject says so
            text = codecs.getincrementaldecoder("utf-8")().decode(block)
            block = text.encode()
    yield {fields.text: block}, float(len(block))
