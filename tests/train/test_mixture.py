import logging
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from schemas.errors import SchemaError
from tests.train import reading, shards
from train import order
from train.data import Collator
from train.mixture import Mixture
from train.order import StepBatches
from train.shards import FusedFolder

SIZE = 40
ROWS = (9, 140)
"""Rows of the folders."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[FusedFolder]:
    root = tmp_path_factory.mktemp("data")
    small = shards.write(root / "small", vocabulary=SIZE)
    large = shards.write(
        root / "large",
        vocabulary=SIZE,
        files_of=((64, 20), (30, 26)),
        fingerprint="l" * 32,
    )
    return [FusedFolder(str(path)) for path in (small, large)]


@pytest.fixture(scope="module")
def names(folders: list[FusedFolder]) -> dict[bytes, tuple[int, int]]:
    """Folder and row by the tokens of the row."""
    found = {}
    for number, folder in enumerate(folders):
        for row in range(len(folder)):
            file, place = folder.place(row)
            group = folder.read(file, place // order.GROUP_ROWS)
            ids = group.example(place % order.GROUP_ROWS).input_ids
            found[ids.tobytes()] = number, row
    assert len(found) == sum(ROWS)
    return found


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one group, so that a folder has several."""
    monkeypatch.setattr(order, "BLOCK_GROUPS", 1)
    monkeypatch.setattr(order, "BLOCK_ROWS", order.GROUP_ROWS)


def rows_of(
    mixture: Mixture, names: dict[bytes, tuple[int, int]], numbers: Any
) -> list[tuple[int, int]]:
    found = [names[mixture[i].input_ids.tobytes()] for i in numbers]
    mixture.close()
    return found


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("read_ahead", [0, 1, 100])
def test_an_epoch_of_one_folder_is_every_row_once_in_orders_order(
    folders: list[FusedFolder], names: dict[bytes, tuple[int, int]], read_ahead: int
) -> None:
    mixture = Mixture(folders[1:], seed=3, read_ahead=read_ahead)
    found = rows_of(mixture, names, range(2 * ROWS[1]))
    wanted = order.Order(folders[1].file_rows, "l" * 32, 3)
    for epoch in range(2):
        start, stop = epoch * ROWS[1], (epoch + 1) * ROWS[1]
        part = [row for _, row in found[start:stop]]
        assert sorted(part) == list(range(ROWS[1]))
        first, end = wanted.block(start)
        assert part[: end - first] == wanted.rows_of(first, end).tolist()
    assert found[: ROWS[1]] != found[ROWS[1] :]


def test_folders_without_weights_end_their_epochs_together(
    folders: list[FusedFolder], names: dict[bytes, tuple[int, int]]
) -> None:
    mixture = Mixture(folders, seed=3, read_ahead=2)
    found = rows_of(mixture, names, range(2 * len(mixture)))
    for epoch in (found[: len(mixture)], found[len(mixture) :]):
        assert sorted(epoch) == [
            (f, row) for f, n in enumerate(ROWS) for row in range(n)
        ]


