import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from schemas.scores import Score
from tests.transforms.functional import test_fuse, toys
from transforms.functional import align, fuse, project, tail, vocabulary

seeds = st.integers(0, 2**32 - 1)


def score_of(rows: toys.Rows, drawn: np.ndarray | None = None) -> Score:
    return Score(
        window_id="w",
        token_ids=rows.token_ids,
        byte_ends=rows.byte_ends,
        top_ids=rows.top_ids,
        top_logprobs=rows.top_logprobs,
        logsumexp=np.zeros_like(rows.gold_logprob),
        gold_logprob=rows.gold_logprob,
        nll_nats=1.0,
        n_bytes=1,
        sampled_ids=drawn,
    )


def cut_rows(rows: toys.Rows, k: int) -> toys.Rows:
    return dataclasses.replace(
        rows, top_ids=rows.top_ids[:, :k], top_logprobs=rows.top_logprobs[:, :k]
    )


def rest_of(rows: toys.Rows, k: int) -> list[dict[int, float]]:
    """Returns the mass of every id that is neither kept nor gold, row by row."""
    return [
        {
            int(v): float(np.exp(x))
            for v, x in zip(ids[k:], logprobs[k:], strict=True)
            if v != gold
        }
        for ids, logprobs, gold in zip(
            rows.top_ids, rows.top_logprobs, rows.token_ids[1:], strict=True
        )
    ]


def every_draw(rests: list[dict[int, float]]) -> Iterator[tuple[float, np.ndarray]]:
    """Yields what one draw a row can give, with its probability.

    One chance decides all rows, so each has its own distribution, and there are no more
    outcomes than borders between ids: what is linear in every row by itself has the
    expectation that independent draws give it.
    """
    ends = [np.cumsum(list(rest.values())) for rest in rests]
    shares = [end / end[-1] for end in ends if end.size]
    borders = np.unique(np.concatenate([[0.0, 1.0], *shares]))
    for low, high in itertools.pairwise(borders):
        middle = (low + high) / 2
        drawn = [
            list(rest)[int(np.searchsorted(end / end[-1], middle))] if rest else -1
            for rest, end in zip(rests, ends, strict=True)
        ]
        yield high - low, np.array(drawn, np.int32)[:, None]


def dense(score: Score, v: int) -> np.ndarray:
    """Spells out the kept entries and the gold over the whole vocabulary."""
    out = np.zeros((len(score.gold_logprob), v))
    for t, gold in enumerate(score.token_ids[1:]):
        kept = score.top_ids[t] >= 0
        np.add.at(out[t], score.top_ids[t][kept], np.exp(score.top_logprobs[t][kept]))
        out[t, gold] = np.exp(score.gold_logprob[t])
    return out


@dataclasses.dataclass(kw_only=True)
class Case:
    """A window under two toys, scored densely and cut down to k entries."""

    rows: toys.Rows
    width: int
    k: int
    source: toys.Toy
    target: toys.Toy
    target_ids: np.ndarray
    target_ends: np.ndarray

    @property
    def cut(self) -> toys.Rows:
        return cut_rows(self.rows, self.k)


def random_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    source, target = (toys.random_toy(rng, name) for name in ("source", "target"))
    text = toys.random_text(rng, 1, 10)
    ids, ends = toys.frame(source, toys.cut_anyhow(rng, source, text), eos=False)
    target_ids, target_ends = toys.frame(
        target, toys.cut_anyhow(rng, target, text), eos=False
    )
    rows = toys.random_rows(rng, ids, ends, logits_width=source.size, k=source.size)
    return Case(
        rows=rows,
        width=source.size,
        k=int(rng.integers(1, source.size)),
        source=source,
        target=target,
        target_ids=target_ids,
        target_ends=target_ends,
    )


