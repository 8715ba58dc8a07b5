import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from transforms.functional import edit_distance

# few letters, so that strings are near each other, and some that share a bit of a set
letters = st.sampled_from(["a", "b", " ", "中", "\udce4", "😀"]) | st.characters()
words = st.text(letters, max_size=9)
long_words = st.text(st.sampled_from("ab"), min_size=50, max_size=140)
texts = words | long_words


@given(st.lists(texts, max_size=6), st.lists(texts, min_size=1, max_size=12))
def test_the_nearest_is_what_measuring_all_pairs_finds(queries, candidates):
    places, distances = edit_distance.nearest(queries, candidates)
    for query, place, distance in zip(queries, places, distances, strict=True):
        every = [Levenshtein.distance(query, other) for other in candidates]
        assert distance == min(every)
        assert place == every.index(min(every))


def test_more_characters_than_bits_cannot_hide_the_nearest():
    rng = np.random.default_rng(0)
    alphabet = [chr(0x4E00 + i) for i in range(300)]
    words = ["".join(rng.choice(alphabet, rng.integers(1, 6))) for _ in range(400)]
    places, _ = edit_distance.nearest(words[:100], words[100:])
    for query, place in zip(words[:100], places, strict=True):
        every = [Levenshtein.distance(query, other) for other in words[100:]]
        assert place == every.index(min(every))


@given(st.lists(st.tuples(texts, texts), max_size=6))
def test_distances_are_levenshteins(pairs):
    ones, others = [one for one, _ in pairs], [other for _, other in pairs]
    found = edit_distance.distances(ones, others)
    assert found.tolist() == [Levenshtein.distance(*pair) for pair in pairs]


@pytest.mark.parametrize("size", [63, 64, 65])
def test_a_word_of_the_machine_is_no_border(size):
    query = "ab" * (size // 2) + "c" * (size % 2)
    places, distances = edit_distance.nearest([query], ["b" + query[1:-1], ""])
    assert (places[0], distances[0]) == (0, 2)


def test_without_a_candidate_there_is_no_nearest():
    with pytest.raises(ValueError, match="at least one string"):
        edit_distance.nearest(["a"], [])
    with pytest.raises(ValueError, match="in pairs, got 1 and 0"):
        edit_distance.distances(["a"], [])