def test_a_folder_with_a_larger_share_than_rows_begins_its_next_epoch(
    folders: list[FusedFolder], names: dict[bytes, tuple[int, int]]
) -> None:
    mixture = Mixture(folders, seed=3, weights=[Fraction(1, 2)] * 2)
    found = rows_of(mixture, names, range(40))
    small = [row for folder, row in found if folder == 0]
    assert len(small) == 20
    assert sorted(small[:9]) == sorted(small[9:18]) == list(range(9))
    assert len({row for folder, row in found if folder == 1}) == 20


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("weights", [[], [Fraction(7, 10), Fraction(3, 10)]])
def test_no_row_is_lost_or_repeated_where_the_number_of_processes_changes(
    folders: list[FusedFolder],
    names: dict[bytes, tuple[int, int]],
    weights: list[Fraction],
) -> None:
    def step_rows(start: int, stop: int, processes: int) -> list[list[tuple[int, int]]]:
        """The rows of each step, by processes that know of no others."""
        steps: list[list[tuple[int, int]]] = [[] for _ in range(start, stop)]
        for process in range(processes):
            mixture = Mixture(folders, seed=3, weights=weights, read_ahead=1)
            batches = StepBatches(
                steps=stop,
                start=start,
                step_rows=8,
                accumulation=2,
                process=process,
                processes=processes,
            )
            for number, batch in enumerate(batches):
                steps[number // 2] += rows_of(mixture, names, batch)
        return [sorted(rows) for rows in steps]

    whole = step_rows(0, 12, 1)
    parts = step_rows(0, 3, 1) + step_rows(3, 8, 2) + step_rows(8, 12, 4)
    assert parts == whole


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_reading_processes_gives_the_same_batches(
    folders: list[FusedFolder], workers: int
) -> None:
    def batches(workers: int) -> list[dict[str, torch.Tensor]]:
        mixture = Mixture(folders, seed=3, read_ahead=2)
        loader = torch.utils.data.DataLoader(
            mixture,
            batch_sampler=StepBatches(steps=4, step_rows=6),
            collate_fn=Collator(keep_packed=True, vocabulary=SIZE),
            num_workers=workers,
        )
        found = list(loader)
        mixture.close()
        return found

    for one, other in zip(batches(0), batches(workers), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("read_ahead", [0, 1])
def test_no_more_groups_are_held_than_a_block_has_and_are_read_ahead(
    folders: list[FusedFolder], read_ahead: int
) -> None:
    mixture = Mixture(folders[1:], seed=3, read_ahead=read_ahead)
    (stream,) = mixture._streams
    most = 0
    for number in range(3 * ROWS[1]):
        mixture[number]
        most = max(most, len(stream._ahead._held))
    # A block of one group's rows is one whole group, or what several files have left.
    assert most == 2 + read_ahead
    mixture.close()


def test_a_group_is_read_once_while_its_block_lasts(
    folders: list[FusedFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[int, int]] = []
    original = FusedFolder.read

    def counted(self: FusedFolder, file: int, number: int) -> Any:
        read.append((file, number))
        return original(self, file, number)

    monkeypatch.setattr(FusedFolder, "read", counted)
    mixture = Mixture(folders[1:], seed=3, read_ahead=4)
    for number in range(3 * ROWS[1]):  # all rows are one block, in every epoch
        mixture[number]
    mixture.close()
    assert sorted(read) == [(0, 0), (0, 1), (1, 0)]


def test_a_run_that_goes_on_reads_first_what_it_needs_first(
    folders: list[FusedFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[list[tuple[int, int]]] = []
    mixture = Mixture(folders[1:], seed=3, read_ahead=4)
    (stream,) = mixture._streams
    original = stream._ahead.want
    monkeypatch.setattr(
        stream._ahead, "want", lambda keys: (wanted.append(keys), original(keys))
    )
    start = ROWS[1] - 2  # two samples before the end of the epoch
    mixture[start]
    mixture.close()
    rows = order.Order(folders[1].file_rows, "l" * 32, 3).rows_of(start, ROWS[1])
    assert wanted[0][: len(set(folders[1].groups(rows)))] == folders[1].groups(rows)


def test_the_same_data_twice_is_refused(folders: list[FusedFolder]) -> None:
    again = FusedFolder(folders[0].folder)
    with pytest.raises(SchemaError, match="must name each data once"):
        Mixture([folders[0], again], seed=0)


@pytest.fixture
def broken(tmp_path: Path) -> str:
    """A folder whose row 6 is corrupt."""
    made = shards.write(tmp_path / "broken", vocabulary=SIZE)
    shards.rewrite(made, {"distribution": b"no frame"})
    return str(made)


@pytest.mark.parametrize("read_ahead", [0, 4])
def test_a_corrupt_row_is_an_error_by_file_and_number(
    broken: str, read_ahead: int
) -> None:
    mixture = Mixture([FusedFolder(broken)], seed=0, read_ahead=read_ahead)
    with pytest.raises(SchemaError, match=r"slice-000000\.parquet, row 6"):
        [mixture[i] for i in range(9)]
    mixture.close()


def test_a_corrupt_row_is_left_blank_on_request_and_told(
    broken: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = Mixture(
        [FusedFolder(str(shards.write(tmp_path / "whole", vocabulary=SIZE)))], seed=0
    )
    mixture = Mixture([FusedFolder(broken)], seed=0, skip_bad=True)
    with caplog.at_level(logging.WARNING):
        found = [mixture[i] for i in range(9)]
    (blank,) = [i for i, example in enumerate(found) if example.skipped]
    for number in set(range(9)) - {blank}:
        assert np.array_equal(found[number].input_ids, whole[number].input_ids)
    rows = order.Order(np.array([7, 2]), "f" * 32, 0).rows_of(0, 9)
    assert rows[blank] == 6
    (record,) = caplog.records
    assert "slice-000000.parquet, row 6" in record.getMessage()


def test_a_corrupt_group_leaves_all_its_rows_blank(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = shards.write(tmp_path / "broken", vocabulary=SIZE)
    path = made / "slice-000000.parquet"
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    mixture = Mixture([FusedFolder(str(made))], seed=0, skip_bad=True, read_ahead=1)
    assert sum(mixture[i].skipped for i in range(9)) == 7
    mixture.close()
    (record,) = caplog.records
    assert record.getMessage().startswith("7 rows are skipped")


def test_a_file_that_is_gone_is_an_error_even_where_rows_may_be_skipped(
    tmp_path: Path,
) -> None:
    made = shards.write(tmp_path / "gone", vocabulary=SIZE)
    mixture = Mixture([FusedFolder(str(made))], seed=0, skip_bad=True, read_ahead=1)
    (made / "slice-000001.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="slice-000001"):
        [mixture[i] for i in range(9)]
    mixture.close()


def test_threads_end_with_the_mixture(folders: list[FusedFolder]) -> None:
    mixture = Mixture(folders, seed=0, read_ahead=2)
    before = reading.threads()
    mixture[0], mixture[16]  # one of each folder
    begun = reading.threads() - before
    assert len(begun) == 8
    mixture.close()
    for thread in begun:
        thread.join(30)
        assert not thread.is_alive()
