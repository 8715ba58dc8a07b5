from fractions import Fraction

import hypothesis
import pytest
from hypothesis import strategies as st

from train import interleave
from train.interleave import Interleave

weights = st.lists(
    st.fractions(Fraction(1, 1000), 1000, max_denominator=1000), min_size=1, max_size=5
)


@hypothesis.settings(max_examples=40)
@hypothesis.given(weights)
def test_each_stream_is_read_in_order_without_a_gap_and_has_its_share(
    given: list[Fraction],
) -> None:
    mix, seen = Interleave(given), [0] * len(given)
    for number in range(80):
        stream, place = mix.place(number)
        assert place == seen[stream]
        seen[stream] += 1
        for count, weight in zip(seen, given, strict=True):
            share = weight / sum(given)
            assert abs(count - share * (number + 1)) <= len(given)


@hypothesis.settings(max_examples=40)
@hypothesis.given(weights, st.integers(0, 10**15))
def test_a_sample_far_on_is_the_one_that_follows_the_one_before(
    given: list[Fraction], start: int
) -> None:
    mix, last = Interleave(given), {}
    for number in range(start, start + 50):
        stream, place = mix.place(number)
        assert last.get(stream, place - 1) == place - 1
        last[stream] = place


@pytest.mark.parametrize("rows", [[9], [1, 1], [7, 3, 5], [1000, 1, 64]])
def test_streams_mixed_by_their_lengths_end_together(rows: list[int]) -> None:
    mix = Interleave([Fraction(n) for n in rows])
    total = sum(rows)
    for epoch in range(3):
        for i in range(total):
            stream, place = mix.place(epoch * total + i)
            assert place // rows[stream] == epoch


def test_weights_are_what_is_written() -> None:
    assert interleave.exact([0.7, 0.1, 3.0, 1e-9]) == [
        Fraction(7, 10),
        Fraction(1, 10),
        Fraction(3),
        Fraction(1, 10**9),
    ]
