import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from transforms import logits
from transforms.functional import nucleus
from transforms.functional.nucleus import Nucleus

GRID = (np.arange(2000) + 0.5) / 2000


@st.composite
def rows_and_k(draw):
    v = draw(st.sampled_from([1, 2, 63, 64, 65, 127, 128, 200, 1000]))
    seed = draw(st.integers(0, 2**31))
    distinct = draw(st.sampled_from([1, 2, 5, 1000]))
    values = np.random.default_rng(seed).integers(0, distinct, (3, v)) - distinct // 2
    scale = draw(st.sampled_from([0.0, -0.5, 0.25, 1e-40, 3e30]))
    k = draw(st.integers(0, min(v, 70)))
    return (values * scale).astype(np.float32), k


@given(rows_and_k())
def test_top_k_is_a_stable_sort_by_falling_logit(given_rows) -> None:
    rows, k = given_rows
    given_logits = torch.from_numpy(rows)
    ids, kept = logits.top_k(given_logits, logits.tile_peaks(given_logits), k)
    order = np.argsort(-rows, axis=1, kind="stable")[:, :k]
    assert_array_equal(ids.numpy(), order)
    assert_array_equal(kept.numpy(), np.take_along_axis(rows, order, 1))


def reduce(
    rows: np.ndarray,
    gold: list[int],
    n_ids: int,
    k: int,
    chances: object = None,
    chosen: Nucleus | None = None,
) -> logits.Kept:
    given_rows = torch.from_numpy(rows.copy())
    drawn = np.zeros((len(rows), 0)) if chances is None else np.asarray(chances)
    decide = torch.from_numpy(drawn)
    reduced = logits.reduce_logits(
        given_rows, torch.tensor(gold), decide, n_ids, k, chosen
    )
    return logits.fetch([reduced])()


@given(st.integers(0, 2**31), st.sampled_from([0.1, 1.0, 30.0]))
def test_what_is_kept_agrees_with_the_dense_log_softmax(seed: int, scale: float):
    rng = np.random.default_rng(seed)
    rows = (rng.standard_normal((4, 150)) * scale).astype(np.float32)
    gold = rng.integers(0, 150, 4)
    kept = reduce(rows, gold.tolist(), 130, 9)
    wide = rows.astype(np.float64)
    total = wide.max(1) + np.log(np.exp(wide - wide.max(1, keepdims=True)).sum(1))
    dense = wide - total[:, None]
    assert_allclose(kept.logsumexp, total, rtol=1e-6, atol=1e-6)
    assert_allclose(kept.gold_logprob, dense[np.arange(4), gold], rtol=1e-5, atol=2e-5)
    expected = np.take_along_axis(dense, kept.top_ids.astype(np.int64), 1)
    assert_allclose(kept.top_logprobs, expected, rtol=1e-5, atol=2e-5)
    assert kept.finite.all()


def test_logprobs_are_never_above_zero_nor_minus_infinity() -> None:
    rows = np.full((1, 70), -3e5, np.float32)
    rows[0, 7] = 1e5
    kept = reduce(rows, [7], 70, 3)
    assert_array_equal(kept.top_ids, [[7, 0, 1]])
    assert_array_equal(kept.top_logprobs, [[0.0, -4e5, -4e5]])
    assert_array_equal(kept.gold_logprob, [0.0])


def test_positions_that_are_not_finite_are_told_from_the_others() -> None:
    rows = np.zeros((6, 100), np.float32)
    rows[1, 99], rows[2, 3], rows[3, 90], rows[4] = np.nan, np.inf, np.inf, -np.inf
    rows[5, 1] = -np.inf  # the gold token
    assert_array_equal(reduce(rows, [1] * 6, 80, 5).finite, [True] + [False] * 5)


def test_an_id_masked_by_minus_infinity_has_no_mass_and_is_not_kept() -> None:
    rows = np.full((1, 100), -np.inf, np.float32)
    rows[0, [70, 9]] = 0.0
    kept = reduce(rows, [9], 100, 4)
    assert_array_equal(kept.top_ids, [[9, 70, -1, -1]])
    half = np.log(0.5)
    assert_allclose(kept.top_logprobs, [[half, half, -np.inf, -np.inf]], rtol=1e-6)
    assert_allclose(kept.logsumexp, [np.log(2)], rtol=1e-6)
    assert kept.finite.all()


