import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import AlignmentError
from transforms.functional import align
from transforms.functional.align import ABSENT, CHAIN, INSIDE, STRADDLE, WHOLE


def ends(*borders: int) -> np.ndarray:
    return np.array(borders, np.int32)


def tilings(n_bytes: int) -> st.SearchStrategy[np.ndarray]:
    cuts = st.sets(st.integers(1, max(1, n_bytes - 1)))
    return cuts.map(lambda c: ends(0, *sorted(x for x in c if x < n_bytes), n_bytes))


pairs = st.integers(1, 24).flatmap(lambda n: st.tuples(tilings(n), tilings(n)))


def test_the_pictures_of_the_module_hold():
    target = ends(0, 3, 5, 9, 13, 17)  # |The|un|beli..|able| one|
    walk = align.align_spans(target, ends(0, 3, 13, 17), eos=False)
    assert walk.case.tolist() == [WHOLE, INSIDE, INSIDE, WHOLE, WHOLE]
    assert walk.row.tolist() == [0, 1, 1, 1, 2]
    assert walk.passed.tolist() == [0, 0, 1, 2, 0]

    # | unbelievable| ones|  against  | unbe|lievable| one|s|
    chain = align.align_spans(ends(0, 13, 18), ends(0, 5, 13, 17, 18), eos=False)
    assert chain.case.tolist() == [CHAIN, CHAIN]
    assert chain.row.tolist() == [0, 2]
    assert chain.stop.tolist() == [2, 4]

    # | unbeliev|able ones|  against  | unbe|lievable| ones|
    straddle = align.align_spans(ends(0, 9, 18), ends(0, 5, 13, 18), eos=False)
    assert straddle.case.tolist() == [STRADDLE, ABSENT]
    assert straddle.straddled.tolist() == [1, -1]
    assert straddle.prefix_bytes.tolist() == [4, 0]
    assert straddle.covered.tolist() == [True, False]


def test_a_walk_down_may_end_across_the_next_source_token():
    found = align.align_spans(ends(0, 2, 6, 8), ends(0, 4, 6, 8), eos=False)
    assert found.case.tolist() == [INSIDE, CHAIN, WHOLE]
    assert found.passed.tolist() == [0, 1, 0]
    assert found.row.tolist() == [0, 0, 2]


def test_empty_source_tokens_at_a_border_multiply_into_its_row():
    found = align.align_spans(ends(0, 3), ends(0, 0, 3), eos=False)
    assert (found.first.tolist(), found.row.tolist()) == ([0], [1])


def test_empty_target_tokens_are_covered_only_if_they_are_the_eos():
    target, source = ends(0, 0, 3, 3), ends(0, 3, 3)
    assert align.align_spans(target, source, eos=True).row.tolist() == [-1, 0, 1]
    alone = align.align_spans(target, ends(0, 3), eos=False)
    assert alone.row.tolist() == [-1, 0, -1]


def test_the_eos_of_an_empty_document_is_covered():
    assert align.align_spans(ends(0, 0), ends(0, 0), eos=True).row.tolist() == [0]


@given(pairs)
def test_the_same_tokenization_aligns_one_to_one(pair):
    found = align.align_spans(pair[0], pair[0], eos=False)
    assert found.row.tolist() == list(range(pair[0].size - 1))
    assert set(found.case.tolist()) == {WHOLE}


@given(pairs)
def test_a_position_is_covered_where_a_border_or_a_shared_start_lies(pair):
    target, source = (ends.tolist() for ends in pair)
    found = align.align_spans(*pair, eos=False)
    for t, a in enumerate(target[:-1]):
        start = max(x for x in source if x <= a)
        assert found.covered[t] == (start in target)
        if start in target:
            assert source[found.row[t]] == start
            assert found.passed[t] == sum(start <= x < a for x in target)


@given(pairs)
def test_every_byte_of_a_covered_position_is_accounted_for(pair):
    target, source = pair
    found = align.align_spans(target, source, eos=False)
    for t in np.flatnonzero(found.covered):
        row, stop = found.row[t], found.stop[t]
        reached = source[stop] + found.prefix_bytes[t]
        if found.case[t] == INSIDE:
            assert target[t + 1] < source[row + 1]
            assert stop == row + 1
        else:
            assert reached == target[t + 1]
        assert (found.case[t] == STRADDLE) == (found.straddled[t] >= 0)
        if found.case[t] == STRADDLE:
            assert found.straddled[t] == stop
            assert source[stop] < target[t + 1] < source[stop + 1]


def test_tokenizations_of_different_texts_are_refused():
    with pytest.raises(AlignmentError, match=r"same bytes, got 3 .* and 4"):
        align.align_spans(ends(0, 3), ends(0, 4), eos=False)


@pytest.mark.parametrize("bad", [ends(), ends(1, 3), ends(0, 2, 1, 3)])
def test_byte_ends_that_do_not_rise_from_zero_are_refused(bad):
    with pytest.raises(AlignmentError, match="source byte ends must start at 0"):
        align.align_spans(ends(0, 3), bad, eos=False)
