import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from transforms.functional import fuse
from transforms.functional.project import Projected

seeds = st.integers(0, 2**32 - 1)


def random_projected(rng: np.random.Generator, t: int, k: int, v: int) -> Projected:
    ids, probs = np.full((t, k), -1, np.int32), np.zeros((t, k), np.float32)
    covered = rng.random(t) < 0.7
    for row in np.flatnonzero(covered):
        kept = int(rng.integers(1, k + 1))
        ids[row, :kept] = rng.choice(v, kept, replace=False)
        probs[row, :kept] = np.sort(rng.dirichlet(np.ones(kept + 1))[:kept])[::-1]
    gold = np.where(covered, np.log(rng.uniform(1e-3, 1, t)), np.nan)
    tail = np.where(covered, 1 - probs.sum(axis=1), 0).astype(np.float32)
    return Projected(
        ids=ids, probs=probs, tail=tail, covered=covered, gold_logprob=gold
    )


def random_sources(seed: int) -> tuple[list[Projected], np.ndarray]:
    rng = np.random.default_rng(seed)
    t, k, v, s = (int(rng.integers(1, high)) for high in (6, 5, 12, 5))
    widths = [k, *(int(w) for w in rng.integers(1, k + 1, s - 1))]
    sources = [random_projected(rng, t, width, max(v, k)) for width in widths]
    weights = rng.dirichlet(np.ones(s), t if rng.integers(2) else None)
    return sources, weights * (rng.random(s) < 0.8)


def dense(ids: np.ndarray, probs: np.ndarray, v: int) -> np.ndarray:
    out = np.zeros((len(ids), v))
    rows, columns = np.nonzero(ids >= 0)
    np.add.at(out, (rows, ids[rows, columns]), probs[rows, columns])
    return out


@given(seeds)
def test_fusing_equals_the_dense_mixture_over_the_sources_that_speak(seed):
    sources, weights = random_sources(seed)
    t, k = sources[0].ids.shape
    shares = np.broadcast_to(weights, (t, len(sources))) * np.stack(
        [source.covered for source in sources], axis=1
    )
    total = shares.sum(axis=1)
    fused = fuse.fuse_rows(sources, weights, k=len(sources) * k)
    assert_array_equal(fused.covered, total > 0)
    shares = shares / np.where(total > 0, total, 1)[:, None]
    expected = sum(
        shares[:, [s]] * dense(source.ids, source.probs, 20)
        for s, source in enumerate(sources)
    )
    assert_allclose(dense(fused.ids, fused.probs, 20), expected, atol=1e-6)
    gold = np.nansum(
        shares * np.exp(np.stack([s.gold_logprob for s in sources], axis=1)), axis=1
    )
    spoken = fused.covered
    assert_allclose(np.exp(fused.gold_logprob[spoken]), gold[spoken], rtol=1e-9)
    assert_array_equal(fused.chosen[spoken], shares[spoken].argmax(axis=1))
    assert_array_equal(fused.chosen[~spoken], -1)


@given(seeds, st.integers(1, 8))
def test_fused_mass_and_tail_sum_to_one_in_falling_order(seed, k):
    sources, weights = random_sources(seed)
    fused = fuse.fuse_rows(sources, weights, k=k)
    total = fused.probs.sum(axis=1, dtype=np.float64) + fused.tail
    assert_allclose(total, fused.covered, atol=1e-6)
    assert (np.diff(fused.probs, axis=1) <= 0).all()
    tied = (np.diff(fused.probs, axis=1) == 0) & (fused.ids[:, 1:] >= 0)
    assert (np.diff(fused.ids, axis=1)[tied] > 0).all()


@given(seeds)
def test_the_order_of_the_sources_does_not_matter(seed):
    sources, weights = random_sources(seed)
    order = np.random.default_rng(seed).permutation(len(sources))
    k = sources[0].ids.shape[1]
    one = fuse.fuse_rows(sources, weights, k=4 * k)
    other = fuse.fuse_rows([sources[s] for s in order], weights[..., order], k=4 * k)
    assert_allclose(
        dense(one.ids, one.probs, 20), dense(other.ids, other.probs, 20), atol=1e-6
    )
    assert_allclose(one.gold_logprob, other.gold_logprob, rtol=1e-9, atol=1e-12)


@given(seeds)
def test_a_lone_source_passes_unchanged(seed):
    source = random_sources(seed)[0][0]
    fused = fuse.fuse_rows([source], np.array([0.3]), k=source.ids.shape[1])
    assert_array_equal(
        dense(fused.ids, fused.probs, 20), dense(source.ids, source.probs, 20)
    )
    assert_array_equal(fused.gold_logprob, source.gold_logprob)
    assert_allclose(fused.tail, source.tail, atol=1e-6)


def test_min_ce_leaves_empty_what_its_source_does_not_cover():
    rng = np.random.default_rng(0)
    speaks, silent = (random_projected(rng, 40, 3, 9) for _ in range(2))
    weights = np.array([0.0, 1.0])
    fused = fuse.fuse_rows([speaks, silent], weights, k=3)
    assert_array_equal(fused.covered, silent.covered)
    assert (speaks.covered & ~silent.covered).any()


def test_a_gold_token_that_no_source_allows_costs_infinitely_much():
    source = random_projected(np.random.default_rng(1), 5, 2, 4)
    source.gold_logprob[source.covered] = -np.inf
    fused = fuse.fuse_rows([source, source], np.array([0.5, 0.5]), k=2)
    assert_array_equal(fused.gold_logprob, source.gold_logprob)


@pytest.mark.parametrize("others", [(), (-1.0,)])
@pytest.mark.parametrize("first", [True, False])
def test_a_gold_token_that_one_source_does_not_know_is_unknown(first, others):
    golds = [np.nan, *others] if first else [*others, np.nan]
    sources = [random_projected(np.random.default_rng(3), 9, 2, 4) for _ in golds]
    for source, gold in zip(sources, golds, strict=True):
        source.gold_logprob[source.covered] = gold
    fused = fuse.fuse_rows(sources, np.ones(len(golds)), k=2)
    assert fused.covered.any()
    assert np.isnan(fused.gold_logprob).all()
    weights = np.array([float(gold == -1.0) for gold in golds])
    if others:  # who has no share need not know
        fused = fuse.fuse_rows(sources, weights, k=2)
        assert (fused.gold_logprob[fused.covered] == -1.0).all()


def test_misfits_are_refused():
    source = random_projected(np.random.default_rng(2), 4, 2, 6)
    with pytest.raises(ValueError, match=r"one source or more, .* got 0"):
        fuse.fuse_rows([], np.array([1.0]), k=1)
    shorter = random_projected(np.random.default_rng(2), 3, 2, 6)
    with pytest.raises(ValueError, match=r"same window, got 2 with \[3, 4\] positions"):
        fuse.fuse_rows([source, shorter], np.array([0.5, 0.5]), k=1)
    with pytest.raises(ValueError, match="k must be positive"):
        fuse.fuse_rows([source], np.array([1.0]), k=0)
    with pytest.raises(ValueError, match=r"weights must have shape \(1,\) or \(4, 1\)"):
        fuse.fuse_rows([source], np.array([0.5, 0.5]), k=1)
