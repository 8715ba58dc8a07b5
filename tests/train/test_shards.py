import json
from pathlib import Path

import numpy as np
import pytest

from schemas import files, fused, manifest, parquet
from schemas.errors import SchemaError
from tests.train import shards
from train import order
from train.shards import FusedDataset
from transforms.functional import codec

SIZE = 40


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(shards.write(tmp_path / "fused", vocabulary=SIZE))


def test_rows_are_those_of_the_files_in_order(folder: str) -> None:
    dataset = FusedDataset(folder)
    names = [f.name for f in dataset.manifest.files]
    rows = [
        row
        for name in names
        for group in fused.read(files.join(folder, name))
        for row in group
    ]
    assert len(dataset) == len(rows) == 9
    for index in (8, 0, 4, 3, 8):
        example, row = dataset[index], rows[index]
        wanted = codec.decode_rows(row.distribution, row.input_ids, shards.table(SIZE))
        assert np.array_equal(example.input_ids, row.input_ids)
        assert np.array_equal(example.loss_mask, row.loss_mask)
        assert np.array_equal(example.rows.ids, wanted.ids)
        assert np.array_equal(example.rows.probs, wanted.probs)


def test_no_more_row_groups_are_kept_than_a_block_has(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "BLOCK_GROUPS", 1)
    dataset = FusedDataset(folder)
    for index in (0, 8, 5, 0):
        dataset[index]
    assert len(dataset._groups) == 2


def rewritten(folder: str, change: dict[str, object]) -> None:
    """Writes the first file again, row 2 of its second group changed."""
    name = manifest.read(folder, fused.STAGE).files[0].name
    path = files.join(folder, name)
    tables = list(parquet.read(path, fused.SCHEMA))
    rows = tables[1].to_pylist()
    rows[2] |= change
    tables[1] = tables[1].from_pylist(rows, schema=fused.SCHEMA)
    with parquet.writer(
        path, fused.SCHEMA, parquet.footer(path), **fused.WRITER_OPTIONS
    ) as writer:
        for table in tables:
            writer.write(table)


@pytest.mark.parametrize(
    "change",
    [
        {"distribution": b"no frame"},
        {"segment_lengths": [3]},
        {"loss_mask": [True]},
    ],
    ids=["frame", "segments", "mask"],
)
def test_a_corrupt_row_is_named_by_file_and_number(
    folder: str, change: dict[str, object]
) -> None:
    rewritten(folder, change)
    dataset = FusedDataset(folder)
    dataset[5]
    with pytest.raises(SchemaError, match=r"slice-000000\.parquet, row 6"):
        dataset[6]


def test_a_flipped_byte_is_noticed(folder: str) -> None:
    path = Path(folder, "slice-000000.parquet")
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    dataset = FusedDataset(folder)
    with pytest.raises(SchemaError, match=r"slice-000000\.parquet"):
        [dataset[row] for row in range(len(dataset))]


def test_a_truncated_file_is_named(folder: str) -> None:
    path = Path(folder, "slice-000001.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SchemaError, match=r"slice-000001\.parquet"):
        FusedDataset(folder)


def test_a_file_with_fewer_rows_than_the_manifest_says_is_refused(folder: str) -> None:
    path = Path(folder, manifest.NAME)
    value = json.loads(path.read_text())
    value["files"][0]["rows"] += 1
    path.write_text(json.dumps(value))
    with pytest.raises(SchemaError, match="must hold 8 rows"):
        FusedDataset(folder)


def test_an_unfinished_folder_is_refused(folder: str) -> None:
    Path(folder, manifest.NAME).unlink()
    with pytest.raises(SchemaError, match="finished fused folder"):
        FusedDataset(folder)