@given(seeds)
def test_the_expectation_over_all_draws_is_the_dense_row(seed: int) -> None:
    case = random_case(seed)
    rests = rest_of(case.rows, case.k)
    mean = sum(
        weight * dense(tail.join_draws(score_of(case.cut, drawn)), case.width)
        for weight, drawn in every_draw(rests)
    )
    assert_allclose(mean, dense(score_of(case.rows), case.width), atol=1e-6)


def test_the_expectation_over_all_pairs_of_draws_is_the_dense_row() -> None:
    rng = np.random.default_rng(3)
    toy = toys.toy("a", "b", "aa", "ab", "ba", "bb")
    ids, ends = toys.frame(toy, [4], eos=False)
    rows = toys.random_rows(rng, ids, ends, logits_width=8, k=8)
    (rest,) = rest_of(rows, 2)
    total = sum(rest.values())
    mean = np.zeros((1, 8))
    for pair in itertools.product(rest, repeat=2):
        weight = np.prod([rest[v] / total for v in pair])
        joined = tail.join_draws(score_of(cut_rows(rows, 2), np.array([pair], "i4")))
        mean += weight * dense(joined, 8)
    assert_allclose(mean, dense(score_of(rows), 8), atol=1e-6)


@given(seeds, st.integers(1, 5))
def test_kept_gold_and_drawn_mass_sum_to_one(seed: int, r: int) -> None:
    case = random_case(seed)
    rests = rest_of(case.rows, case.k)
    rng = np.random.default_rng(seed)
    drawn = np.array(
        [rng.choice(list(rest), r) if rest else [-1] * r for rest in rests], np.int32
    )
    joined = tail.join_draws(score_of(case.cut, drawn))
    assert_allclose(dense(joined, case.width).sum(axis=1), 1, atol=1e-6)
    assert joined.top_ids.shape[1] == case.k + r
    assert joined.sampled_ids is None
    assert (np.diff(np.exp(joined.top_logprobs), axis=1) <= 0).all()
    for ids in joined.top_ids:
        kept = ids[ids >= 0]
        assert len(set(kept)) == len(kept)
        assert (ids[len(kept) :] == -1).all()


def hand_made(gold_logprob: float, *kept: float) -> toys.Rows:
    """One row that keeps ids 2, 3, ... and whose gold is id 2."""
    return toys.Rows(
        token_ids=np.array([0, 2], np.int32),
        byte_ends=np.array([0, 1], np.int32),
        top_ids=np.arange(2, 2 + len(kept), dtype=np.int32)[None],
        top_logprobs=np.log(np.array([kept], np.float32)),
        gold_logprob=np.array([gold_logprob], np.float32),
    )


def test_draws_share_the_rest_and_equal_ones_are_added() -> None:
    rows = hand_made(np.log(0.5), 0.5, 0.29)
    joined = tail.join_draws(score_of(rows, np.array([[9, 7, 9]], np.int32)))
    assert joined.top_ids.tolist() == [[2, 3, 9, 7, -1]]
    assert_allclose(
        np.exp(joined.top_logprobs), [[0.5, 0.29, 0.14, 0.07, 0]], rtol=1e-6
    )


def test_a_draw_that_found_no_id_leaves_its_share_to_the_tail() -> None:
    rows = hand_made(np.log(0.5), 0.5, 0.2)
    joined = tail.join_draws(score_of(rows, np.array([[-1, 7]], np.int32)))
    assert joined.top_ids.tolist() == [[2, 3, 7, -1]]
    assert_allclose(np.exp(joined.top_logprobs), [[0.5, 0.2, 0.15, 0]], rtol=1e-6)


def test_where_rounding_makes_the_kept_more_than_all_draws_weigh_nothing() -> None:
    rows = hand_made(np.log(0.7501), 0.7501, 0.2502)
    joined = tail.join_draws(score_of(rows, np.array([[7, 8]], np.int32)))
    assert joined.top_ids.tolist() == [[2, 3, -1, -1]]
    assert_array_equal(joined.top_logprobs[:, :2], rows.top_logprobs)