@given(st.integers(0, 2**31))
def test_narrow_logits_are_reduced_as_if_widened_first(seed: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((3, 200)).astype(np.float32)
    narrow = torch.from_numpy(rows * 9).bfloat16()
    gold = torch.tensor([0, 99, 199])
    chances = torch.from_numpy(np.random.default_rng(seed).random((3, 5)))
    left = logits.reduce_logits(narrow, gold, chances, 190, 12)
    right = logits.reduce_logits(narrow.float(), gold, chances, 190, 12)
    for one, other in zip(left, right, strict=True):
        assert torch.equal(one, other)


@given(st.integers(0, 2**31), st.floats(0.05, 1), st.integers(1, 9))
def test_entries_outside_the_nucleus_are_not_kept(seed, top_p, min_k) -> None:
    rng = np.random.default_rng(seed)
    rows = (rng.standard_normal((5, 150)) * 3).astype(np.float32)
    chosen = Nucleus(top_p=top_p, min_k=min_k)
    every, some = (reduce(rows, [3] * 5, 140, 9, None, c) for c in (None, chosen))
    drop = nucleus.outside(np.exp(every.top_logprobs.astype(np.float64)), chosen)
    assert_array_equal(some.top_ids, np.where(drop, -1, every.top_ids))
    assert_array_equal(some.top_logprobs, np.where(drop, -np.inf, every.top_logprobs))
    for name in ("logsumexp", "gold_logprob", "finite"):
        assert_array_equal(getattr(some, name), getattr(every, name))


def test_entries_outside_the_nucleus_may_be_drawn() -> None:
    rows = np.log([[0.5, 0.2, 0.2, 0.1]]).astype(np.float32)
    found = reduce(rows, [0], 4, 3, [GRID], Nucleus(top_p=0.6))
    assert_array_equal(found.top_ids, [[0, 1, -1]])
    shares = np.bincount(found.sampled_ids[0], minlength=4) / GRID.size
    assert_allclose(shares, [0, 0, 2 / 3, 1 / 3], atol=2 / GRID.size)


def test_joined_parts_split_into_those_of_each_window() -> None:
    rows = np.random.default_rng(0).standard_normal((7, 90)).astype(np.float32)
    whole = reduce(rows, list(range(7)), 90, 4)
    pieces = logits.split(whole, np.array([2, 3, 7]))
    assert [len(piece.finite) for piece in pieces] == [2, 1, 4]
    assert_array_equal(np.concatenate([p.top_ids for p in pieces]), whole.top_ids)
    assert_array_equal(pieces[1].gold_logprob, whole.gold_logprob[2:3])


@given(st.integers(0, 2**31), st.sampled_from([3, 64, 65, 150, 200]))
def test_draws_fall_on_ids_in_proportion_to_their_weights(seed: int, v: int):
    rng = np.random.default_rng(seed)
    weights = rng.gamma(0.3, size=(2, v)).astype(np.float32)
    taken = np.argsort(-weights, axis=1)[:, : min(5, v - 1)]
    found = logits.draw_rest(
        torch.from_numpy(weights.copy()),
        torch.from_numpy(taken),
        torch.from_numpy(np.tile(GRID, (2, 1))),
        v,
    ).numpy()
    np.put_along_axis(weights, taken, 0.0, 1)
    shares = weights / weights.sum(1, keepdims=True, dtype=np.float64)
    counts = np.stack([np.bincount(row, minlength=v) for row in found])
    # a stretch of chances of length s holds s * 2000 of the grid's, to less than one
    assert_allclose(counts / GRID.size, shares, atol=1.01 / GRID.size)
    assert (counts[weights == 0] == 0).all()


def test_a_chance_that_rounds_to_one_still_draws_an_id_with_weight() -> None:
    weights = torch.zeros(1, 200)
    weights[0, [3, 70, 130]] = torch.tensor([0.1, 1e-10, 0.2])
    chances = torch.tensor([[0.0, 1 - 2**-53, 1.0]], dtype=torch.float64)
    found = logits.draw_rest(weights, torch.tensor([[130]]), chances, 200)
    assert found.tolist() == [[3, 70, 70]]


def test_what_is_kept_is_the_same_with_draws_and_without() -> None:
    rows = np.random.default_rng(2).standard_normal((5, 300)).astype(np.float32)
    gold = [0, 9, 99, 199, 299]
    plain = reduce(rows, gold, 290, 7)
    drawn = reduce(rows, gold, 290, 7, np.random.default_rng(2).random((5, 6)))
    assert plain.sampled_ids.shape == (5, 0)
    for name in ("top_ids", "top_logprobs", "logsumexp", "gold_logprob", "finite"):
        assert_array_equal(getattr(drawn, name), getattr(plain, name))
    known = np.column_stack([plain.top_ids, gold])
    assert drawn.sampled_ids.min() >= 0
    assert not (drawn.sampled_ids[:, :, None] == known[:, None, :]).any()


def test_draws_depend_on_their_own_positions_chances_alone() -> None:
    rows = np.random.default_rng(2).standard_normal((5, 300)).astype(np.float32)
    chances = np.random.default_rng(2).random((5, 6))
    whole = reduce(rows, [1] * 5, 290, 7, chances).sampled_ids
    last = reduce(rows[3:], [1] * 2, 290, 7, chances[3:, :4]).sampled_ids
    assert_array_equal(last, whole[3:, :4])


def test_a_draw_among_padding_logits_is_of_no_id() -> None:
    rows = np.full((1, 100), -np.inf, np.float32)
    rows[0, [4, 9, 20, 90]] = 0.0  # 4 is kept, 9 gold; 20 and 90 are left
    found = reduce(rows, [9], 80, 1, [[0.1, 0.4, 0.6, 0.9]])
    assert found.sampled_ids.tolist() == [[20, 20, -1, -1]]


def test_where_every_id_is_kept_no_draw_finds_one() -> None:
    rows = np.random.default_rng(0).standard_normal((2, 70)).astype(np.float32)
    found = reduce(rows, [3, 4], 70, 75, np.random.default_rng(0).random((2, 3)))
    assert_array_equal(found.sampled_ids, -1)


def test_draws_at_positions_that_are_not_finite_do_no_harm() -> None:
    rows = np.zeros((4, 100), np.float32)
    rows[0, 99], rows[1, 3], rows[2] = np.nan, np.inf, -np.inf
    found = reduce(rows, [1] * 4, 80, 5, np.full((4, 2), 0.5))
    assert_array_equal(found.finite, [False, False, False, True])
    assert (found.sampled_ids < 80).all()
    assert (found.sampled_ids[3] >= 0).all()
