import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.errors import SchemaError
from tests.train import shards
from train import data
from train.data import Collator, Example
from train.shards import FusedFolder
from transforms.functional import codec

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
