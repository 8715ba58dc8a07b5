import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import AlignmentError
from transforms.functional import spans

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def array(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


@given(texts)
def test_borders_are_where_utf8_encodes_each_character(text):
    borders = spans.char_borders(text)
    assert borders.tolist() == [len(text[:at].encode()) for at in range(len(text) + 1)]


def test_a_dummy_prefix_has_no_bytes():
    assert spans.ends_from_lengths(array(4, 2), 1).tolist() == [3, 5]
    assert spans.ends_from_lengths(array(1, 3), 1).tolist() == [0, 3]


@given(texts, st.data())
def test_tokens_of_whole_characters_end_at_their_last_byte(text, data):
    cuts = data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)}
    bounds = np.array(sorted(cuts), np.int64)
    borders = spans.char_borders(text)
    starts, stops = bounds[:-1], bounds[1:]
    ends = spans.ends_from_offsets(starts, stops, borders, np.zeros_like(starts))
    assert ends.tolist() == [len(text[:stop].encode()) for stop in stops]


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.data())
def test_tokens_inside_characters_split_them_by_their_lengths(text, data):
    raw = text.encode()
    borders = spans.char_borders(text)
    cuts = data.draw(st.sets(st.integers(1, len(raw)))) | {len(raw)}
    wanted = np.array(sorted(cuts), np.int64)
    before = np.concatenate([[0], wanted[:-1]])
    starts = np.searchsorted(borders, before, side="right") - 1
    stops = np.searchsorted(borders, wanted, side="left")
    ends = spans.ends_from_offsets(starts, stops, borders, wanted - before)
    assert ends.tolist() == wanted.tolist()


def test_the_last_token_takes_a_character_that_a_normalizer_changed():
    # "ä" became four bytes in two tokens, "b" stayed
    ends = spans.ends_from_offsets(
        array(0, 0, 1), array(1, 1, 2), spans.char_borders("äb"), array(2, 2, 1)
    )
    assert ends.tolist() == [0, 2, 3]


def test_tokens_reach_up_to_the_next_one_over_composed_characters():
    ends = spans.ends_from_offsets(
        array(0, 2), array(1, 3), spans.char_borders("e\u0301x"), array(2, 1)
    )
    assert ends.tolist() == [3, 4]


def test_a_text_without_tokens_has_no_ends():
    none = array()
    assert spans.ends_from_offsets(none, none, array(0), none).tolist() == []


def test_tokens_out_of_order_are_refused():
    with pytest.raises(AlignmentError, match="token 1 starts at character 0"):
        spans.ends_from_offsets(
            array(1, 0), array(2, 1), spans.char_borders("ab"), array(1, 1)
        )


def test_gaps_name_the_group_in_front_of_them():
    # tokens   0-2  1-3      5-6    of eight characters
    gaps = spans.uncovered_chars(array(0, 1, 5), array(2, 3, 6), 8)
    assert gaps == [(0, 3, 5), (5, 6, 8)]


def test_a_gap_at_the_beginning_has_no_group():
    assert spans.uncovered_chars(array(2), array(3), 3) == [(0, 0, 2)]
    assert spans.uncovered_chars(array(), array(), 2) == [(0, 0, 2)]


def test_tokens_that_share_characters_leave_no_gap():
    assert spans.uncovered_chars(array(0, 0, 0, 1), array(1, 1, 1, 2), 2) == []
