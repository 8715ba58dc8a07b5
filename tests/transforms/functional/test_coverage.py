import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transforms.functional import toys
from tests.transforms.functional.test_project import Case, random_case
from transforms.functional import coverage
from transforms.functional.coverage import (
    CHAIN,
    EMPTY,
    EOS,
    IMPOSSIBLE,
    INNER,
    INSIDE,
    STRADDLE,
    UNSOUND,
    WHOLE,
)

seeds = st.integers(0, 2**32 - 1)


def classify(case: Case, *, target_eos: bool | None = None) -> list[int]:
    return coverage.classify_positions(
        case.alignment,
        case.project().covered,
        case.rows,
        case.target_ends,
        target_eos=case.eos if target_eos is None else target_eos,
    ).tolist()


def spelled(target: list[str], source: list[str], **changes) -> Case:
    """A window whose tokens are these, under two toys that have them and letters."""
    toy_of = {
        name: toys.toy(*dict.fromkeys(["a", "b", *tokens]), fingerprint=name)
        for name, tokens in (("source", source), ("target", target))
    }
    ids = {
        name: [toy_of[name].token_bytes.index(token.encode()) for token in tokens]
        for name, tokens in (("source", source), ("target", target))
    }
    eos = changes.pop("eos", False)
    token_ids, ends = toys.frame(toy_of["source"], ids["source"], eos=eos)
    size = toy_of["source"].size
    rows = toys.random_rows(
        np.random.default_rng(0), token_ids, ends, logits_width=size, k=size
    )
    target_ids, target_ends = toys.frame(
        toy_of["target"],
        ids["target"],
        eos=eos or changes.pop("target_eos", False),
        lone=changes.pop("lone", ()),
    )
    return Case(
        source=toy_of["source"],
        target=toy_of["target"],
        rows=dataclasses.replace(rows, **changes),
        target_ids=target_ids,
        target_ends=target_ends,
        eos=eos,
    )


def test_the_picture_of_the_module_holds():
    case = spelled(
        ["aaa", "aa", "aaaaa", "bbbb"],
        ["aaa", "aaa", "aaaabbb", "b"],
        target_eos=True,
        lone=[2],
    )
    assert classify(case, target_eos=True) == [
        EMPTY,
        WHOLE,
        INSIDE,
        STRADDLE,
        INNER,
        EOS,
    ]


def test_a_shared_eos_is_whole_and_a_chain_is_a_chain():
    assert classify(spelled(["ab"], ["a", "b"], eos=True)) == [CHAIN, WHOLE]


def test_what_the_source_held_impossible_leads_nowhere():
    case = spelled(["a", "b"], ["ab"], gold_logprob=np.array([-np.inf], np.float32))
    nothing = np.full_like(case.rows.top_ids, -1)
    only_gold = dataclasses.replace(
        case, rows=dataclasses.replace(case.rows, top_ids=nothing)
    )
    assert classify(only_gold) == [INSIDE, IMPOSSIBLE]


@given(seeds)
def test_a_position_is_covered_exactly_if_its_class_speaks(seed):
    case = random_case(seed)
    speaks = [one in coverage.SPEAKING for one in classify(case)]
    assert speaks == case.project().covered.tolist()


@given(seeds)
def test_classes_follow_their_definitions(seed):
    case = random_case(seed)
    borders = set(case.rows.byte_ends.tolist())
    ends = case.target_ends.tolist()
    last = len(ends) - 2
    for t, one in enumerate(classify(case)):
        a, b = ends[t], ends[t + 1]
        following = min((e for e in borders if e > a), default=a)
        if one in (INSIDE, WHOLE, CHAIN, STRADDLE) and b > a:
            assert (one == INSIDE) == (b < following)
            assert (one == WHOLE) == (b == following)
            assert (one == STRADDLE) == (b > following and b not in borders)
        elif one == INNER:
            start = max(e for e in borders if e < a)
            assert a not in borders
            assert start not in ends[: t + 1]
        elif one == EMPTY:
            assert a == b
            assert not (case.eos and t == last)
        else:
            assert one == WHOLE  # an empty token that has a partner, or the EOS


@given(seeds, st.sampled_from([np.nan, np.inf]), st.booleans(), st.data())
def test_what_is_computed_from_an_unsound_number_says_so(seed, bad, in_top, data):
    case = random_case(seed)
    positions = case.rows.gold_logprob.size
    if not positions:
        return
    at = data.draw(st.integers(0, positions - 1))
    name = "top_logprobs" if in_top else "gold_logprob"
    spoilt = getattr(case.rows, name).copy()
    spoilt[at] = bad
    rows = dataclasses.replace(case.rows, **{name: spoilt})
    found = classify(dataclasses.replace(case, rows=rows))
    before = classify(case)
    for t, (one, other) in enumerate(zip(found, before, strict=True)):
        uses_row = case.alignment.row[t] == at or case.alignment.straddled[t] == at
        uses_gold = case.alignment.first[t] <= at < case.alignment.stop[t]
        uses = case.alignment.row[t] >= 0 and (uses_row or (not in_top and uses_gold))
        assert one == (UNSOUND if uses else other)


def test_counts_have_every_class_and_sum_to_the_positions():
    classes = np.array([WHOLE, EMPTY, WHOLE, INNER], np.int8)
    counts = coverage.count_classes(classes)
    assert list(counts) == list(coverage.CLASSES.values())
    assert sum(counts.values()) == 4
    assert (counts["whole"], counts["empty"], counts["inner"]) == (2, 1, 1)


@pytest.mark.parametrize("eos", [False, True])
def test_no_positions_or_the_eos_alone_have_classes(eos):
    case = spelled([], [], eos=eos)
    assert classify(case) == [WHOLE] * eos
