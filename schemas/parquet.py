"""Parquet files with a footer that says what they are.

Beside the columns, a file's footer holds one JSON object under the key `fusebeam`. Its
`fingerprint` is that of the work which made the file: work is done when the final file
exists and carries the fingerprint that the work would give it now.
"""

import contextlib
import dataclasses
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas import files
from schemas.errors import SchemaError
from schemas.manifest import FileEntry

FOOTER = "fusebeam"

_OPTIONS = {"compression": "zstd", "compression_level": 3, "write_page_checksum": True}


@dataclasses.dataclass(kw_only=True)
class TableWriter:
    """Writes one file, a row group for each table; `entry` is set once it is closed.

    Attributes:
      footer: what the footer's JSON object will hold; may be filled until the end.
      rows: rows written so far.
    """

    writer: pq.ParquetWriter
    footer: dict[str, Any]
    rows: int = 0
    entry: FileEntry | None = None

    def write(self, table: pa.Table) -> None:
        """Appends a row group."""
        self.writer.write_table(table, row_group_size=max(1, table.num_rows))
        self.rows += table.num_rows


@contextlib.contextmanager
def writer(
    path: str, schema: pa.Schema, footer: Mapping[str, Any], **options: Any
) -> Iterator[TableWriter]:
    """Opens a file for writing that is published when the block ends without error.

    Args:
      path: the final name.
      schema: the columns.
      footer: what the footer's JSON object holds, `fingerprint` and `tokens` (or
        None) among them.
      **options: of pyarrow's ParquetWriter.
    """
    settings = {**_OPTIONS, **options}
    with files.publish(path) as sink:
        with pq.ParquetWriter(pa.PythonFile(sink, "w"), schema, **settings) as opened:
            tables = TableWriter(writer=opened, footer=dict(footer))
            yield tables
            text = files.canonical_json(tables.footer)
            opened.add_key_value_metadata({FOOTER: text})
        tables.entry = FileEntry(
            name=files.name_of(path),
            rows=tables.rows,
            tokens=tables.footer.get("tokens"),
            bytes=sink.bytes,
            sha256=sink.sha256,
        )


def bytes_of(tables: Iterable[pa.Table], schema: pa.Schema, **options: Any) -> int:
    """Returns how many bytes a file of these row groups takes, without writing it.

    What our own footer adds is left out.
    """
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, schema, **{**_OPTIONS, **options}) as opened:
        for table in tables:
            opened.write_table(table, row_group_size=max(1, table.num_rows))
    return sink.tell()


def metadata(path: str) -> pq.FileMetaData:
    """Reads a file's Parquet metadata.

    Raises:
      SchemaError: if the file is truncated or not Parquet; names it and the cure.
    """
    with files.open_input(path) as source:
        try:
            return pq.read_metadata(source)
        except (pa.ArrowException, OSError) as error:
            if not is_corruption(error):
                raise
            raise _corrupt(path, error) from error


def is_corruption(error: Exception) -> bool:
    """Says whether an error of pyarrow means that a file is not what it should be.

    Arrow raises plain OSError, without a number, where a page cannot be unpacked. What
    says nothing of the file, as a lost connection, has a number or another class.
    """
    return isinstance(error, pa.ArrowInvalid) or (
        type(error) is OSError and error.errno is None
    )


def _corrupt(path: str, error: Exception) -> SchemaError:
    return SchemaError(
        f"{path} must be a whole Parquet file, but cannot be read ({error}); remove it"
        " and run the command that wrote it again: only this file is made anew"
    )


def footer(path: str) -> dict[str, Any]:
    """Reads the JSON object of a file's footer; empty where there is none."""
    return _footer_of(metadata(path), path)


def _footer_of(found: pq.FileMetaData, path: str) -> dict[str, Any]:
    text = (found.metadata or {}).get(FOOTER.encode(), b"{}")
    try:
        return dict(json.loads(text))
    except ValueError as error:
        raise _corrupt(path, error) from error


def done(path: str, fingerprint: str, *, overwrite: bool = False) -> bool:
    """Says whether a file is there and was made by the work of this fingerprint.

    Raises:
      SchemaError: if the file was made by other work, or cannot be read, and
        `overwrite` is off.
    """
    if not files.exists(path):
        return False
    try:
        found = footer(path).get("fingerprint")
    except SchemaError:
        if overwrite:
            return False
        raise
    if found == fingerprint:
        return True
    if overwrite:
        return False
    raise SchemaError(
        f"{path} was made with other settings or inputs, or by another version in"
        f" another format (fingerprint {found}, wanted {fingerprint}); choose another"
        " folder, or pass --overwrite to make it anew"
    )


