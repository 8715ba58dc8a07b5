import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.functional import pack

LENGTHS = st.lists(st.integers(1, 64), max_size=60)


def first_fit_decreasing(lengths: list[int], seq_length: int) -> list[list[int]]:
    rows: list[list[int]] = []
    for window in sorted(range(len(lengths)), key=lambda w: (-lengths[w], w)):
        for row in rows:
            if sum(lengths[w] for w in row) + lengths[window] <= seq_length:
                row.append(window)
                break
        else:
            rows.append([window])
    return sorted(sorted(row) for row in rows)


@given(LENGTHS, st.integers(64, 200))
def test_every_window_is_in_one_row(lengths: list[int], seq_length: int) -> None:
    rows = pack.pack_windows(lengths, seq_length)
    assert sorted(w for row in rows for w in row) == list(range(len(lengths)))
    assert all(row == sorted(row) and row for row in rows)


@given(LENGTHS, st.integers(64, 200))
def test_no_row_is_longer_than_asked(lengths: list[int], seq_length: int) -> None:
    for row in pack.pack_windows(lengths, seq_length):
        assert sum(lengths[window] for window in row) <= seq_length


@given(LENGTHS, st.integers(64, 200))
def test_rows_are_those_of_first_fit_decreasing(
    lengths: list[int], seq_length: int
) -> None:
    found = pack.pack_windows(lengths, seq_length)
    assert found == first_fit_decreasing(lengths, seq_length)


@pytest.mark.parametrize("seed", range(5))
def test_rows_of_windows_like_ours_are_99_percent_full(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = np.minimum(2048, rng.lognormal(5.5, 1, 3000).astype(int) + 1).tolist()
    rows = pack.pack_windows(lengths, 2048)
    fewest = -(-sum(lengths) // 2048)
    assert len(rows) <= fewest * 1.01 + 1


def test_a_window_longer_than_a_row_is_refused_with_the_cure() -> None:
    with pytest.raises(ValueError, match=r"window 1 is longer by 3; raise .* to 14"):
        pack.pack_windows([10, 13, 14], 10)


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ValueError, match="window 2 has 0"):
        pack.pack_windows([1, 2, 0], 10)
