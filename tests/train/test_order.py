import itertools
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from train import order
from train.order import StepBatches

group_sizes = st.lists(st.integers(1, 9), min_size=1, max_size=200).map(
    lambda sizes: np.array(sizes, np.int64)
)


@hypothesis.given(group_sizes, st.integers(0, 2**40), st.integers(0, 50))
def test_an_epoch_holds_every_row_once(
    group_rows: np.ndarray, seed: int, epoch: int
) -> None:
    found = order.permute_rows(group_rows, "data", seed, epoch)
    assert np.array_equal(np.sort(found), np.arange(group_rows.sum()))


def test_order_depends_on_data_seed_and_epoch_and_on_nothing_else() -> None:
    rows = np.full(10, 20, np.int64)
    wanted = order.permute_rows(rows, "data", 1, 0)
    np.random.default_rng(0).random()
    assert np.array_equal(order.permute_rows(rows, "data", 1, 0), wanted)
    for other in [("other", 1, 0), ("data", 2, 0), ("data", 1, 1)]:
        assert not np.array_equal(order.permute_rows(rows, *other), wanted)


@hypothesis.given(group_sizes)
def test_a_reader_that_holds_one_block_of_groups_reads_each_group_once(
    group_rows: np.ndarray,
) -> None:
    group_of = np.repeat(np.arange(len(group_rows)), group_rows)
    groups = group_of[order.permute_rows(group_rows, "data", 0, 0)]
    blocks: list[set[int]] = []
    for group in groups.tolist():
        if not blocks or (
            group not in blocks[-1] and len(blocks[-1]) == order.BLOCK_GROUPS
        ):
            blocks.append(set())
        blocks[-1].add(group)
    for one, other in itertools.combinations(blocks, 2):
        assert not one & other


def batches(**more: int) -> list[list[int]]:
    rows = np.array([4, 3, 5], np.int64)
    return list(StepBatches(rows, "data", 1, steps=5, step_rows=8, **more))


def test_any_number_of_processes_and_parts_trains_a_step_on_the_same_rows() -> None:
    wanted = batches()
    for accumulation, processes in [(2, 1), (1, 4), (2, 2), (4, 2)]:
        parts = [
            batches(accumulation=accumulation, process=p, processes=processes)
            for p in range(processes)
        ]
        for step in range(5):
            rows = [
                row
                for part in parts
                for batch in part[step * accumulation : (step + 1) * accumulation]
                for row in batch
            ]
            assert sorted(rows) == sorted(wanted[step])


def test_epochs_follow_one_another_without_a_gap() -> None:
    stream = [row for batch in batches() for row in batch]
    assert len(stream) == 40
    for epoch in range(3):
        assert sorted(stream[epoch * 12 : (epoch + 1) * 12]) == list(range(12))


@pytest.mark.parametrize("start", range(6))
def test_a_run_that_goes_on_reads_what_an_undisturbed_one_would(start: int) -> None:
    whole = batches(accumulation=2, process=1, processes=2)
    found = batches(accumulation=2, process=1, processes=2, start=start)
    assert found == whole[2 * start :]


def test_going_on_costs_the_same_after_any_number_of_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def permute(*args: Any) -> Any:
        epochs.append(args[-1])
        return original(*args)

    original, epochs = order.permute_rows, []
    monkeypatch.setattr(order, "permute_rows", permute)
    rows, far = np.array([4, 3, 5], np.int64), 10**15
    sampler = StepBatches(rows, "data", 1, steps=2 * far, start=far, step_rows=8)
    next(iter(sampler))
    first = far * 8 // 12
    assert epochs == list(range(first, (far * 8 + 7) // 12 + 1))


def test_a_step_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of accumulation x processes"):
        batches(accumulation=3)
