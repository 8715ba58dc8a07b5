import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from tests.train import loss_oracle
from transforms.functional import weigh

seeds = st.integers(0, 2**32 - 1)
costs_in_bits = st.lists(
    st.one_of(st.floats(0, 50), st.sampled_from([1.0, np.nan, np.inf])),
    min_size=1,
    max_size=6,
).map(np.array)
metrics_in_nats = st.lists(
    st.one_of(st.floats(0, 12), st.sampled_from([2.4, 2.401, 2.408])),
    min_size=1,
    max_size=6,
)


@given(costs_in_bits)
def test_weights_sum_to_one_over_the_finite_costs(costs):
    for weights in (weigh.min_ce_weights(costs), weigh.avg_ce_weights(costs)):
        assert weights.sum() == pytest.approx(float(np.isfinite(costs).any()))
        assert (weights[~np.isfinite(costs)] == 0).all()


@given(costs_in_bits)
def test_temperature_zero_is_min_ce_and_infinity_the_mean(costs):
    usable = np.isfinite(costs)
    cold = weigh.avg_ce_weights(costs, temperature=0.0)
    assert_array_equal(cold, weigh.min_ce_weights(costs))
    if usable.any():
        assert cold.argmax() == np.nanargmin(np.where(usable, costs, np.nan))
        hot = weigh.avg_ce_weights(costs, temperature=np.inf)
        assert_allclose(hot, usable / usable.sum())


@given(st.lists(st.integers(0, 10**3), min_size=1, max_size=6))
def test_a_falling_temperature_tends_to_min_ce(costs):
    bits = np.array(costs) / 1e3
    nearly_cold = weigh.avg_ce_weights(bits, temperature=1e-5)
    assert_allclose(nearly_cold, weigh.min_ce_weights(bits), atol=1e-12)


def test_equally_cheap_sources_share_what_min_ce_gives():
    costs = np.array([[2.0, 1.0, 1.0], [np.nan, 3.0, 3.0], [np.nan] * 3])
    halves = [[0, 0.5, 0.5], [0, 0.5, 0.5], [0, 0, 0]]
    assert weigh.min_ce_weights(costs).tolist() == halves


@given(costs_in_bits, st.floats(0, 9), seeds)
def test_a_sources_weight_does_not_depend_on_where_it_stands(costs, temperature, seed):
    rng = np.random.default_rng(seed)
    order, shares = rng.permutation(len(costs)), rng.random(len(costs))
    for weights in (
        lambda c, _: weigh.min_ce_weights(c),
        lambda c, _: weigh.avg_ce_weights(c, temperature=temperature),
        weigh.static_weights,
    ):
        moved = weights(costs[order], shares[order])
        assert_allclose(moved, weights(costs, shares)[order], rtol=1e-12)


def test_static_weights_are_scaled_over_the_sources_that_are_there():
    costs = np.array([0.0, np.nan, 0.0])
    weights = weigh.static_weights(costs, np.array([1.0, 5.0, 3.0]))
    assert weights.tolist() == [0.25, 0, 0.75]
    nothing = weigh.static_weights(costs, np.array([0.0, 5.0, 0.0]))
    assert nothing.tolist() == [0, 0, 0]


def test_one_bit_of_difference_at_temperature_one_weighs_e_to_one():
    weights = weigh.avg_ce_weights(np.array([1.0, 2.0]))
    assert weights[0] / weights[1] == pytest.approx(np.e)


def test_bits_per_byte_of_one_nat_over_two_bytes():
    assert weigh.bits_per_byte(np.log(2.0), 2) == pytest.approx(0.5)
    assert np.isnan(weigh.bits_per_byte(0.0, 0))


def test_position_costs_by_hand():
    # source |abcd|ef|EOS with 4, 1, 3 bits; target |ab|cde|f|EOS
    costs = weigh.position_costs(
        np.array([0, 2, 5, 6, 6], np.int32),
        np.array([0, 4, 6, 6], np.int32),
        -np.log(2.0) * np.array([4.0, 1.0, 3.0]),
        eos=True,
    )
    assert_allclose(costs, [1.0, 2.5 / 3, 0.5, 3.0])


def test_position_costs_of_a_lone_dummy_go_to_the_token_behind_it():
    costs = weigh.position_costs(
        np.array([0, 0, 2, 3], np.int32),
        np.array([0, 0, 2, 3], np.int32),
        -np.log(2.0) * np.array([1.0, 3.0, 5.0]),
        eos=False,
    )
    assert_allclose(costs, [np.nan, 2.0, 5.0])


def test_position_costs_are_missing_where_the_source_has_none():
    costs = weigh.position_costs(
        np.array([0, 2, 4, 6], np.int32),
        np.array([0, 3, 6], np.int32),
        np.array([np.nan, -np.log(2.0) * 3]),
        eos=False,
    )
    assert_allclose(costs, [np.nan, np.nan, 1.0])


