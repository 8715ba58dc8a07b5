import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.functional import turn_cuts

MAX_TOKENS = 12  # ten of the text's, with start token and EOS


def cut(text, borders, whole=(), *, max_tokens=MAX_TOKENS, max_bytes=None):
    def count(start, stop):
        return stop - start

    limits = {"max_tokens": max_tokens, "max_bytes": max_bytes}
    return list(turn_cuts.cut_turns(text, borders, whole, count, **limits))


def pieces(text, *given, **more):
    return [text[a:b] for a, b in cut(text, *given, **more)]


def test_as_many_turns_as_fit_stand_in_a_window():
    assert pieces("aaaabbbbcccc", [4, 8]) == ["aaaabbbb", "cccc"]


def test_a_turn_that_is_too_long_is_cut_within_and_its_rest_joins_the_next():
    assert pieces("aaaaaaaa\nbbb|cccc", [13]) == ["aaaaaaaa\n", "bbb|cccc"]


def test_a_turn_that_follows_a_long_one_begins_a_window_where_it_does_not_fit():
    text = "aaaaaaaa\nbbb|" + "x" * 9
    assert pieces(text, [13]) == ["aaaaaaaa\n", "bbb|", "x" * 9]


def test_a_control_token_is_not_cut_in_two():
    assert pieces("abcdefg<|end|>", [], [(7, 14)]) == ["abcdefg", "<|end|>"]


def test_bytes_bound_a_window_too():
    assert pieces("ääbb", [2], max_bytes=4) == ["ää", "bb"]


@given(
    st.text("ab \n", min_size=1, max_size=80),
    st.lists(st.integers(0, 80), max_size=8, unique=True),
    st.integers(3, 20),
)
def test_windows_end_to_end_are_the_text_fit_and_are_cut_at_turns_where_these_fit(
    text, borders, max_tokens
):
    borders = sorted(border for border in borders if border < len(text))
    found = cut(text, borders, max_tokens=max_tokens)
    budget = max_tokens - 2
    assert [a for a, _ in found] == [0, *(b for _, b in found[:-1])]
    assert found[-1][1] == len(text)
    assert all(0 < b - a <= budget for a, b in found)
    stops = [*borders, len(text)]
    for start, stop in found:
        fitting = [s for s in stops if start < s <= start + budget]
        if fitting:
            assert stop == fitting[-1]
    assert all(a < b for a, b in itertools.pairwise(b for _, b in found))


def test_of_a_turn_much_longer_than_a_window_the_tokens_are_never_counted():
    text, longest = "ab " * 20_000, 0

    def count(start, stop):
        nonlocal longest
        longest = max(longest, stop - start)
        return stop - start

    found = list(turn_cuts.cut_turns(text, [], (), count, max_tokens=MAX_TOKENS))
    assert found[-1][1] == len(text)
    assert longest <= 64 * MAX_TOKENS


def test_limits_too_small_for_any_text_are_refused():
    with pytest.raises(ValueError, match="max_tokens must be over 2"):
        cut("abc", [], max_tokens=2)
