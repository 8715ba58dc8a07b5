"""Small tables that say in their own metadata what they are: maps of vocabularies.

One Parquet file each, whose metadata holds plain strings: a format, the tokenizers'
fingerprints, and whatever else tells it from another. So any reader shows them, and who
takes one in makes sure that it is the one that is wanted.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from schemas import files, parquet
from schemas.errors import SchemaError

File: TypeAlias = Any  # a path, or a binary file open at its start

_CURE = "repeat the command that wrote it with --overwrite"


def save(table: pa.Table, entries: Mapping[str, str], sink: File) -> None:
    """Writes a table with the entries that say what it is; page checksums added."""
    pq.write_table(
        table.replace_schema_metadata(dict(entries)),
        sink,
        compression="zstd",
        write_page_checksum=True,
    )


def load(
    source: File, expected: Mapping[str, str], schema: pa.Schema, *, what: str
) -> tuple[pa.Table, dict[str, str]]:
    """Reads a table whole, and makes sure that it is the one that is wanted.

    Args:
      source: a path or a binary file.
      expected: entries that it must have.
      schema: columns that it must have.
      what: what it is called in an error, such as "token map".

    Returns:
      The table, and all of its entries.

    Raises:
      SchemaError: if it is corrupt, no such table, or another one; names the file.
    """
    try:
        table = pq.read_table(source, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        if not parquet.is_corruption(error):
            raise
        raise _corrupt(source, error, what) from error
    found = _entries(table.schema)
    _check(found, expected, source, what)
    parquet.check_columns(_name(source), table.schema, schema)
    return table, found


def is_made(
    path: str, expected: Mapping[str, str], *, what: str, overwrite: bool
) -> bool:
    """Says whether a table is there already, whole, with these entries.

    Raises:
      SchemaError: if what is there is another one, or cannot be read, and `overwrite`
        is off.
    """
    if not files.exists(path):
        return False
    try:
        with files.open_input(path) as source:
            try:
                schema = pq.read_schema(source)
            except (pa.ArrowException, OSError) as error:
                if not parquet.is_corruption(error):
                    raise
                raise _corrupt(path, error, what) from error
        _check(_entries(schema), expected, path, what)
    except SchemaError:
        if overwrite:
            return False
        raise
    return True


def _entries(schema: pa.Schema) -> dict[str, str]:
    return {k.decode(): v.decode() for k, v in (schema.metadata or {}).items()}


def _corrupt(source: File, error: Exception, what: str) -> SchemaError:
    return SchemaError(
        f"a {what} must be a Parquet file, and whole, got {_name(source)} ({error});"
        f" {_CURE}"
    )


def _check(
    found: Mapping[str, str], expected: Mapping[str, str], source: File, what: str
) -> None:
    for name, value in expected.items():
        if found.get(name) != value:
            raise SchemaError(
                f"{name} of the {what} must be {value!r}, got {found.get(name)!r} in"
                f" {_name(source)}; {_CURE}"
            )


def _name(source: File) -> str:
    """Names a file for people: by its path, where it has one."""
    return str(getattr(source, "path", getattr(source, "name", source)))
