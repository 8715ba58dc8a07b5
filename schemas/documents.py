"""Documents: the records of a corpus, read from JSON Lines, Parquet or plain text.

What cannot be used is not skipped: it comes out as a `Reject` with its place and
reason, never with its text.
"""

import contextlib
import dataclasses
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from schemas import files
from schemas.errors import SchemaError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt")
MAX_DOCUMENT_BYTES = 1 << 30
"""A longer line is refused, so that a broken or hostile file cannot fill memory."""

_ZSTD_WINDOW_BYTES = 1 << 31


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One record of a corpus: its id, its text, and a label or None."""

    doc_id: str
    text: str
    domain: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """A record that cannot be used.

    Attributes:
      file: name of the input file.
      row: its row in that file, from 0.
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
    """Names of the fields of a record: the text, and its id and domain, if any."""

    text: str = "text"
    id: str | None = None
    domain: str | None = None


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
    try:
        for row, record in enumerate(_records(path, fields)):
            yield _document(record, fields, label, name, row)
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise SchemaError(
            f"{path} must be a whole compressed file, but is truncated or corrupt"
            f" ({error}); fetch it again or leave it out"
        ) from error
    except pa.ArrowInvalid as error:
        raise SchemaError(f"{path} must be a whole Parquet file: {error}") from error


def _records(path: str, fields: Fields) -> Iterator[bytes | dict[str, Any]]:
    """Yields a file's records: undecoded lines or text, or rows as dictionaries."""
    with files.open_input(path) as raw:
        if path.endswith(".parquet"):
            yield from _rows(path, raw, fields)
        elif path.endswith(".txt"):
            yield {fields.text: _decoded(raw.read(MAX_DOCUMENT_BYTES + 1))}
        else:
            with contextlib.closing(_unpacked(path, raw)) as stream:
                yield from _lines(path, stream)


def _decoded(content: bytes) -> str | bytes:
    """Decodes UTF-8 where it is valid; bytes that are not become a reject later."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content


def _rows(path: str, raw: IO[bytes], fields: Fields) -> Iterator[dict[str, Any]]:
    file = pq.ParquetFile(raw)
    wanted = [n for n in (fields.text, fields.id, fields.domain) if n is not None]
    for name in wanted:
        if name not in file.schema_arrow.names:
            raise SchemaError(
                f"{path} must have a column {name!r}, it has"
                f" {', '.join(file.schema_arrow.names)}; name the right one by flag"
            )
    for batch in file.iter_batches(batch_size=256, columns=wanted):
        yield from batch.to_pylist()


def _unpacked(path: str, raw: IO[bytes]) -> IO[bytes]:
    if path.endswith(".gz"):
        return gzip.open(raw)  # type: ignore[return-value]
    if path.endswith(".zst"):
        unpack = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        stream = unpack.stream_reader(raw, read_across_frames=True)
        return io.BufferedReader(stream, 1 << 20)  # type: ignore[arg-type, type-var]
    return raw


def _lines(path: str, stream: IO[bytes]) -> Iterator[bytes]:
    """Yields the lines that are not blank; a too long one ends the job."""
    while line := stream.readline(MAX_DOCUMENT_BYTES + 1):
        if len(line) > MAX_DOCUMENT_BYTES:
            raise SchemaError(
                f"{path}: a line must hold at most {MAX_DOCUMENT_BYTES} bytes; is it"
                " JSON Lines, one record a line?"
            )
        if line.strip():
            yield line


def _document(
    record: bytes | dict[str, Any], fields: Fields, label: str, name: str, row: int
) -> Document | Reject:
    """Turns one record into a document, or says what is wrong with it."""
    doc_id: str | None = f"{label}:{row}"

    def reject(reason: str, detail: str) -> Reject:
        return Reject(file=name, row=row, doc_id=doc_id, reason=reason, detail=detail)

    if isinstance(record, bytes):
        try:
            record = json.loads(record)
        except UnicodeDecodeError:
            return reject("invalid_utf8", "a line must be UTF-8")
        except (ValueError, RecursionError):
            return reject("invalid_json", "a line must be one JSON object")
        if not isinstance(record, dict):
            return reject("invalid_json", "a line must be a JSON object, not a value")
    if fields.id is not None:
        value = record.get(fields.id)
        if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
            return reject("missing_id", f"field {fields.id!r} must be a string")
        doc_id = str(value)
    domain = record.get(fields.domain) if fields.domain is not None else None
    if domain is not None and not (isinstance(domain, str) and domain):
        return reject("invalid_domain", f"field {fields.domain!r} must be a string")
    if domain == "all":
        return reject("invalid_domain", "no domain may be called 'all': it is the sum")
    text = record.get(fields.text)
    if isinstance(text, bytes) or (isinstance(text, str) and _has_surrogate(text)):
        return reject("invalid_utf8", "the text must be UTF-8")
    if not isinstance(text, str):
        return reject("missing_text", f"field {fields.text!r} must be a string")
    if not text:
        return reject("empty_text", "the text must hold at least one character")
    return Document(doc_id=doc_id, text=text, domain=domain)


def _has_surrogate(text: str) -> bool:
    """Says whether JSON's escapes spelt half a character, which no UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
