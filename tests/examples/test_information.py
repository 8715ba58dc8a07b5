import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples import information
from examples.information import Figures
from tests.transforms.functional import toys
from tests.transforms.functional.test_project import Case, random_case
from transforms.functional import project

seeds = st.integers(0, 2**32 - 1)


def measure(case: Case, *, rows=None, used=None) -> Figures:
    found = case.project()
    return information.measure_window(
        found if rows is None else rows,
        found.covered if used is None else used,
        source=case.rows,
        target=dataclasses.replace(
            case.rows, token_ids=case.target_ids, byte_ends=case.target_ends
        ),
        ends_with_eos=[case.eos, case.eos],
        shares=shares_of(case),
    )


def shares_of(case: Case) -> np.ndarray:
    return information.unigram([case.target_ids], case.target.size)


def itself(seed: int) -> Case:
    """A source that is its own target."""
    case = random_case(seed)
    return dataclasses.replace(
        case,
        target=case.source,
        target_ids=case.rows.token_ids,
        target_ends=case.rows.byte_ends,
    )


@given(seeds)
def test_a_source_keeps_all_of_itself(seed):
    case = itself(seed)
    likely = np.maximum(case.rows.gold_logprob, np.float32(np.log(2.0**-20)))
    found = measure(
        dataclasses.replace(
            case, rows=dataclasses.replace(case.rows, gold_logprob=likely)
        )
    )
    assert found.aligned_bits == pytest.approx(found.source_bits, rel=1e-5, abs=1e-5)
    assert found.used == found.positions
    if found.unigram_bits - found.source_bits > 0.1:
        assert found.kept == pytest.approx(1, abs=1e-3)


@given(seeds)
def test_the_eos_has_no_part_in_anything(seed):
    case = itself(seed)
    if case.eos:
        spoilt = case.rows.gold_logprob.copy()
        spoilt[-1] = -20.0
        other = dataclasses.replace(
            case, rows=dataclasses.replace(case.rows, gold_logprob=spoilt)
        )
        assert measure(other) == measure(case)


@given(seeds)
def test_where_no_row_is_used_nothing_is_kept(seed):
    case = random_case(seed)
    nothing = project.project_nothing(len(case.target_ids) - 1, k=3)
    found = measure(case, rows=nothing, used=nothing.covered)
    assert (found.used, found.used_bytes, found.aligned_bits) == (0, 0, 0.0)
    assert not found.kept > 0
    assert math.isnan(found.aligned)


@given(seeds)
def test_the_sources_own_bits_are_spread_over_the_bytes_of_the_target(seed):
    case = random_case(seed)
    everywhere = np.ones(len(case.target_ids) - 1, np.bool_)
    found = measure(case, used=everywhere)
    assert found.used_bytes == found.n_bytes == case.target_ends[-1]
    if found.n_bytes:
        assert found.source_bits_there == pytest.approx(found.source_bits, rel=1e-5)


def test_a_row_that_does_not_know_the_token_shares_out_its_tail():
    source = toys.toy("a", "b", "c", fingerprint="source")
    ids, ends = toys.frame(source, [2, 3], eos=False)
    rows = toys.random_rows(
        np.random.default_rng(0), ids, ends, logits_width=source.size, k=1
    )
    said = project.Projected(
        ids=np.array([[4], [4]], np.int32),
        probs=np.array([[0.5], [1.0]], np.float32),
        tail=np.array([0.5, 0.0], np.float32),
        covered=np.ones(2, np.bool_),
        gold_logprob=np.full(2, np.nan),
    )
    shares = np.array([0.1, 0.1, 0.2, 0.2, 0.4])
    found = information.measure_window(
        said,
        said.covered,
        source=rows,
        target=rows,
        ends_with_eos=[False, False],
        shares=shares,
    )
    # 0.5 * 0.2 / (1 - 0.4), and the least there is
    assert found.aligned_bits == pytest.approx(-math.log2(0.1 / 0.6) + 24)


def test_a_unigram_knows_every_token_and_counts_no_start():
    shares = information.unigram([np.array([0, 2, 2, 3]), np.array([0, 2])], 5)
    np.testing.assert_allclose(shares, np.array([1, 1, 4, 2, 1]) / 9)


@given(seeds, seeds)
def test_figures_add_up(one, other):
    parts = [measure(random_case(seed)) for seed in (one, other)]
    whole = information.total(parts)
    assert whole.windows == 2
    assert whole.source_bits == sum(part.source_bits for part in parts)
    assert information.total([]) == Figures()