def read(
    path: str,
    schema: pa.Schema,
    row_groups: Iterable[int] | None = None,
    columns: Iterable[str] | None = None,
) -> Iterator[pa.Table]:
    """Yields a file's row groups in order, page checksums verified.

    Of a file that is read in parts the metadata is kept until another is: they say
    where each row group lies, so to parse them again for every part would cost the
    square of the parts.

    Raises:
      SchemaError: if the file is corrupt or its columns are not those of `schema`.
    """
    with _opened(path, schema, in_parts=row_groups is not None) as file:
        chosen = range(file.num_row_groups) if row_groups is None else row_groups
        wanted = list(columns) if columns is not None else schema.names
        for group in chosen:
            yield _row_group(file, path, group, wanted)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """Some of a file's rows, and what the file says of itself.

    Attributes:
      table: the rows.
      rows: how many the file has in all.
      footer: the JSON object of its footer.
    """

    table: pa.Table
    rows: int
    footer: dict[str, Any]


def read_rows(
    path: str, schema: pa.Schema, rows: tuple[int, int], columns: Iterable[str]
) -> Part:
    """Reads rows [start, stop), page checksums verified, in one opening of the file.

    The row groups that hold them are read whole.

    Args:
      path: the file.
      schema: columns that it must have.
      rows: start and stop; where the file ends earlier, the rows up to there.
      columns: those that are read.

    Raises:
      SchemaError: if the file is corrupt or its columns are not those of `schema`.
    """
    with _opened(path, schema, in_parts=True) as file:
        found, wanted, begin = file.metadata, list(columns), 0
        parts = []
        for group in range(found.num_row_groups):
            end = begin + found.row_group(group).num_rows
            if begin < rows[1] and rows[0] < end:
                whole = _row_group(file, path, group, wanted)
                first = max(rows[0] - begin, 0)
                parts.append(whole.slice(first, rows[1] - begin - first))
            begin = end
        empty = file.schema_arrow.empty_table().select(wanted)
        return Part(
            table=pa.concat_tables(parts) if parts else empty,
            rows=found.num_rows,
            footer=_footer_of(found, path),
        )


@contextlib.contextmanager
def _opened(path: str, schema: pa.Schema, *, in_parts: bool) -> Iterator[Any]:
    """Opens a file that has the columns of a schema."""
    with files.open_input(path) as source:
        known = _PARTS.get(path, source) if in_parts else None
        try:
            file = pq.ParquetFile(
                source, metadata=known, page_checksum_verification=True
            )
        except (pa.ArrowException, OSError) as error:
            if not is_corruption(error):
                raise
            raise _corrupt(path, error) from error
        if in_parts:
            _PARTS.keep(path, source, file.metadata)
        check_columns(path, file.schema_arrow, schema)
        yield file


def _row_group(file: Any, path: str, group: int, columns: list[str]) -> pa.Table:
    try:
        return file.read_row_group(group, columns=columns)
    except (pa.ArrowException, OSError) as error:
        if not is_corruption(error):
            raise
        sizes = [file.metadata.row_group(g).num_rows for g in range(group + 1)]
        raise SchemaError(
            f"{path}, row group {group}, rows {sum(sizes[:-1])} to {sum(sizes) - 1}, is"
            f" corrupt ({error}); remove the file and run the command that wrote it"
            " again"
        ) from error


class _Parts:
    """The metadata of the last file that was read in parts, for all threads."""

    def __init__(self) -> None:
        self._last: tuple[Any, pq.FileMetaData] | None = None

    def get(self, path: str, source: Any) -> pq.FileMetaData | None:
        """Returns the metadata of a file, if they are those of its present version."""
        last, key = self._last, (path, files.stamp(source))
        return last[1] if last is not None and last[0] == key else None

    def keep(self, path: str, source: Any, found: pq.FileMetaData) -> None:
        """Keeps the metadata of a file in place of the last one's."""
        if (stamp := files.stamp(source)) is not None:
            self._last = (path, stamp), found


_PARTS = _Parts()


def check_columns(path: str, found: pa.Schema, wanted: pa.Schema) -> None:
    """Checks that a file has all columns of `wanted`, of the same types.

    Raises:
      SchemaError: if it has not; names file and column.
    """
    for field in wanted:
        place = found.get_field_index(field.name)
        if place < 0:
            raise SchemaError(f"{path} must have a column {field.name!r}, it has not")
        if found.field(place).type != field.type:
            raise SchemaError(
                f"{path}: column {field.name!r} must be {field.type}, it is"
                f" {found.field(place).type}"
            )
