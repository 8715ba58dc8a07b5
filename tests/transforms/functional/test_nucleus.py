import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from transforms.functional import fuse, nucleus
from transforms.functional.fuse import Fused
from transforms.functional.nucleus import Nucleus


def rows(seed: int, k: int, t: int = 6) -> np.ndarray:
    """Makes falling probabilities that leave some mass, some of them 0 at the end."""
    drawn = np.random.default_rng(seed).dirichlet(np.full(k + 1, 0.3), t)
    return -np.sort(-drawn[:, :k], axis=1).astype(np.float32)


def counts(probs: np.ndarray, chosen: Nucleus) -> np.ndarray:
    return (~nucleus.outside(probs, chosen)).sum(axis=1)


@given(st.integers(0, 2**31), st.integers(1, 12), st.floats(0.01, 1), st.data())
def test_the_fewest_entries_that_hold_the_mass_stay(seed, k, top_p, data) -> None:
    min_k = data.draw(st.integers(1, k))
    probs = rows(seed, k)
    found = counts(probs, Nucleus(top_p=top_p, min_k=min_k))
    for row, count in zip(probs.astype(np.float64), found, strict=True):
        enough = [n for n in range(k + 1) if row[:n].sum() >= top_p]
        assert count == max(min_k, min(enough, default=k))


def test_entries_that_reach_the_mass_exactly_are_enough() -> None:
    probs = np.array([[0.5, 0.25, 0.125, 0.0625]], np.float32)
    assert counts(probs, Nucleus(top_p=0.75)) == [2]
    assert counts(probs, Nucleus(top_p=0.76)) == [3]
    assert counts(probs, Nucleus(top_p=0.5, min_k=3)) == [3]


@given(st.integers(0, 2**31), st.floats(0.01, 1))
def test_what_a_row_drops_goes_to_its_tail(seed: int, top_p: float) -> None:
    probs = rows(seed, 7)
    given_rows = Fused(
        ids=np.arange(42, dtype=np.int32).reshape(6, 7),
        probs=probs,
        tail=(1 - probs.sum(axis=1)).astype(np.float32),
        covered=np.ones(6, np.bool_),
        gold_logprob=np.full(6, -1.0),
        chosen=np.zeros(6, np.int16),
    )
    chosen = Nucleus(top_p=top_p)
    kept = fuse.keep_nucleus(given_rows, chosen)
    stays = ~nucleus.outside(probs, chosen)
    assert_array_equal(kept.ids, np.where(stays, given_rows.ids, -1))
    assert_array_equal(kept.probs, np.where(stays, probs, 0))
    assert_allclose(kept.probs.sum(axis=1) + kept.tail, 1, atol=1e-6)
    assert kept.gold_logprob is given_rows.gold_logprob


@pytest.mark.parametrize(
    ("top_p", "min_k", "says"),
    [
        (0.0, 1, r"top_p must be in \(0, 1\], got 0.0"),
        (1.01, 1, r"top_p must be in \(0, 1\], got 1.01"),
        (float("nan"), 1, r"top_p must be in \(0, 1\], got nan"),
        (0.9, 0, r"min_k must be in \[1, 10\], top_k, got 0"),
        (0.9, 11, r"min_k must be in \[1, 10\], top_k, got 11"),
        (None, 2, "min_k must go with top_p"),
    ],
)
def test_settings_out_of_range_are_refused(top_p, min_k: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        nucleus.of(top_p, min_k, k=10)


def test_without_a_mass_all_entries_stay() -> None:
    assert nucleus.of(None, 1, k=10) is None