def test_the_rest_is_what_the_exact_gold_leaves_where_the_gold_is_kept() -> None:
    rows = hand_made(np.log(0.5), 0.5002, 0.2)  # the kept logprob is rounded
    assert_allclose(tail.rest_mass(score_of(rows)), 0.3, atol=1e-6)
    away = dataclasses.replace(rows, token_ids=np.array([0, 5], np.int32))
    assert_allclose(tail.rest_mass(score_of(away)), 0.0, atol=1e-6)


def test_without_draws_a_score_is_its_own_join() -> None:
    score = score_of(hand_made(np.log(0.5), 0.5, 0.2))
    assert tail.join_draws(score) is score


@given(seeds)
def test_projecting_keeps_the_expectation_where_source_tokens_begin(seed: int) -> None:
    case = random_case(seed)
    alignment = align.align_spans(case.target_ends, case.rows.byte_ends, eos=False)
    pairs = vocabulary.build_map(case.source, case.target)

    def masses(rows: Score) -> tuple[np.ndarray, np.ndarray]:
        found = project.project_rows(
            alignment, rows, pairs, case.target_ids, begins_alike=True, k=case.width + 2
        )
        out = np.zeros((len(found.covered), case.target.size))
        places, columns = np.nonzero(found.ids >= 0)
        out[places, found.ids[places, columns]] = found.probs[places, columns]
        return out, np.exp(found.gold_logprob)

    expected, gold = masses(score_of(case.rows))
    outcomes = [
        (weight, masses(tail.join_draws(score_of(case.cut, drawn))))
        for weight, drawn in every_draw(rest_of(case.rows, case.k))
    ]
    begins = (alignment.row >= 0) & (alignment.passed == 0)
    mean = sum(weight * found for weight, (found, _) in outcomes)
    assert_allclose(mean[begins], expected[begins], atol=1e-6)
    mean_gold = sum(weight * found for weight, (_, found) in outcomes)
    assert_allclose(mean_gold[begins], gold[begins], atol=1e-6)


@given(seeds)
def test_gold_logprobs_still_sum_to_the_sources_own(seed: int) -> None:
    case = random_case(seed)
    alignment = align.align_spans(case.target_ends, case.rows.byte_ends, eos=False)
    pairs = vocabulary.build_map(case.source, case.target)
    own = case.rows.gold_logprob.sum(dtype=np.float64)
    for _, drawn in every_draw(rest_of(case.rows, case.k)):
        found = project.project_rows(
            alignment,
            tail.join_draws(score_of(case.cut, drawn)),
            pairs,
            case.target_ids,
            begins_alike=True,
            k=case.width + 2,
        )
        straddled = (alignment.case == align.STRADDLE).any()
        if found.covered.all() and not straddled:
            assert found.gold_logprob.sum() == pytest.approx(own)
        total = found.probs.sum(axis=1, dtype=np.float64) + found.tail
        assert_allclose(total, found.covered, atol=1e-6)


def whole_rows(seed: int) -> fuse.Fused:
    sources, _ = test_fuse.random_sources(seed)
    every = sum(source.ids.shape[1] for source in sources)
    weights = np.random.default_rng(seed).dirichlet(np.ones(len(sources)))
    return fuse.fuse_rows(sources, weights, k=every)


def whole_row(ids: np.ndarray, probs: np.ndarray) -> np.ndarray:
    return test_fuse.dense(ids, probs, 20)


def every_chance(rest: np.ndarray) -> list[tuple[float, float]]:
    """Returns the share of each entry of the rest, and a chance that draws it."""
    ends = np.cumsum(np.concatenate([[0.0], rest], dtype=np.float64))
    ends /= ends[-1]
    return [(high - low, (low + high) / 2) for low, high in itertools.pairwise(ends)]


