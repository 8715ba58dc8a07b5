import collections

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from train import order
from train.order import BLOCK_ROWS, GROUP_ROWS, Order, StepBatches

file_rows = st.lists(st.integers(0, 700), min_size=1, max_size=60).filter(sum)


def epoch_of(
    rows: list[int], seed: int = 0, epoch: int = 0, fingerprint: str = "data"
) -> np.ndarray:
    """All rows of an epoch, block by block."""
    made = Order(np.array(rows, np.int64), fingerprint, seed)
    found, number = [], epoch * made.rows
    while number < (epoch + 1) * made.rows:
        start, stop = made.block(number)
        assert start == number < stop
        found.append(made.rows_of(start, stop))
        number = stop
    assert number == (epoch + 1) * made.rows
    return np.concatenate(found)


@hypothesis.given(st.integers(1, 3000), st.text(max_size=3))
def test_a_permutation_has_every_place_once(size: int, words: str) -> None:
    found = order.permute(np.arange(size), size, words)
    assert np.array_equal(np.sort(found), np.arange(size))


@hypothesis.given(st.integers(1, 2**60), st.data())
def test_places_are_permuted_each_for_itself_however_many_there_are(
    size: int, data: st.DataObject
) -> None:
    places = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=9))
    found = order.permute(np.array(places, np.int64), size, "a")
    alone = [int(order.permute(np.array([p]), size, "a")[0]) for p in places]
    assert found.tolist() == alone
    assert all(0 <= place < size for place in alone)
    assert len(set(alone)) == len(set(places))


@pytest.mark.parametrize("size", [2, 3, 4, 7, 24])
def test_under_many_keys_every_place_goes_everywhere_equally_often(size: int) -> None:
    keys = 4000
    images = np.stack(
        [order.permute(np.arange(size), size, f"{size} {k}") for k in range(keys)]
    )
    wanted = keys / size
    for place in range(size):
        seen = np.bincount(images[:, place], minlength=size)
        chi_square = ((seen - wanted) ** 2 / wanted).sum()
        # Mean size - 1, variance 2 (size - 1): five deviations and room for the skew.
        assert chi_square < size - 1 + 5 * np.sqrt(2 * (size - 1)) + 8


def test_all_orders_of_four_come_equally_often() -> None:
    keys = 4800
    found = [tuple(order.permute(np.arange(4), 4, f"{k}")) for k in range(keys)]
    seen = np.unique(np.array(found), axis=0, return_counts=True)[1]
    assert len(seen) == 24
    assert ((seen - keys / 24) ** 2 / (keys / 24)).sum() < 23 + 5 * np.sqrt(46)


def test_neighbors_in_the_order_have_nothing_to_do_with_one_another() -> None:
    n = BLOCK_ROWS
    place = np.arange(n)
    for epoch in range(4):
        found = epoch_of([n], epoch=epoch).astype(float)
        pairs = [(place, found), (found[:-1], found[1:]), (found[:-2], found[2:])]
        pairs.append((found, epoch_of([n], epoch=epoch + 1).astype(float)))
        for one, other in pairs:
            # Of independent orders this has deviation 1 / sqrt(n).
            assert abs(np.corrcoef(one, other)[0, 1]) < 4.5 / np.sqrt(n)


def test_a_blocks_groups_come_from_all_files() -> None:
    files, groups = 50, 40
    found = epoch_of([groups * GROUP_ROWS] * files)
    for start in range(0, len(found), BLOCK_ROWS):
        of_file = found[start : start + BLOCK_ROWS] // (groups * GROUP_ROWS)
        if len(of_file) == BLOCK_ROWS:
            # 64 draws of 50 files leave 14 of them out in the mean.
            assert len(np.unique(of_file)) > 25


@hypothesis.given(file_rows, st.integers(0, 2**40), st.integers(0, 50))
def test_an_epoch_holds_every_row_once(rows: list[int], seed: int, epoch: int) -> None:
    found = epoch_of(rows, seed, epoch)
    assert np.array_equal(np.sort(found), np.arange(sum(rows)))


def test_order_depends_on_data_seed_and_epoch_and_on_nothing_else() -> None:
    rows = [20] * 10
    wanted = epoch_of(rows, 1)
    np.random.default_rng(0).random()
    assert np.array_equal(epoch_of(rows, 1), wanted)
    for other in [(2, 0, "data"), (1, 1, "data"), (1, 0, "other")]:
        assert not np.array_equal(epoch_of(rows, *other), wanted)


@hypothesis.given(file_rows)
def test_a_reader_of_one_block_reads_each_whole_group_once_and_what_is_left_thrice(
    rows: list[int],
) -> None:
    found, starts = epoch_of(rows), np.cumsum(rows) - rows
    file = np.searchsorted(starts, found, side="right") - 1
    group = (found - starts[file]) // GROUP_ROWS
    block = np.arange(len(found)) // BLOCK_ROWS
    read = np.unique(np.stack([file, group, block]), axis=1)[:2].T.tolist()
    for (one, number), times in collections.Counter(map(tuple, read)).items():
        whole = (number + 1) * GROUP_ROWS <= rows[one]
        assert times <= (1 if whole else 3)


def test_rows_of_a_part_of_a_block_are_that_part() -> None:
    made = Order(np.array([70, 9000, 1], np.int64), "data", 3)
    start, stop = made.block(made.rows + 5000)
    whole = made.rows_of(start, stop)
    assert np.array_equal(made.rows_of(start + 7, stop - 3), whole[7:-3])


def test_going_on_costs_no_more_after_any_number_of_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def permute(places: np.ndarray, size: int, words: str) -> np.ndarray:
        asked.append(len(places))
        return original(places, size, words)

    original, asked = order.permute, []
    monkeypatch.setattr(order, "permute", permute)
    far = 10**15
    made = Order(np.full(1000, 10**9, np.int64), "data", 0)
    (number,) = next(iter(StepBatches(steps=2 * far, start=far, step_rows=1)))
    assert number == far
    assert len(made.rows_of(number, number + 1)) == 1
    assert sum(asked) <= 3


def batches(**more: int) -> list[list[int]]:
    return list(StepBatches(steps=5, step_rows=8, **more))


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


def test_steps_follow_one_another_without_a_gap() -> None:
    assert [number for batch in batches() for number in batch] == list(range(40))


@pytest.mark.parametrize("start", range(6))
def test_a_run_that_goes_on_reads_what_an_undisturbed_one_would(start: int) -> None:
    whole = batches(accumulation=2, process=1, processes=2)
    found = batches(accumulation=2, process=1, processes=2, start=start)
    assert found == whole[2 * start :]


def test_a_step_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of accumulation x processes"):
        batches(accumulation=3)
