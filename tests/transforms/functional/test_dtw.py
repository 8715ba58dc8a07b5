import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transforms.functional import dtw_cases, dtw_oracle
from transforms.functional import dtw

pieces = st.lists(st.text("ab▁é\udce9", max_size=4), min_size=1, max_size=6)
orders = st.sampled_from(["source_first", "target_first"])


def paths(i, j):
    """Yields all monotone paths from (0, 0) to (i, j)."""
    if (i, j) == (0, 0):
        yield [(0, 0)]
    for before in ((i - 1, j - 1), (i - 1, j), (i, j - 1)):
        if min(before) >= 0:
            for path in paths(*before):
                yield [*path, (i, j)]


@given(pieces, pieces)
def test_costs_are_levenshteins(source, target):
    wanted = [[dtw_oracle.levenshtein(a, b) for b in target] for a in source]
    assert dtw.edit_costs(source, target).tolist() == wanted


@given(pieces, pieces, orders)
def test_no_path_is_cheaper(source, target, ties):
    cheapest = min(
        sum(dtw_oracle.levenshtein(source[i], target[j]) for i, j in path)
        for path in paths(len(source) - 1, len(target) - 1)
    )
    assert dtw.pair_pieces(source, target, ties=ties).cost == cheapest


@given(pieces, pieces, orders)
def test_the_pairs_are_a_path_of_their_cost(source, target, ties):
    pairing = dtw.pair_pieces(source, target, ties=ties)
    partners = enumerate(dtw_cases.as_lists(pairing))
    found = [(i, j) for j, sources in partners for i in sources]
    assert found in list(paths(len(source) - 1, len(target) - 1))
    cost = sum(dtw_oracle.levenshtein(source[i], target[j]) for i, j in found)
    assert pairing.cost == cost


@given(pieces, pieces)
def test_swapping_both_the_sides_and_the_ties_swaps_the_pairs(source, target):
    one = dtw.pair_pieces(source, target, ties="source_first")
    other = dtw.pair_pieces(target, source, ties="target_first")
    pairs = {(i, j) for j, part in enumerate(dtw_cases.as_lists(one)) for i in part}
    swapped = {(i, j) for i, part in enumerate(dtw_cases.as_lists(other)) for j in part}
    assert pairs == swapped


@given(pieces, orders)
def test_equal_tokenizations_pair_one_to_one_at_no_cost(tokens, ties):
    pairing = dtw.pair_pieces(tokens, tokens, ties=ties)
    assert pairing.cost == 0
    assert dtw_cases.as_lists(pairing) == [[i] for i in range(len(tokens))]


def test_equally_cheap_steps_go_by_the_order_of_ties():
    # two ways around the middle, both for nothing, lead to the last pair
    costs = np.array([[0, 0, 1], [0, 2, 0], [1, 0, 0]], np.int32)
    places = np.arange(3, dtype=np.int32)
    pairs = [
        dtw_cases.as_lists(dtw.warp(places, places, costs, ties=ties))
        for ties in ("source_first", "target_first")
    ]
    assert pairs == [[[0], [0], [1, 2]], [[0, 1], [2], [2]]]


@pytest.mark.parametrize("ties", ["source_first", "target_first"])
@pytest.mark.parametrize(
    ("source", "target"), [([], []), (["a"], []), ([], ["a", "b"])]
)
def test_a_side_without_tokens_has_no_pairs(source, target, ties):
    pairing = dtw.pair_pieces(source, target, ties=ties)
    assert pairing.partners.tolist() == [0] * len(target)
    assert pairing.cost == 0


def test_paths_whose_cost_could_overflow_are_refused():
    places = np.zeros(2, np.int32)
    costs = np.full((1, 1), 2**28, np.int32)
    with pytest.raises(ValueError, match="less than 2\\^30"):
        dtw.warp(places, places, costs, ties="source_first")


def test_pieces_are_the_bytes_of_spans_without_a_space_in_front():
    text = "The café ".encode()
    ends = np.array([0, 3, 8, 9, 10, 10], np.int32)
    # "The", " caf" with half of the "é", its other half, a space, the EOS
    assert dtw.cut_pieces(text, ends) == ["", "The", "caf\xc3", "\xa9", "", ""]
