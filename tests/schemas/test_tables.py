import io
from pathlib import Path

import pyarrow as pa
import pytest

from schemas import files, tables
from schemas.errors import SchemaError

SCHEMA = pa.schema([pa.field("a", pa.int32())])
TABLE = pa.table({"a": list(range(999))}, schema=SCHEMA)
TOLD = {"format": "test.1", "made_of": "x"}


@pytest.fixture
def path(tmp_path: Path) -> str:
    made = str(tmp_path / "table.parquet")
    tables.save(TABLE, {**TOLD, "more": "m"}, made)
    return made


def test_a_table_reads_back_with_all_it_says_of_itself(path: str) -> None:
    for source in (path, files.open_input(path), io.BytesIO(files.read_bytes(path))):
        found, entries = tables.load(source, TOLD, SCHEMA, what="table")
        assert found.equals(TABLE)
        assert entries == {**TOLD, "more": "m"}


def test_another_table_is_refused_by_its_path_and_replaced_when_asked(
    path: str,
) -> None:
    assert tables.is_made(path, TOLD, what="table", overwrite=False)
    other = {**TOLD, "made_of": "y"}
    refusal = rf"made_of of the table must be 'y', got 'x' in {path}.*--overwrite"
    with pytest.raises(SchemaError, match=refusal):
        tables.is_made(path, other, what="table", overwrite=False)
    with files.open_input(path) as file, pytest.raises(SchemaError, match=refusal):
        tables.load(file, other, SCHEMA, what="table")
    assert not tables.is_made(path, other, what="table", overwrite=True)
    assert not tables.is_made(f"{path}.no", TOLD, what="table", overwrite=False)


def test_a_truncated_table_is_refused_by_its_path(path: str) -> None:
    Path(path).write_bytes(Path(path).read_bytes()[:-9])
    with pytest.raises(SchemaError, match=rf"must be a Parquet file.*{path}"):
        tables.is_made(path, TOLD, what="table", overwrite=False)
    assert not tables.is_made(path, TOLD, what="table", overwrite=True)
    with pytest.raises(SchemaError, match=rf"must be a Parquet file.*{path}"):
        tables.load(path, TOLD, SCHEMA, what="table")


def test_a_damaged_page_is_found(path: str) -> None:
    content = bytearray(Path(path).read_bytes())
    content[200] ^= 0xFF
    Path(path).write_bytes(content)
    with pytest.raises(SchemaError, match="must be a Parquet file"):
        tables.load(path, TOLD, SCHEMA, what="table")


def test_a_table_of_other_columns_is_refused(path: str) -> None:
    wanted = pa.schema([pa.field("b", pa.int32())])
    with pytest.raises(SchemaError, match=rf"{path} must have a column 'b'"):
        tables.load(path, TOLD, wanted, what="table")
