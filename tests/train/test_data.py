import json
from pathlib import Path

import numpy as np
import pytest
import torch

from schemas import files, fused, manifest, parquet
from schemas.errors import SchemaError
from tests.train import shards
from train import data, rows
from train.data import Collator, Example, FusedDataset
from transforms.functional import codec
from transforms.functional.codec import Distributions

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
    monkeypatch.setattr(data.order, "BLOCK_GROUPS", 1)
    dataset = FusedDataset(folder)
    for index in (0, 8, 5, 0):
        dataset[index]
    assert len(dataset._groups) == 2


def test_positions_restart_and_nothing_counts_across_segments(folder: str) -> None:
    dataset = FusedDataset(folder)
    examples = [dataset[i] for i in range(3)]
    batch = Collator(keep_packed=True, vocabulary=SIZE)(examples)
    for row, example in enumerate(examples):
        lengths, n = example.segment_lengths, len(example.input_ids)
        wanted = np.concatenate([np.arange(size) for size in lengths])
        assert batch["position_ids"][row, :n].tolist() == wanted.tolist()
        assert not batch["loss_mask"][row, np.cumsum(lengths) - 1].any()
        assert not batch["loss_mask"][row, n:].any()
        assert (
            batch["position_ids"][row, n:]
            == torch.arange(batch["position_ids"].shape[1] - n)
        ).all()
    assert batch["tokens"] == sum(len(e.input_ids) for e in examples)


def test_unpacked_segments_hold_what_the_packed_row_holds(folder: str) -> None:
    example = FusedDataset(folder)[0]
    packed = Collator(keep_packed=True, vocabulary=SIZE)([example])
    loose = Collator(keep_packed=False, vocabulary=SIZE)([example])
    lengths = example.segment_lengths.tolist()
    assert loose["input_ids"].shape == (len(lengths), max(lengths))
    for name in ("input_ids", "loss_mask", "top_ids", "probs", "tail"):
        parts = [loose[name][row, :size] for row, size in enumerate(lengths)]
        assert torch.equal(torch.cat(parts), packed[name][0])


@pytest.mark.parametrize(("lengths", "packed"), [([8, 6, 6], False), ([9, 2], True)])
def test_segments_are_unpacked_where_that_pads_little(
    lengths: list[int], packed: bool
) -> None:
    row = shards.fused_row(np.random.default_rng(0), lengths, SIZE)
    example = Example(
        input_ids=row.input_ids,
        segment_lengths=row.segment_lengths,
        loss_mask=row.loss_mask,
        rows=codec.decode_rows(row.distribution, row.input_ids, shards.table(SIZE)),
    )
    batch = Collator(keep_packed=True, vocabulary=SIZE)([example])
    shape = (1, sum(lengths)) if packed else (len(lengths), max(lengths))
    assert batch["input_ids"].shape == shape
    assert ("position_ids" in batch) == packed  # none: attention needs no mask
    assert batch["loss_mask"].sum() == row.loss_mask.sum()


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
        {"chunk_ends": [3, 2], "chunk_logprobs": [-1.0, -1.0]},
        {"chunk_logprobs": [-1.0]},
    ],
    ids=["frame", "segments", "mask", "chunks", "likelihoods"],
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


def test_a_token_beyond_the_models_vocabulary_is_refused(folder: str) -> None:
    collate = Collator(keep_packed=True, vocabulary=SIZE - 10)
    dataset = FusedDataset(folder)
    with pytest.raises(SchemaError, match=rf"must be in \[0, {SIZE - 10}\)"):
        collate([dataset[i] for i in range(9)])


def small() -> Example:
    """Two segments, of 5 tokens and of 3; the chunks are told token by token."""
    counts = np.array([2, 0, 1, 1, 0, 2, 2, 0], np.int32)
    probs = np.array([[0.5, 0.25]] * 8, np.float32)
    probs[np.arange(2) >= counts[:, None]] = 0
    ids = np.where(probs > 0, [[7, 9]], -1).astype(np.int32)
    tail = np.where(counts > 0, 1 - probs.sum(-1), 0).astype(np.float32)
    return Example(
        input_ids=np.arange(8, dtype=np.int32),
        segment_lengths=np.array([5, 3], np.int32),
        loss_mask=np.array([1, 1, 0, 1, 0, 1, 1, 0], bool),
        rows=Distributions(counts=counts, ids=ids, probs=probs, tail=tail),
        chunk_ends=np.array([2, 3, 4, 6, 7], np.int32),
        chunk_logprobs=np.array([-1, -2, -3, np.nan, -5], np.float32),
    )


@pytest.mark.parametrize("packed", [True, False])
def test_positions_are_marked_with_the_chunk_of_the_token_they_predict(
    packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "_PADDED", 0.0)
    batch = Collator(keep_packed=packed, vocabulary=SIZE, chunks=True)([small()])
    if packed:
        # Token 3 does not count, of token 6 the source says nothing.
        assert batch["chunk_of"].tolist() == [[0, 0, -1, 2, -1, -1, 4, -1]]
        assert batch["chunk_logprobs"].nan_to_num(9).tolist() == [[-1, 9, -3, 9, -5]]
    else:
        assert batch["chunk_of"].tolist() == [[0, 0, -1, 2, -1], [-1, 1, -1, -1, -1]]
        wanted = [[-1, 9, -3], [9, -5, 9]]
        assert batch["chunk_logprobs"].nan_to_num(9).tolist() == wanted
    assert rows.count(batch).tolist() == [5, 4, 3]


def test_a_chunk_counts_only_if_all_of_it_does() -> None:
    example = small()
    example.loss_mask[1] = False
    batch = Collator(keep_packed=True, vocabulary=SIZE, across=True, chunks=True)
    assert batch([example])["chunk_of"].tolist() == [[-1, -1, -1, 2, -1, -1, 4, -1]]


@pytest.mark.parametrize(
    ("weighing", "wanted"),
    [
        ("confidence", [0.5, 0, 0, 0.5, 0, 0.5, 0.5, 0]),
        ("kept", [0.75, 0, 0, 0.5, 0, 0.75, 0.75, 0]),
        ("fusellm", [1, 1, 1, 1, 1, 1, 1, 1]),
        ("fusechat", [1, 1, 0, 1, 0, 1, 1, 0]),
    ],
)
def test_positions_weigh_what_their_row_or_the_authors_mask_says(
    weighing: data.Weighing, wanted: list[float]
) -> None:
    collate = Collator(
        keep_packed=True, vocabulary=SIZE, across=True, weighing=weighing
    )
    batch = collate([small()])
    assert batch["weights"][0].tolist() == wanted
    assert rows.count(batch)[1] == sum(wanted)


def test_documents_that_see_each_other_stay_packed_and_positions_run_on() -> None:
    collate = Collator(keep_packed=False, vocabulary=SIZE, across=True)
    batch = collate([small(), small()])
    assert batch["input_ids"].shape == (2, 8)
    assert "position_ids" not in batch
    assert not batch["loss_mask"][:, 4].any()  # nor then is a document's start guessed
