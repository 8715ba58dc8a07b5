"""What stands for a source token, by each strategy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from schemas.errors import SchemaError
from tests.transforms.functional.toys import Toy, random_toy, toy
from transforms.functional import cooccurrence, counterparts, token_map, vocabulary
from transforms.functional.cooccurrence import Counts
from transforms.functional.token_map import TokenMap

BUILDERS = {
    "first": counterparts.build_first,
    "mined": counterparts.build_mined,
    "statistics": lambda source, target, **more: counterparts.build_statistics(
        source, target, NO_COUNTS, fingerprint="counts", **more
    ),
}
NO_COUNTS = cooccurrence.tally([])


def source_of(*pieces: str | bytes | None, **roles: object) -> Toy:
    return toy(*pieces, fingerprint="source", **roles)  # type: ignore[arg-type]


def counts_of(*rows: tuple[int, int, int]) -> Counts:
    sources, targets, counts = zip(*sorted(rows), strict=True)
    return Counts(
        source_ids=np.array(sources, np.int32),
        target_ids=np.array(targets, np.int32),
        counts=np.array(counts, np.int64),
    )


def ways(made: TokenMap) -> list[str]:
    return [token_map.HOW[number] for number in made.how]


every = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)


@every
def test_equal_tokenizers_map_every_id_onto_itself(build):
    same = source_of("a", None, "b", "a")
    made = build(same, source_of("a", None, "b", "a"))
    assert made.target_ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert made.distances.tolist() == [-1, -1, 0, -1, 0, 0]
    assert ways(made) == ["role", "role", "bytes", "role", "bytes", "bytes"]


@every
def test_the_same_bytes_go_before_any_strategy(build):
    made = build(source_of("ab", "b"), toy("a", "b", "ab"))
    assert made.target_ids.tolist()[2:] == [4, 3]
    assert made.distances.tolist()[2:] == [0, 0]
    assert ways(made)[2:] == ["bytes", "bytes"]


@every
def test_of_equal_bytes_the_one_that_the_target_writes_is_taken(build):
    target = toy(b"a", "b", "a")
    target.encode_middle_batch = lambda texts: [[4] for _ in texts]
    assert build(source_of("a"), target).target_ids.tolist()[2:] == [4]


@every
def test_control_tokens_map_by_role_and_never_by_spelling(build):
    source = source_of("a", None, None, "<s>", pad_id=3, unk_id=None)
    target = toy("a", None, None, "<s>", "b", bos_id=3, eos_id=4, pad_id=None, unk_id=0)
    made = build(source, target)
    assert made.target_ids.tolist() == [3, 4, 2, -1, -1, 5]
    assert ways(made) == ["role", "role", "bytes", "none", "none", "bytes"]


@every
def test_text_never_becomes_a_control_token(build):
    source = source_of("</s", "a")
    target = toy("a", None, b"<", b"/", b"s", eos_id=3)
    made = build(source, target)
    assert made.target_ids.tolist()[2:] == [4, 2]


@every
def test_what_the_target_model_has_no_logit_for_is_never_chosen(build):
    target = toy("a", "b", "ab", eos_id=1)
    made = build(source_of("ab", "abb", "b"), target, target_width=4)
    nearest = build is counterparts.build_mined
    assert made.target_ids.tolist()[2:] == ([2, 2, 3] if nearest else [-1, -1, 3])
    assert build(source_of("ab"), target, target_width=1).target_ids.max() == 0


@every
def test_bytes_that_are_no_text_find_a_fallback(build):
    target = toy("a", b"\xe4", b"\xb8")
    made = build(source_of(b"a\xe4", b"\xe4\xb8", b"\xb8"), target)
    assert made.target_ids.tolist()[2:] == [2, 3, 4]


@every
def test_a_target_without_text_gives_none(build):
    target = toy()
    target.encode_middle_batch = lambda texts: [[] for _ in texts]
    made = build(source_of("a"), target)
    assert made.target_ids.tolist() == [0, 1, -1]
    assert ways(made) == ["role", "role", "none"]


def test_first_takes_the_first_token_that_the_target_writes():
    made = counterparts.build_first(source_of("abab", "bab"), toy("a", "b", "ab"))
    assert made.target_ids.tolist()[2:] == [4, 3]
    assert made.distances.tolist()[2:] == [2, 2]
    assert ways(made)[2:] == ["first", "first"]


def test_first_gives_none_where_the_target_cannot_spell_a_byte():
    made = counterparts.build_first(source_of(b"a\xff", b"\xff"), toy("a"))
    assert made.target_ids.tolist()[2:] == [-1, -1]


def test_first_is_none_where_the_target_writes_the_unknown():
    target = toy("a", None, unk_id=3)
    target.encode_middle_batch = lambda texts: [[3] for _ in texts]
    made = counterparts.build_first(source_of("c"), target)
    assert made.target_ids.tolist()[2:] == [-1]


@given(st.integers(0, 2**32 - 1))
def test_mined_is_the_nearest_of_all_by_brute_force(seed):
    rng = np.random.default_rng(seed)
    source, target = random_toy(rng, "source", 6), random_toy(rng, "target", 6)
    made = counterparts.build_mined(source, target)
    candidates = {i: p.decode() for i, p in enumerate(target.token_bytes) if p}
    for s in range(2, source.size):
        piece = source.token_bytes[s].decode()
        apart = {i: Levenshtein.distance(piece, t) for i, t in candidates.items()}
        assert made.distances[s] == min(apart.values())
        assert made.target_ids[s] == min(apart, key=lambda i: (apart[i], i))
        assert made.how[s] in (token_map.BYTES, token_map.EDIT)


def test_mined_counts_a_space_and_a_lone_byte_as_one_character():
    target = toy("the", " they", "中", b"\xe4")
    target.encode_middle_batch = lambda texts: [[] for _ in texts]
    made = counterparts.build_mined(
        source_of(" the", b"\xe4\xb8", "中国", " 中国"), target
    )
    assert made.target_ids.tolist()[2:] == [2, 5, 4, 4]
    assert made.distances.tolist()[2:] == [1, 1, 1, 2]


def test_mined_goes_as_first_where_the_nearest_shares_nothing():
    target = toy(b"\x00", b"\xe6", b"\xa1", b"\x9c")
    made = counterparts.build_mined(source_of("桜"), target)
    assert made.target_ids[2] == 3
    assert ways(made)[2] == "first"


def test_statistics_take_the_most_frequent_then_the_nearest_then_the_lowest():
    source = source_of("aa", "bb", "ab", "bab")
    target = toy("a", "b", "aaaa", "abb", "bba")
    counts = counts_of((2, 2, 3), (2, 4, 9), (3, 3, 5), (3, 4, 5), (4, 5, 7), (4, 6, 7))
    made = counterparts.build_statistics(source, target, counts, fingerprint="counts")
    assert made.target_ids.tolist()[2:] == [4, 3, 5, 3]
    assert made.distances.tolist()[2:] == [2, 1, 1, 2]
    assert ways(made)[2:] == ["statistics", "statistics", "statistics", "first"]
    assert made.counts == "counts"
    even = counts_of((2, 5, 4), (2, 6, 4))  # "abb" and "bba" are as far from "aa"
    made = counterparts.build_statistics(source, target, even, fingerprint="counts")
    assert made.target_ids[2] == 5


def test_statistics_do_not_move_tokens_of_the_same_bytes():
    counts = counts_of((2, 3, 9))
    made = counterparts.build_statistics(
        source_of("a"), toy("a", "b"), counts, fingerprint="counts"
    )
    assert made.target_ids[2] == 2


@every
def test_a_token_that_begins_a_window_stands_for_itself_without_the_space(build):
    source = source_of(" a", "a", " ab", has_dummy_prefix=True)
    target = toy("a", " a", "b", " ")
    made, pairs = build(source, target), vocabulary.build_map(source, target)
    assert made.target_ids.tolist()[2:4] == [3, 2]
    begins = counterparts.beginning(made, pairs)
    assert begins.tolist() == [0, 1, 2, 2, int(made.target_ids[4])]


@every
def test_without_a_table_of_beginnings_nothing_begins_a_window(build):
    source = source_of(" a", "b", has_dummy_prefix=True)
    target = toy("b", " a", has_dummy_prefix=True)
    made, pairs = build(source, target), vocabulary.build_map(source, target)
    assert counterparts.beginning(made, pairs).tolist() == [-1] * source.size


def test_maps_of_other_tokenizers_have_no_beginning_in_common():
    made = counterparts.build_first(source_of("a"), toy("a"))
    other = vocabulary.build_map(source_of("a"), toy("a", fingerprint="other"))
    with pytest.raises(SchemaError, match=r"got \('source', 'toy'\) and .*other"):
        counterparts.beginning(made, other)
