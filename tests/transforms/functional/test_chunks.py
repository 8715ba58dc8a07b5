import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from schemas.errors import AlignmentError
from transforms.functional import chunks

seeds = st.integers(0, 2**32 - 1)


def random_ends(rng: np.random.Generator, n_bytes: int, *, eos: bool) -> np.ndarray:
    """Byte ends of some tokenization; tokens without bytes anywhere in it."""
    borders = rng.integers(0, n_bytes + 1, int(rng.integers(0, 8)))
    empty = np.repeat(rng.integers(0, n_bytes + 1, 2), rng.integers(0, 3, 2))
    ends = np.sort(np.concatenate([[0], np.unique([*borders, n_bytes]), empty]))
    ends = ends[ends.searchsorted(0, "right") - 1 :] if rng.random() < 0.5 else ends
    return np.append(ends, [n_bytes] * eos).astype(np.int32)


def random_pair(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool, bool]:
    rng = np.random.default_rng(seed)
    n_bytes = int(rng.integers(1, 20))
    ended = rng.random(2) < 0.5
    target, source = (random_ends(rng, n_bytes, eos=bool(e)) for e in ended)
    gold = -rng.uniform(0, 9, source.size - 1)
    return target, source, gold, bool(ended[0]), bool(ended[1])


def cut(
    target: np.ndarray,
    source: np.ndarray,
    gold: np.ndarray,
    target_eos: bool,
    source_eos: bool,
) -> chunks.Chunks:
    return chunks.cut_chunks(
        target, source, gold, target_eos=target_eos, source_eos=source_eos
    )


@given(seeds)
def test_chunks_tile_the_windows_tokens(seed):
    target, *rest = random_pair(seed)
    ends = cut(target, *rest).ends
    assert (np.diff(ends, prepend=0) > 0).all()
    assert ends[-1] == target.size - 1


@given(seeds)
def test_chunks_end_where_a_token_of_either_ends(seed):
    target, source, gold, *eos = random_pair(seed)
    ends = cut(target, source, gold, *eos).ends
    assert np.isin(target[ends], source).all()
    shared = np.intersect1d(target, source)
    assert np.isin(shared[shared > 0], target[ends]).all()


@given(seeds)
def test_chunks_sum_to_the_sources_log_probability_of_the_text(seed):
    target, source, gold, target_eos, source_eos = random_pair(seed)
    found = cut(target, source, gold, target_eos, source_eos)
    text, said = gold[: gold.size - source_eos], found.logprobs
    if target_eos:
        end, said = said[-1], said[:-1]
        assert_array_equal(end, gold[-1] if source_eos else np.nan)
    assert_allclose(said.sum(), text.sum())


@given(seeds)
def test_with_identical_tokenizers_every_token_is_a_chunk(seed):
    _, ends, gold, _, eos = random_pair(seed)
    found = cut(ends, ends, gold, eos, eos)
    assert_array_equal(found.ends, np.arange(1, ends.size))
    assert_array_equal(found.logprobs, gold)


def test_chunks_by_hand():
    # target |The| un|believ|able| one|EOS, source |The| unbeliev|able one|EOS
    found = cut(
        np.array([0, 3, 6, 12, 16, 20, 20], np.int32),
        np.array([0, 3, 12, 20, 20], np.int32),
        np.array([-1.0, -2.0, -3.0, -4.0]),
        True,
        True,
    )
    assert found.ends.tolist() == [1, 3, 5, 6]
    assert found.logprobs.tolist() == [-1, -2, -3, -4]


def test_a_dummy_prefix_that_only_the_source_has_goes_with_the_token_behind():
    found = cut(
        np.array([0, 3, 5], np.int32),
        np.array([0, 0, 3, 5], np.int32),
        np.array([-1.0, -2.0, -4.0]),
        False,
        False,
    )
    assert found.ends.tolist() == [1, 2]
    assert found.logprobs.tolist() == [-3, -4]


def test_a_dummy_prefix_that_only_the_target_has_goes_with_the_token_behind():
    found = cut(
        np.array([0, 0, 3, 5], np.int32),
        np.array([0, 3, 5], np.int32),
        np.array([-2.0, -4.0]),
        False,
        False,
    )
    assert found.ends.tolist() == [2, 3]
    assert found.logprobs.tolist() == [-2, -4]


def test_what_has_no_number_spoils_its_own_chunk_alone():
    ends = np.array([0, 1, 2, 3], np.int32)
    found = cut(ends, ends, np.array([-1.0, np.nan, -np.inf]), False, False)
    assert_array_equal(found.logprobs, [-1, np.nan, -np.inf])


def test_a_window_that_no_source_speaks_of_is_one_chunk():
    found = chunks.cut_nothing(4)
    assert found.ends.tolist() == [3]
    assert np.isnan(found.logprobs).all()
    assert chunks.cut_nothing(1).ends.size == 0


@given(st.lists(st.floats(-1e4, 0), max_size=9))
def test_rounding_moves_a_logprob_by_less_than_its_11th_bit(logprobs):
    exact = np.array(logprobs, np.float64)
    rounded = chunks.round_logprobs(exact)
    assert_allclose(rounded, exact, rtol=2**-11, atol=1e-30)
    assert not (rounded.view(np.uint32) & 0x1FFF)[np.abs(rounded) > 1e-30].any()


@pytest.mark.parametrize("source", [[0, 4], [0]])
def test_tokenizations_of_different_texts_are_refused(source):
    ends = np.array(source, np.int32)
    with pytest.raises(AlignmentError, match="must cover the same bytes"):
        cut(np.array([0, 3], np.int32), ends, np.zeros(ends.size - 1), False, False)