@given(seeds)
def test_position_costs_spend_all_of_the_sources_bits(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 30))
    target, source = (
        np.unique([0, n, *rng.integers(0, n + 1, 6)]).astype(np.int32) for _ in range(2)
    )
    gold = -rng.uniform(0, 9, source.size - 1)
    costs = weigh.position_costs(target, source, gold, eos=False)
    assert (costs * np.diff(target)).sum() == pytest.approx(-gold.sum() / np.log(2.0))


def test_negative_temperatures_are_refused():
    with pytest.raises(ValueError, match="temperature must be 0 or more, got -1"):
        weigh.avg_ce_weights(np.array([1.0]), temperature=-1.0)


@given(seeds)
def test_every_window_of_a_document_has_the_documents_cost(seed):
    rng = np.random.default_rng(seed)
    w, s = (int(n) for n in rng.integers(1, 9, 2))
    nats, n_bytes = rng.uniform(0, 50, (w, s)), rng.integers(0, 30, w)
    nats[rng.random((w, s)) < 0.2] = np.nan
    begins = rng.random(w) < 0.4
    found = weigh.document_costs(nats, n_bytes, begins)
    documents = np.split(np.arange(w), np.flatnonzero(begins[1:]) + 1)
    for document in documents:
        for source in range(s):
            scored = [i for i in document if np.isfinite(nats[i, source])]
            wanted = weigh.bits_per_byte(
                float(nats[scored, source].sum()), int(n_bytes[scored].sum())
            )
            assert_allclose(found[scored, source], wanted)
            failed = np.setdiff1d(document, scored)
            assert np.isnan(found[failed, source]).all()


def test_no_window_costs_nothing():
    shapes = [(0, 2), (0,), (0,)]
    kinds = (np.float64, np.int64, np.bool_)
    nothing = (np.zeros(n, k) for n, k in zip(shapes, kinds, strict=True))
    assert weigh.document_costs(*nothing).shape == (0, 2)


@given(metrics_in_nats)
def test_the_authors_weights_are_those_of_a_plain_sum(metrics):
    for fusion, found in (
        ("mince", weigh.reference_min_ce_weights(np.array(metrics))),
        ("avgce", weigh.reference_avg_ce_weights(np.array(metrics))),
    ):
        assert found.tolist() == loss_oracle.weights(metrics, fusion)


def test_metrics_that_bfloat16_cannot_tell_apart_leave_min_ce_to_the_first():
    close = np.array([2.408, 2.401, 9.0])
    assert weigh.reference_min_ce_weights(close).tolist() == [1, 0, 0]
    last = weigh.reference_min_ce_weights(close, ties="last")
    assert last.tolist() == [0, 1, 0]
    apart = np.array([2.43, 2.401])
    assert weigh.reference_min_ce_weights(apart).tolist() == [0, 1]


def test_a_metric_that_is_missing_wins_or_spoils_all_as_it_does_for_the_authors():
    holed = np.array([2.0, np.nan, 1.0])
    assert weigh.reference_min_ce_weights(holed).tolist() == [0, 1, 0]
    assert np.isnan(weigh.reference_avg_ce_weights(holed)).all()


@pytest.mark.parametrize("ties", ["first", "last"])
def test_where_every_metric_is_missing_the_authors_choose_no_source(ties):
    nothing = np.full(3, np.nan)
    assert not weigh.reference_min_ce_weights(nothing, ties=ties).any()


@given(st.lists(st.floats(0, 30, width=32), min_size=1, max_size=50))
def test_the_authors_metric_is_a_mean_in_float16(costs):
    rounded = torch.tensor(costs).half()
    wanted = rounded.sum() / len(costs)
    found = weigh.reference_metric(-np.array(costs, np.float32))
    assert found == pytest.approx(wanted.item(), rel=2**-10)
    assert np.float16(found) == found


def test_a_text_without_tokens_has_no_metric():
    assert np.isnan(weigh.reference_metric(np.zeros(0, np.float32)))


def test_a_packed_row_has_the_mean_over_its_windows_tokens():
    metrics = np.array([[1.0, 4.0], [2.0, 3.0], [9.0, 9.0], [5.0, np.nan]])
    lengths = np.array([3, 1, 7, 2])
    found = weigh.packed_metrics(metrics, lengths, [[0, 1], [3]])
    mixed = [1.25, 3.75]
    assert_array_equal(found, [mixed, mixed, [np.nan] * 2, [5.0, np.nan]])


def test_a_window_of_which_nothing_counts_has_no_part_in_its_row():
    metrics = np.array([[1.0, 4.0], [np.nan, np.nan], [3.0, 2.0]])
    found = weigh.packed_metrics(metrics, np.array([2, 0, 2]), [[0, 1, 2]])
    assert_array_equal(found, [[2.0, 3.0]] * 3)
    silent = weigh.packed_metrics(metrics, np.array([0, 0, 0]), [[0, 1, 2]])
    assert np.isnan(silent).all()
