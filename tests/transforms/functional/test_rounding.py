from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from schemas import scores
from schemas.scores import Score
from tests.bench import divergence
from transforms.functional import rounding

SIZES = st.sampled_from([1, 2, 10, 13, 40, 70])


def rows(seed: int, k: int, scale: float, t: int = 12, v: int = 300) -> np.ndarray:
    """Draws the k likeliest logprobs of rows over v ids."""
    logits = np.random.default_rng(seed).standard_normal((t, v)) * scale
    peaks = logits.max(axis=1, keepdims=True)
    logits -= peaks + np.log(np.exp(logits - peaks).sum(axis=1, keepdims=True))
    return np.minimum(-np.sort(-logits, axis=1)[:, :k], 0).astype(np.float32)


some_rows = st.builds(
    rows, st.integers(0, 2**31), SIZES, st.sampled_from([0.1, 1.0, 3.0, 10.0, 300.0])
)


def nearest(exact: np.ndarray) -> np.ndarray:
    levels = rounding.levels_of(exact.shape[1])
    distances = np.abs(exact[:, :, None].astype(np.float64) - levels)
    return levels[distances.argmin(axis=2)]


@given(some_rows)
def test_order_stays_and_nothing_is_above_zero(exact: np.ndarray) -> None:
    rounded = rounding.round_rows(exact)
    assert (np.diff(rounded, axis=1) <= 0).all()
    assert rounded.max() <= 0


@given(some_rows)
def test_to_round_again_changes_nothing(exact: np.ndarray) -> None:
    rounded = rounding.round_rows(exact)
    assert_array_equal(rounding.round_rows(rounded), rounded)


@given(some_rows)
def test_an_entry_takes_its_nearest_level_or_one_beside_it(exact: np.ndarray) -> None:
    levels = rounding.levels_of(exact.shape[1])
    found, near = (
        np.searchsorted(-levels, -a.astype(np.float64))
        for a in (rounding.round_rows(exact), nearest(exact))
    )
    assert_array_equal(levels[found].astype(np.float32), rounding.round_rows(exact))
    assert np.abs(found - near).max() <= 1
    assert_array_equal(found[:, 8:], near[:, 8:])


@given(some_rows)
def test_rows_are_no_farther_than_if_each_entry_took_its_nearest(exact: np.ndarray):
    errors, others = (
        divergence.of_logprobs(a, exact)
        for a in (rounding.round_rows(exact), nearest(exact))
    )
    whole = np.exp(nearest(exact)).sum(axis=1) < 1 - 1e-6
    assert (errors <= others + 1e-6)[whole].all()


def test_errors_of_likely_entries_do_not_add_up_in_a_small_tail() -> None:
    exact = np.log(np.array([[0.6, 0.3995]], np.float32))
    plain = divergence.of_logprobs(nearest(exact), exact)
    assert divergence.of_logprobs(rounding.round_rows(exact), exact) < plain / 5


@pytest.mark.parametrize("k", [10, 12, 13, 48, 65, 200])
def test_the_mean_error_is_within_the_designs_bound_for_every_k(k: int) -> None:
    for scale in (1.0, 2.0, 3.0):
        exact = rows(0, k, scale, t=400, v=2000)
        errors = divergence.of_logprobs(rounding.round_rows(exact), exact)
        assert errors.mean() < 1.5e-4, scale


@pytest.mark.parametrize("k", [1, 12, 13, 64, 65])
def test_levels_fall_and_have_two_bytes_that_are_not_zero(k: int) -> None:
    levels = rounding.levels_of(k)
    assert levels[0] == 0
    assert (np.diff(levels) < 0).all()
    narrow = levels.astype(np.float32)
    assert_array_equal(narrow, levels)
    assert not (narrow.view(np.uint32) & 0xFFFF).any()


def test_what_is_not_finite_stays_and_depths_have_an_end() -> None:
    exact = np.array([[-0.1, -3e9, -np.inf], [np.nan] * 3], np.float32)
    rounded = rounding.round_rows(exact)
    assert_array_equal(rounded[0, 1:], [-65536, -np.inf])
    assert np.isnan(rounded[1]).all()


def test_rows_of_no_entry_and_no_rows_are_rounded() -> None:
    for shape in ((3, 0), (0, 10)):
        assert rounding.round_rows(np.zeros(shape, np.float32)).shape == shape


@given(st.lists(st.floats(-1e30, 1e30), max_size=9), st.integers(1, 24))
def test_significant_bits_are_kept_and_the_rest_is_zero(values, bits: int) -> None:
    exact = np.array([v for v in values if abs(v) > 1e-30], np.float32)
    rounded = rounding.round_bits(exact, bits)
    assert (np.abs(rounded - exact) <= np.abs(exact) * 2.0**-bits).all()
    assert not (rounded.view(np.uint32) & ((1 << 24 - bits) - 1)).any()


def window(exact: np.ndarray, *, told: bool) -> Score:
    """Makes a score of rows; what ran the model tells a log-sum-exp, or not."""
    t = len(exact)
    return Score(
        window_id="w",
        token_ids=np.arange(t + 1, dtype=np.int32),
        byte_ends=np.arange(t + 1, dtype=np.int32),
        top_ids=np.zeros(exact.shape, np.int32),
        top_logprobs=exact,
        logsumexp=-10 * exact[:, 0] if told else None,
        gold_logprob=1.2345678 * exact[:, -1],
        nll_nats=31.3580239,
        n_bytes=t,
    )


@given(
    st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=6),
    st.sampled_from([1, 10, 13]),
    st.integers(1, 12),
)
def test_windows_are_rounded_together_as_each_alone(
    sizes: list[tuple[int, bool]], k: int, at_once: int
) -> None:
    made = [
        window(rows(t, k, 2.0, t=max(1, t))[:t], told=told) for t, told in sizes
    ] + [scores.failed("f", 3, "too long", k)]
    with mock.patch.object(rounding, "_AT_ONCE", at_once):
        found = rounding.round_scores(made)
    for exact, rounded in zip(made, found, strict=True):
        kept = rounding.round_rows(exact.top_logprobs)
        assert_array_equal(rounded.top_logprobs, kept)
        gold = rounding.round_bits(exact.gold_logprob, 16)
        assert_array_equal(rounded.gold_logprob, gold)
        assert (rounded.logsumexp is None) == (exact.logsumexp is None)
        if exact.logsumexp is not None:
            total = rounding.round_bits(exact.logsumexp, 11)
            assert_array_equal(rounded.logsumexp, total)
        assert rounded.nll_nats == exact.nll_nats
        assert rounded.token_ids is exact.token_ids
    assert rounding.round_scores([]) == []


def test_blocks_of_rows_are_rounded_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = rows(0, 10, 3.0, t=1000)
    exact[7, 4:] = -np.inf
    whole = rounding.round_rows(exact)
    monkeypatch.setattr(rounding, "_AT_ONCE", 7)
    assert_array_equal(rounding.round_rows(exact), whole)


@pytest.mark.parametrize("bits", [1, 11, 16, 24])
def test_what_is_finite_stays_so_when_it_is_rounded(bits: int) -> None:
    least = np.finfo(np.float32).min
    assert rounding.round_bits(np.array([least], np.float32), bits)[0] == least
