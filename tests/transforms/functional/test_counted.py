import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from transforms.functional import counted

ENDS = st.lists(st.integers(0, 4), min_size=1, max_size=20).map(
    lambda widths: np.concatenate([[0], np.cumsum(widths)]).astype(np.int32)
)


@given(ENDS, st.lists(st.integers(0, 80), max_size=6).map(sorted))
def test_a_token_counts_if_one_of_its_bytes_does(ends: np.ndarray, borders: list[int]):
    spans = borders[: len(borders) // 2 * 2]
    inside = {b for at in range(0, len(spans), 2) for b in range(*spans[at : at + 2])}
    starts = [0, *ends[:-1]]
    expected = [
        not inside.isdisjoint(range(start, stop))
        for start, stop in zip(starts, ends, strict=True)
    ]
    following = False  # an empty token goes with the one behind it
    for at in range(len(expected) - 1, -1, -1):
        if starts[at] < ends[at]:
            following = expected[at]
        expected[at] = following and at > 0
    assert_array_equal(counted.counted_tokens(ends, spans), expected)
    assert counted.counted_bytes(99, spans) == len(inside)


@given(ENDS)
def test_without_spans_all_bytes_count(ends: np.ndarray) -> None:
    n_bytes = int(ends[-1])
    whole = counted.counted_tokens(ends, [0, n_bytes])
    assert_array_equal(counted.counted_tokens(ends, None), whole)
    assert counted.counted_bytes(n_bytes, None) == n_bytes


def test_a_dummy_prefix_that_stands_alone_costs_and_eos_does_not() -> None:
    ends = np.array([0, 0, 1, 4, 4], np.int32)  # start token, lone prefix, two, EOS
    found = counted.counted_tokens(ends, None)
    assert_array_equal(found, [False, True, True, True, False])


def test_spans_come_in_pairs() -> None:
    with pytest.raises(ValueError, match="zip"):
        counted.counted_tokens(np.array([0, 1], np.int32), [0])
