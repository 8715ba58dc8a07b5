from pathlib import Path

import numpy as np
import pytest

from schemas import files, fused, manifest
from schemas.errors import SchemaError
from schemas.fused import FusedRow
from tests.train import shards
from train import data
from train.data import Example
from train.order import GROUP_ROWS
from train.shards import FusedFolder
from transforms.functional import codec

SIZE = 40
EMPTY: dict[str, object] = {name: [] for name in data.COLUMNS if name != "distribution"}
"""A row without tokens."""


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(shards.write(tmp_path / "fused", vocabulary=SIZE))


def example(folder: FusedFolder, row: int) -> Example:
    file, place = folder.place(row)
    return folder.read(file, place // GROUP_ROWS).example(place % GROUP_ROWS)


def all_rows(folder: FusedFolder) -> list[FusedRow]:
    paths = [files.join(folder.folder, f.name) for f in folder.manifest.files]
    return [row for path in paths for group in fused.read(path) for row in group]


@pytest.mark.parametrize(
    "files_of", [((4, 3), (2,)), ((64, 64, 10), (64,), (100, 30), (1,))]
)
def test_rows_are_those_of_the_files_in_order(
    tmp_path: Path, files_of: tuple[tuple[int, ...], ...]
) -> None:
    path = shards.write(tmp_path / "fused", vocabulary=SIZE, files_of=files_of)
    folder = FusedFolder(str(path))
    rows = all_rows(folder)
    assert len(folder) == len(rows) == sum(map(sum, files_of))
    for index in [*range(0, len(rows), 7), len(rows) - 1, 3]:
        found, row = example(folder, index), rows[index]
        wanted = codec.decode_rows(row.distribution, row.input_ids, shards.table(SIZE))
        assert np.array_equal(found.input_ids, row.input_ids)
        assert np.array_equal(found.loss_mask, row.loss_mask)
        assert np.array_equal(found.rows.ids, wanted.ids)
        assert np.array_equal(found.rows.probs, wanted.probs)


def test_a_folder_is_opened_without_opening_its_files(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    original = files.open_input

    def open_input(path: str) -> object:
        opened.append(files.name_of(path))
        return original(path)

    monkeypatch.setattr(files, "open_input", open_input)
    found = FusedFolder(folder)
    assert opened == [manifest.NAME]
    found.read(1, 0)
    assert opened == [manifest.NAME, "slice-000001.parquet"]


def test_groups_come_as_rows_first_need_them(tmp_path: Path) -> None:
    path = shards.write(tmp_path / "f", vocabulary=SIZE, files_of=((64, 9), (64, 64)))
    folder = FusedFolder(str(path))
    assert folder.groups(np.array([199, 3, 64, 200, 72, 73])) == [
        (1, 1),
        (0, 0),
        (0, 1),
        (1, 0),
    ]
    assert [folder.rows_in(*key) for key in [(0, 0), (0, 1), (1, 1)]] == [64, 9, 64]


@pytest.mark.parametrize(
    "change",
    [
        {"distribution": b"no frame"},
        {"segment_lengths": [3]},
        {"loss_mask": [True]},
        EMPTY,
    ],
    ids=["frame", "segments", "mask", "empty"],
)
def test_a_corrupt_row_is_named_by_file_and_number(
    folder: str, change: dict[str, object]
) -> None:
    shards.rewrite(folder, change)
    found = FusedFolder(folder)
    example(found, 5)
    with pytest.raises(SchemaError, match=r"slice-000000\.parquet, row 6"):
        example(found, 6)


@pytest.mark.parametrize(
    ("column", "last", "law"),
    [
        ("input_ids", -5, rf"must be in \[0, {SIZE}\)"),
        ("input_ids", SIZE, rf"must be in \[0, {SIZE}\)"),
        ("chunk_logprobs", 0.5, "must be at most 0"),
    ],
)
def test_a_row_that_holds_what_cannot_be_is_named_by_file_and_number(
    folder: str, column: str, last: float, law: str
) -> None:
    values = getattr(all_rows(FusedFolder(folder))[6], column).tolist()
    shards.rewrite(folder, {column: [*values[:-1], last]})
    with pytest.raises(SchemaError, match=rf"000000\.parquet, row 6: .* {law}"):
        example(FusedFolder(folder), 6)


def test_a_flipped_byte_is_named_by_file_and_rows(folder: str) -> None:
    path = Path(folder, "slice-000000.parquet")
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    found = FusedFolder(folder)
    with pytest.raises(SchemaError, match=r"slice-000000\.parquet.*rows 0 to 3"):
        found.read(0, 0)


def test_a_file_that_is_not_the_manifests_is_refused_at_once(folder: str) -> None:
    path = Path(folder, "slice-000001.parquet")
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    with pytest.raises(SchemaError, match=r"slice-000001\.parquet must have .* bytes"):
        FusedFolder(folder)
    path.unlink()
    with pytest.raises(SchemaError, match=r"slice-000001\.parquet .* is not there"):
        FusedFolder(folder)


def test_a_file_with_other_rows_than_the_manifest_says_is_refused(folder: str) -> None:
    for more in (1, -1, 100):
        shards.change_manifest(
            folder, lambda m, n=more: m["files"][0].update(rows=7 + n)
        )
        with pytest.raises(SchemaError, match=f"must hold {7 + more} rows"):
            FusedFolder(folder).read(0, 0)


def test_a_file_that_has_no_rank_table_is_refused(folder: str) -> None:
    shards.rewrite(folder, {}, footer={})
    with pytest.raises(SchemaError, match=r"slice-000000\.parquet must hold a rank"):
        FusedFolder(folder).read(0, 0)


def test_an_unfinished_folder_is_refused(folder: str) -> None:
    Path(folder, manifest.NAME).unlink()
    with pytest.raises(SchemaError, match="finished fused folder"):
        FusedFolder(folder)


def test_a_folder_without_rows_is_refused(tmp_path: Path) -> None:
    path = shards.write(tmp_path / "f", vocabulary=SIZE, files_of=())
    with pytest.raises(SchemaError, match="must hold at least one row"):
        FusedFolder(str(path))
