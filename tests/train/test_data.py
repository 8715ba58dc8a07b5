import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.errors import SchemaError
from tests.train import shards
from train import data, rows
from train.data import Collator, Example
from train.shards import FusedFolder
from transforms.functional import codec
from transforms.functional.codec import Distributions

SIZE = 40


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(shards.write(tmp_path / "fused", vocabulary=SIZE))


def rows_of(folder: str) -> list[Example]:
    found = FusedFolder(folder)
    groups = [found.read(file, 0) for file in range(len(found.file_rows))]
    counts = found.file_rows.tolist()
    return [g.example(i) for g, n in zip(groups, counts, strict=True) for i in range(n)]


def test_a_blank_row_pads_a_batch_and_counts_nowhere(folder: str) -> None:
    examples = rows_of(folder)[:2]
    collate = Collator(keep_packed=True, vocabulary=SIZE)
    none = np.zeros((1, examples[0].weights.shape[1]), np.float32)
    blank = dataclasses.replace(data.blank(), weights=none)
    plain, padded = collate(examples), collate([*examples, blank])
    for name in ("input_ids", "loss_mask", "top_ids", "probs", "tail"):
        assert torch.equal(padded[name][:-1], plain[name])
    assert not padded["loss_mask"][-1].any()
    assert (padded["tokens"], padded["skipped"]) == (plain["tokens"], 1)
    assert plain["skipped"] == 0
    alone = collate([data.blank()])
    assert alone["input_ids"].shape == (1, 1)
    assert alone["tokens"] == 0


def test_positions_restart_and_nothing_counts_across_segments(folder: str) -> None:
    examples = rows_of(folder)[:3]
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
    example = rows_of(folder)[0]
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
        weights=row.weights,
    )
    batch = Collator(keep_packed=True, vocabulary=SIZE)([example])
    shape = (1, sum(lengths)) if packed else (len(lengths), max(lengths))
    assert batch["input_ids"].shape == shape
    assert ("position_ids" in batch) == packed  # none: attention needs no mask
    assert batch["loss_mask"].sum() == row.loss_mask.sum()


def test_a_token_beyond_the_models_vocabulary_is_refused(folder: str) -> None:
    collate = Collator(keep_packed=True, vocabulary=SIZE - 10)
    with pytest.raises(SchemaError, match=rf"must be in \[0, {SIZE - 10}\)"):
        collate(rows_of(folder))


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
        weights=np.ones((2, 1), np.float32),
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
