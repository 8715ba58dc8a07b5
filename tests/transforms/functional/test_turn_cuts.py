import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.functional import turn_cuts

MAX_TOKENS = 12  # ten of the text's, with start token and EOS


def cut(text, borders, whole=(), *, max_tokens=MAX_TOKENS, max_bytes=None, weaker=()):
    def count(start, stop):
        return stop - start

    limits = {"max_tokens": max_tokens, "max_bytes": max_bytes, "weaker": weaker}
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


def test_a_question_and_an_answer_that_do_not_fit_together_come_apart_between_them():
    text = "qqqq?aaaaaaaa!qqqq?aaaa"
    assert pieces(text, [14], weaker=[5, 19]) == ["qqqq?", "aaaaaaaa!", "qqqq?aaaa"]


def test_rounds_that_fit_are_not_cut_between_their_turns():
    assert pieces("qqaaaqqaaa", [5], weaker=[2, 7]) == ["qqaaaqqaaa"]
    assert pieces("qqaaaaqqaaaa", [6], weaker=[2, 8]) == ["qqaaaa", "qqaaaa"]


def test_an_answer_longer_than_a_window_is_not_parted_from_its_question():
    found = pieces("qqqq" + "a" * 14, [], weaker=[4])
    assert found[0].startswith("qqqqa")
    assert len(found) == 2


def test_turns_in_front_of_one_that_is_too_long_stay_whole():
    text = "qqq|aa\na|" + "t" * 14
    assert pieces(text, [], weaker=[4, 9])[0].startswith("qqq|aa\na|")


@given(
    st.lists(st.integers(1, 14), min_size=1, max_size=8), st.integers(3, 20), st.data()
)
def test_a_turn_that_fits_a_window_is_cut_by_none(sizes, max_tokens, data):
    edges = list(itertools.accumulate(sizes))
    kinds = data.draw(st.lists(st.booleans(), min_size=len(edges), max_size=len(edges)))
    strong = [e for e, kind in zip(edges[:-1], kinds, strict=False) if kind]
    weak = [e for e, kind in zip(edges[:-1], kinds, strict=False) if not kind]
    text = "ab \n" * edges[-1]
    found = cut(text[: edges[-1]], strong, weaker=weak, max_tokens=max_tokens)
    assert all(b - a <= max_tokens - 2 for a, b in found)
    stops = {b for _, b in found}
    for start, stop in zip([0, *edges], edges, strict=False):
        if stop - start <= max_tokens - 2:
            assert not stops & set(range(start + 1, stop))


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
