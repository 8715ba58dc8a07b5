"""Documents: the records of a corpus, read from JSON Lines, Parquet or plain text.

What cannot be used is not skipped: it comes out as a `Reject` with its place and
reason, never with its text.
"""

import contextlib
import dataclasses
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from schemas import checked, dialogues, files, parquet
from schemas.checked import MAX_DOCUMENT_BYTES, Record
from schemas.dialogues import Shape, Turn
from schemas.errors import SchemaError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt")
MAX_BATCH_BYTES = 1 << 26
"""Rows of a Parquet file become strings together up to about this size."""

_ZSTD_WINDOW_BYTES = 1 << 31
_BLOCK_BYTES = 1 << 20
_PACKED_BYTES = 1 << 12  # unpacks to 128 MiB at the very most


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One record of a corpus; label and split where it has them.

    Attributes:
      doc_id: its id; by default its file's label and row.
      text: never empty.
      row: its row in its file, or its line, blank ones counted; from 0.
      domain: its label.
      split: the split that it names.
      turns: its messages, where it is a dialogue. Its text is then what users and
        assistant say, which tells copies apart under any template.
    """

    doc_id: str
    text: str
    row: int = 0
    domain: str | None = None
    split: str | None = None
    turns: tuple[Turn, ...] | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """A record that cannot be used.

    Attributes:
      file: name of the input file.
      row: its row in that file, or its line, blank ones counted; from 0.
      doc_id: its id where it has one.
      reason: one of a few fixed words, which are counted.
      detail: what must hold and what came; never the text.
    """

    file: str
    row: int
    doc_id: str | None
    reason: str
    detail: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """Names of a record's fields: its text; and its id, domain and split, if any.

    Attributes:
      text: the text.
      id: the id.
      domain: the label.
      split: the split.
      dialogue: where the messages stand that are read in place of the text.
    """

    text: str = "text"
    id: str | None = None
    domain: str | None = None
    split: str | None = None
    dialogue: Shape | None = None

    def columns(self, there: Sequence[str]) -> list[str]:
        """Names the columns to read of those that a Parquet file has.

        Those of a dialogue may stand under several names, and are looked for in each
        record; the others must be there, and are named even where they are not.
        """
        must = (self.id, self.domain, self.split)
        may = self.dialogue.columns() if self.dialogue else ()
        text = [] if self.dialogue else [self.text]
        named = [*text, *(m for m in must if m is not None)]
        return list(dict.fromkeys([*named, *(name for name in may if name in there)]))


def check_suffix(path: str) -> None:
    """Raises ValueError if a file's name does not end as a corpus's should."""
    if not path.endswith(SUFFIXES):
        raise ValueError(
            f"an input's name must end in one of {', '.join(SUFFIXES)}, got {path}"
        )


def read(path: str, fields: Fields, label: str) -> Iterator[Document | Reject]:
    """Yields the records of one file in order.

    Args:
      path: a file whose name ends in one of `SUFFIXES`; compression by its name.
      fields: where a record's text, id and domain stand.
      label: the file's name in the corpus; a record without an id field is called
        `label:row`.

    Raises:
      SchemaError: if the file is truncated or corrupt as a whole.
    """
    check_suffix(path)
    name = files.name_of(path)
    with told(path):
        for row, record in _records(path, fields):
            yield document_of(record, fields, label, name, row)


@contextlib.contextmanager
def told(path: str) -> Iterator[None]:
    """Tells what a library finds wrong with a file as a SchemaError."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise SchemaError(
            f"{path} must be a whole compressed file, but is truncated or corrupt"
            f" ({error}); fetch it again or leave it out"
        ) from error
    except pa.ArrowException as error:
        raise SchemaError(
            f"{path} must be a whole Parquet file, but cannot be read ({error}); fetch"
            " it again or leave it out"
        ) from error


def _records(path: str, fields: Fields) -> Iterator[tuple[int, Record]]:
    """Yields a file's records by row: undecoded lines, or rows as dictionaries."""
    with files.open_input(path) as raw:
        if path.endswith(".parquet"):
            yield from enumerate(rows(path, raw, fields))
        elif path.endswith(".txt"):
            yield 0, {fields.text: _whole(path, raw)}
        else:
            with contextlib.closing(unpacked(path, raw)) as stream:
                yield from lines(path, stream)


def _whole(path: str, raw: Any) -> bytes:
    """Reads a text file."""
    content: bytes = raw.read(MAX_DOCUMENT_BYTES + 1)
    if len(content) > MAX_DOCUMENT_BYTES:
        raise SchemaError(f"{path} must hold at most {MAX_DOCUMENT_BYTES} bytes")
    return content


