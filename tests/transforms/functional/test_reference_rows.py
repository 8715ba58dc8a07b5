import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import reference
from tests.transforms.functional import dtw_cases, dtw_oracle, toys
from transforms.functional import reference_rows
from transforms.functional.reference_rows import ReferenceRows

PARTS = {
    "the map by edit distance": ("mined_map",),
    "pairs of spellings": ("fusellm", "mapping"),
    "the cost of their path": ("fusellm", "dtw_cost"),
    "exact rows": ("fusellm", "hard"),
    "mined rows": ("fusellm", "soft"),
    "pairs of decoded tokens": ("fusechat", "mapping"),
    "the map by statistics": ("fusechat", "statistical_map"),
    "statistics rows": ("fusechat", "default"),
}


def pick(found, part):
    for key in PARTS[part]:
        found = found[key]
    return found


@pytest.fixture(scope="module")
def golden():
    return reference.cases("alignment")


@pytest.fixture(scope="module")
def ours(golden):
    return [dtw_cases.solve(case) for case in golden]


@pytest.mark.reference
@pytest.mark.parametrize("part", PARTS)
def test_ours_equals_the_authors(part, golden, ours):
    for case, found in zip(golden, ours, strict=True):
        assert pick(found, part) == pick(case, part), case["name"]


@pytest.mark.reference
@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_the_oracle_equals_the_authors(part, golden, theirs):
    for case, found in zip(golden, theirs, strict=True):
        assert pick(found, part) == pick(case, part), case["name"]


@pytest.fixture(scope="module")
def theirs(golden):
    return [dtw_oracle.solve(case) for case in golden]


@pytest.mark.parametrize("seed", range(200))
def test_ours_equals_the_oracle_on_made_up_cases(seed):
    case = dtw_cases.random_case(seed)
    assert dtw_cases.solve(case) == dtw_oracle.solve(case)


LAST = 777.0
"""Logit that marks the authors' row behind the last source token; scores have none."""


def window_of(case, side, rows):
    """Makes a window of a case: a start token in front, no row behind the last."""
    token_ids = np.array([0, *case[f"{side}_ids"]], np.int32)
    ids, logits = (np.array(rows[x]) for x in ("ids", "logits"))
    return toys.Rows(
        token_ids=token_ids,
        byte_ends=np.zeros(0, np.int32),
        top_ids=np.concatenate([ids[:1], ids[:-1]]).astype(np.int32),
        top_logprobs=np.concatenate([logits[:1], logits[:-1]]).astype(np.float32),
        gold_logprob=np.zeros(token_ids.size - 1, np.float32),
    )


def windows_of(case, seed):
    """Makes the windows of both sides; the target's own rows are made up."""
    rng = np.random.default_rng(seed)
    n, v = len(case["pivot_ids"]), len(case["pivot_vocab"])
    own = {
        "ids": [rng.choice(v, dtw_cases.KEPT, replace=False) for _ in range(n)],
        "logits": -np.sort(-rng.random((n, dtw_cases.KEPT)), axis=1),
    }
    given = {x: case[f"source_topk_{x}"] for x in ("ids", "logits")}
    return window_of(case, "source", given), window_of(case, "pivot", own)


def spread(ids, logits):
    """Returns softmax over a row's entries, in its order."""
    raised = np.exp(np.array(logits, np.float64) - max(logits))
    return list(ids), (raised / raised.sum()).tolist()


@given(st.integers(0, 10_000), st.sampled_from(["exact", "mined", "statistics"]))
def test_a_window_is_the_authors_case_behind_its_start_token(seed, strategy):
    case = dtw_cases.random_case(seed)
    last = len(case["source_id_to_token"]) - 1  # the EOS: both vocabularies have it
    case["source_topk_ids"][-1] = [last] * dtw_cases.KEPT
    case["source_topk_logits"][-1] = [LAST] * dtw_cases.KEPT
    part = {"exact": "exact rows", "mined": "mined rows"}.get(
        strategy, "statistics rows"
    )
    wanted = pick(dtw_oracle.solve(case), part)
    source, target = windows_of(case, seed)
    found = reference_rows.transfer_window(
        source, target, dtw_cases.lexicon(case, strategy), strategy=strategy, k=9
    )
    assert not found.used[:1].any()
    assert not found.projected.covered[:1].any()
    for t in range(1, target.token_ids.size - 1):
        row = (wanted["ids"][t - 1], wanted["logits"][t - 1])
        if row[1] == [LAST]:  # this row scores do not have
            row = ([target.token_ids[t + (strategy == "statistics")]], [1.0])
        certain, used = row[1] == [1.0], bool(row[0])
        if not row[0]:  # the authors put the target's own there
            row = (target.top_ids[t], target.top_logprobs[t])
        ids, probs = spread(*row)
        assert certain or bool(found.used[t]) == used  # a kept entry may be certain
        assert found.projected.covered[t]
        assert found.projected.ids[t].tolist() == [*ids, *[-1] * (9 - len(ids))]
        np.testing.assert_allclose(found.projected.probs[t, : len(ids)], probs, 1e-5)
        following = target.token_ids[t + 1]
        gold = math.log(probs[ids.index(following)]) if following in ids else math.nan
        np.testing.assert_allclose(found.projected.gold_logprob[t], gold, atol=1e-5)


@pytest.mark.parametrize("strategy", ["exact", "mined", "statistics"])
def test_a_window_without_tokens_has_no_rows(strategy):
    case = dtw_cases.random_case(0)
    nothing = toys.Rows(
        token_ids=np.zeros(1, np.int32),
        byte_ends=np.zeros(1, np.int32),
        top_ids=np.zeros((0, 2), np.int32),
        top_logprobs=np.zeros((0, 2), np.float32),
        gold_logprob=np.zeros(0, np.float32),
    )
    found = reference_rows.transfer_window(
        nothing,
        nothing,
        dtw_cases.lexicon(case, strategy),
        strategy=strategy,
        k=2,
    )
    assert found.used.size == 0


def test_all_mass_goes_to_what_was_kept():
    rows = ReferenceRows(
        offsets=np.array([0, 2, 2, 3]),
        ids=np.array([5, 3, 4], np.int32),
        logits=np.array([np.log(3.0), 0.0, 1.0], np.float32),
        used=np.ones(3, np.bool_),
    )
    found = reference_rows.normalize_rows(rows, np.array([3, 3, 3], np.int32), k=2)
    assert found.ids.tolist() == [[5, 3], [-1, -1], [4, -1]]
    np.testing.assert_allclose(found.probs, [[0.75, 0.25], [0, 0], [1, 0]], atol=1e-6)
    assert found.covered.tolist() == [True, False, True]
    np.testing.assert_allclose(found.gold_logprob, [np.log(0.25), np.nan, np.nan])
    assert not found.tail.any()