@given(seeds, st.integers(1, 3), st.integers(1, 2))
def test_the_expectation_over_all_draws_of_the_others_is_the_whole_row(seed, k, r):
    rows = whole_rows(seed)
    for t in np.flatnonzero((rows.ids >= 0).sum(axis=1) > k + r):
        rest = rows.probs[t, k:][rows.ids[t, k:] >= 0]
        mean = np.zeros((1, 20))
        for drawn in itertools.product(every_chance(rest), repeat=r):
            shares, chances = zip(*drawn, strict=True)
            every = np.tile(chances, (len(rows.covered), 1))
            thin = tail.thin_rows(rows, k=k, chances=every)
            mean += np.prod(shares) * whole_row(thin.ids[[t]], thin.probs[[t]])
        assert_allclose(mean, whole_row(rows.ids[[t]], rows.probs[[t]]), atol=1e-6)


@given(seeds, st.integers(1, 4), st.integers(1, 4))
def test_drawing_keeps_the_greatest_the_order_the_mass_and_the_tail(seed, k, r):
    rows = whole_rows(seed)
    chances = np.random.default_rng(seed).random((len(rows.covered), r))
    thin = tail.thin_rows(rows, k=k, chances=chances)
    assert thin.ids.shape == (len(rows.covered), k + r)
    assert_array_equal(thin.tail, rows.tail)
    assert_array_equal(thin.gold_logprob, rows.gold_logprob)
    assert_allclose(thin.probs.sum(axis=1), rows.probs.sum(axis=1), atol=1e-6)
    assert (np.diff(thin.probs, axis=1) <= 0).all()
    tied = (np.diff(thin.probs, axis=1) == 0) & (thin.ids[:, 1:] >= 0)
    assert (np.diff(thin.ids, axis=1)[tied] > 0).all()
    assert_array_equal(thin.ids >= 0, thin.probs > 0)
    before, after = (whole_row(x.ids, x.probs) for x in (rows, thin))
    for t, ids in enumerate(rows.ids):
        entries = ids[ids >= 0]
        assert set(thin.ids[t]) <= {*entries, -1}
        stays = entries if entries.size <= k + r else entries[:k]
        assert_array_equal(after[t, stays], before[t, stays])


def test_draws_of_one_entry_are_added():
    rows = fuse.Fused(
        ids=np.array([[4, 2, 7, 5, 1]], np.int32),
        probs=np.array([[0.4, 0.2, 0.15, 0.1, 0.05]], np.float32),
        tail=np.array([0.1], np.float32),
        covered=np.array([True]),
        gold_logprob=np.array([-1.0]),
        chosen=np.array([0], np.int16),
    )
    # the others hold 0.3: 7 to a half, 5 to five sixths, 1 to the end
    thin = tail.thin_rows(rows, k=2, chances=np.array([[0.4, 0.0]]))
    assert thin.ids.tolist() == [[4, 7, 2, -1]]
    assert_allclose(thin.probs, [[0.4, 0.3, 0.2, 0]], rtol=1e-6)
    thin = tail.thin_rows(rows, k=2, chances=np.array([[0.999999, 0.6]]))
    assert thin.ids.tolist() == [[4, 2, 1, 5]]
    assert_allclose(thin.probs, [[0.4, 0.2, 0.15, 0.15]], rtol=1e-6)
    thin = tail.thin_rows(rows, k=2, chances=np.array([[0.4, 0.6, 0.9]]))
    assert_array_equal(thin.ids, rows.ids)
    assert_array_equal(thin.probs, rows.probs)


def test_misfits_of_draws_are_refused():
    rows = whole_rows(0)
    t = len(rows.covered)
    with pytest.raises(ValueError, match="must be positive, got 0 and 1"):
        tail.thin_rows(rows, k=0, chances=np.zeros((t, 1)))
    with pytest.raises(ValueError, match="must be positive, got 1 and 0"):
        tail.thin_rows(rows, k=1, chances=np.zeros((t, 0)))
    with pytest.raises(ValueError, match=f"must have {t} rows, got {t + 1}"):
        tail.thin_rows(rows, k=1, chances=np.zeros((t + 1, 1)))
