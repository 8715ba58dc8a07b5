import numpy as np

from transforms.functional import reference_maps
from transforms.functional.reference_maps import Marks

MARKS = Marks(source="Ġ", target="▁", lends_prefix=True)


def test_ids_without_a_token_map_to_nothing():
    source, target = ["Ġa", None, "b"], [None, "▁a", "c"]
    assert reference_maps.exact_ids(source, target, MARKS).tolist() == [1, -1, -1]
    assert reference_maps.mined_ids(source, target, MARKS).tolist() == [1, -1, 2]


def test_the_lowest_of_the_nearest_ids_wins():
    target = ["aaaa", "xb", "bx", "b▁"]
    assert reference_maps.mined_ids(["bĠĠ", "b"], target, MARKS).tolist() == [3, 1]


def test_a_frequent_pair_is_held_off():
    # both are one edit away; sigmoid(1) = 0.73 and sigmoid(5) = 0.99
    found = count_to_map({(0, 0): 5, (0, 1): 1}, ["a"], ["b", "c"])
    assert found == [1]


def test_a_string_that_contains_the_other_is_near():
    found = count_to_map({(0, 0): 1, (0, 1): 1}, ["abcd"], ["abce", "a"])
    assert found == [1]  # 3 edits * 0.1 against 1


def test_tokens_of_marks_alone_are_compared_with_their_marks():
    found = count_to_map({(0, 0): 1, (0, 1): 1}, ["Ġ"], ["▁▁", "▁"])
    assert found == [1]


def test_what_was_never_seen_maps_to_the_unknown_and_control_tokens_by_role():
    found = count_to_map({(0, 0): 1, (2, 0): 1}, ["a", "b", "<e>"], ["a"], {2: 7})
    assert found == [0, 9, 7]


def count_to_map(counts, source, target, roles=None):
    pairs = sorted(counts)
    return reference_maps.statistical_ids(
        source,
        target,
        MARKS,
        source_ids=np.array([s for s, _ in pairs], np.int32),
        target_ids=np.array([t for _, t in pairs], np.int32),
        counts=np.array([counts[pair] for pair in pairs], np.int64),
        unseen=9,
        roles=roles or {},
    ).tolist()