def rows(
    path: str, raw: Any, fields: Fields, group: int | None = None
) -> Iterator[dict[str, Any]]:
    """Yields the rows of a Parquet file, text as bytes that are not yet checked.

    Args:
      path: the file, as messages call it.
      raw: the file, open.
      fields: the columns that are read.
      group: the one row group that is read; None for all.
    """
    row = 0
    try:
        for batch in _batches(path, raw, fields, group):
            values = [_values(batch.column(name)) for name in batch.schema.names]
            for row_values in zip(*values, strict=True):
                yield dict(zip(batch.schema.names, row_values, strict=True))
                row += 1
    except (pa.ArrowException, OSError) as error:
        if not parquet.is_corruption(error):
            raise
        raise SchemaError(
            f"{path} must be a whole Parquet file, but cannot be read at row {row} or"
            f" soon behind it ({error}); fetch it again or leave it out"
        ) from error


def _batches(
    path: str, raw: Any, fields: Fields, only: int | None
) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a Parquet file, so many at once as memory holds easily."""
    file = pq.ParquetFile(raw, page_checksum_verification=True)
    wanted = fields.columns(file.schema_arrow.names)
    for name in wanted:
        if name not in file.schema_arrow.names:
            raise SchemaError(
                f"{path} must have a column {name!r}, it has"
                f" {', '.join(file.schema_arrow.names)}; name the right one by flag"
            )
    for number in range(file.num_row_groups) if only is None else [only]:
        group = file.metadata.row_group(number)
        rows_that_fit = (
            group.num_rows * MAX_BATCH_BYTES // max(1, group.total_byte_size)
        )
        yield from file.iter_batches(
            batch_size=min(256, max(1, rows_that_fit)),
            row_groups=[number],
            columns=wanted,
        )


def _values(column: pa.Array) -> Iterator[Any]:
    """Yields the values of a column: text and bytes as bytes, unless they are too long.

    Arrow does not check that text is UTF-8, and fails without a place where it is not.
    """
    return map(_plain, column)


def _plain(value: pa.Scalar) -> Any:
    """Returns a value with bytes in place of text, however deep it lies."""
    if not value.is_valid:
        return None
    if isinstance(value, pa.DictionaryScalar):
        return _plain(value.value)
    if isinstance(value, pa.BinaryScalar):  # and text of every kind
        block = value.as_buffer()
        long = block.size > MAX_DOCUMENT_BYTES
        return checked.TooLong(block.size) if long else block.to_pybytes()
    if isinstance(value, pa.ListScalar):
        return [_plain(one) for one in value.values]
    if isinstance(value, pa.StructScalar):
        return {name: _plain(one) for name, one in value.items()}
    return value.as_py()


def unpacked(path: str, raw: Any) -> Any:
    """Returns a stream of the bytes within, by the file's name."""
    if path.endswith(".gz"):
        return gzip.open(raw)
    if path.endswith(".zst"):
        return io.BufferedReader(_ZstandardStream(raw), _BLOCK_BYTES)
    return raw


class _ZstandardStream(io.RawIOBase):
    """Unpacks zstandard frames; unlike the library's reader it sees a missing end."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._unpack = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        self._frame = self._unpack.decompressobj(write_size=_BLOCK_BYTES)
        self._inside = False
        self._packed = b""
        self._plain = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills `buffer` with unpacked bytes; EOFError if the last frame has no end."""
        while not self._plain:
            self._packed = self._packed or self._raw.read(_PACKED_BYTES)
            if not self._packed:
                if self._inside:
                    raise EOFError("the last zstandard frame has no end")
                return 0
            self._plain = memoryview(self._frame.decompress(self._packed))
            self._inside, self._packed = not self._frame.eof, self._frame.unused_data
            if self._frame.eof:
                self._frame = self._unpack.decompressobj(write_size=_BLOCK_BYTES)
        count = min(len(buffer), len(self._plain))
        buffer[:count] = self._plain[:count]
        self._plain = self._plain[count:]
        return count


def lines(path: str, stream: Any) -> Iterator[tuple[int, bytes]]:
    """Yields the lines that are not blank by number; a too long one ends the job."""
    row = -1
    while line := stream.readline(MAX_DOCUMENT_BYTES + 1):
        row += 1
        if len(line) > MAX_DOCUMENT_BYTES:
            raise SchemaError(
                f"{path}: a line must hold at most {MAX_DOCUMENT_BYTES} bytes; is it"
                " JSON Lines, one record a line?"
            )
        if line.strip():
            yield row, line


def document_of(
    record: Record, fields: Fields, label: str, name: str, row: int
) -> Document | Reject:
    """Turns one record into a document, or says what is wrong with it."""
    doc_id = f"{label}:{row}"
    try:
        content = checked.parsed(record)
        if fields.id is not None:
            doc_id = checked.id_of(content.get(fields.id), fields.id)
        domain = checked.domain_of(content, fields.domain)
        split = checked.split_of(content, fields.split)
        turns = None
        if fields.dialogue is None:
            text = checked.text_of(content.get(fields.text), fields.text)
        else:
            turns = dialogues.turns_of(content, fields.dialogue)
            text = dialogues.said(turns)
    except checked.UnusableError as error:
        reason, detail = error.args
        return Reject(file=name, row=row, doc_id=doc_id, reason=reason, detail=detail)
    return Document(
        doc_id=doc_id, text=text, row=row, domain=domain, split=split, turns=turns
    )
