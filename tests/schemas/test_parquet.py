from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas import parquet

SCHEMA = pa.schema([pa.field("a", pa.int32(), nullable=False)])


def write(path: str, groups: int) -> None:
    with parquet.writer(path, SCHEMA, {}) as tables:
        for number in range(groups):
            tables.write(pa.table([pa.array([number], pa.int32())], schema=SCHEMA))


def parts(path: str, groups: list[int] | None) -> list[int]:
    return [table["a"][0].as_py() for table in parquet.read(path, SCHEMA, groups)]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Lists of each file that is opened whether its metadata were known."""
    known: list[bool] = []
    real = pq.ParquetFile

    def open_file(source: Any, *, metadata: Any, **more: Any) -> pq.ParquetFile:
        known.append(metadata is not None)
        return real(source, metadata=metadata, **more)

    monkeypatch.setattr(pq, "ParquetFile", open_file)
    return known


def test_metadata_of_a_file_read_in_parts_are_parsed_once(
    tmp_path: Path, opened: list[bool]
) -> None:
    path = str(tmp_path / "parts.parquet")
    write(path, 4)
    assert [parts(path, [n]) for n in range(4)] == [[0], [1], [2], [3]]
    assert opened == [False, True, True, True]


def test_metadata_of_a_file_written_anew_are_parsed_anew(
    tmp_path: Path, opened: list[bool]
) -> None:
    path = str(tmp_path / "parts.parquet")
    write(path, 1)
    assert parts(path, [0]) == [0]
    write(path, 3)
    assert parts(path, [2]) == [2]
    assert opened == [False, False]


def test_files_that_are_read_whole_keep_no_metadata_and_push_none_out(
    tmp_path: Path, opened: list[bool]
) -> None:
    one, other = str(tmp_path / "one.parquet"), str(tmp_path / "other.parquet")
    write(one, 2)
    write(other, 2)
    for groups, path in (([0], one), (None, other), (None, other), ([1], one)):
        parts(path, groups)
    assert opened == [False, False, False, True]


def test_where_a_filesystem_tells_no_version_nothing_is_kept(
    opened: list[bool],
) -> None:
    path = "memory://parts/parts.parquet"
    write(path, 2)
    assert [parts(path, [n]) for n in range(2)] == [[0], [1]]
    assert opened == [False, False]
