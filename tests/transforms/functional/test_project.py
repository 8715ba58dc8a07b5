import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transforms.functional import toys
from transforms.functional import align, project, vocabulary
from transforms.functional.project import Projected

seeds = st.integers(0, 2**32 - 1)


@dataclasses.dataclass(kw_only=True)
class Case:
    """One window under two toys, with all that projecting it needs."""

    source: toys.Toy
    target: toys.Toy
    rows: toys.Rows
    target_ids: np.ndarray
    target_ends: np.ndarray
    eos: bool

    @property
    def alignment(self) -> align.Alignment:
        return align.align_spans(self.target_ends, self.rows.byte_ends, eos=self.eos)

    def project(self, k: int = 64) -> Projected:
        return project.project_rows(
            self.alignment,
            self.rows,
            vocabulary.build_map(self.source, self.target),
            self.target_ids,
            begins_alike=True,
            k=k,
        )


def random_case(seed: int, k: int | None = None) -> Case:
    rng = np.random.default_rng(seed)
    source, target = (toys.random_toy(rng, name) for name in ("source", "target"))
    text = toys.random_text(rng, 0, 14)
    eos = bool(rng.integers(2))
    lone = [[2] if rng.integers(4) == 0 else [] for _ in range(2)]
    cuts = [toys.cut_anyhow(rng, toy, text) for toy in (source, target)]
    ids, ends = toys.frame(source, cuts[0], eos=eos, lone=lone[0])
    target_ids, target_ends = toys.frame(target, cuts[1], eos=eos, lone=lone[1])
    width = source.size + int(rng.integers(3))  # logits padded beyond the tokenizer
    rows = toys.random_rows(
        rng, ids, ends, logits_width=width, k=k or int(rng.integers(1, width + 1))
    )
    return Case(
        source=source,
        target=target,
        rows=rows,
        target_ids=target_ids,
        target_ends=target_ends,
        eos=eos,
    )


def as_dict(found: Projected, t: int) -> dict[int, float]:
    return {
        int(v): float(p)
        for v, p in zip(found.ids[t], found.probs[t], strict=True)
        if v >= 0
    }


@given(seeds)
def test_projecting_equals_the_definitions(seed):
    case = random_case(seed)
    found = case.project()
    pairs = vocabulary.build_map(case.source, case.target)
    expected = toys.oracle(
        case.target_ids.tolist(),
        case.target_ends.tolist(),
        case.rows,
        [pairs.seq(s).tolist() for s in range(case.source.size)],
        case.source.token_bytes,
        eos=case.eos,
    )
    assert found.covered.tolist() == [spoken is not None for spoken in expected]
    for t, spoken in enumerate(expected):
        if spoken is not None:
            over = max(1.0, sum(spoken.masses.values()))
            masses = {v: pytest.approx(m / over) for v, m in spoken.masses.items()}
            assert as_dict(found, t) == masses
            assert np.exp(found.gold_logprob[t]) == pytest.approx(spoken.gold)


@given(seeds, st.integers(1, 5))
def test_kept_mass_and_tail_sum_to_one(seed, k):
    found = random_case(seed).project(k)
    total = found.probs.sum(axis=1, dtype=np.float64) + found.tail
    np.testing.assert_allclose(total, found.covered, atol=1e-6)
    assert (found.tail >= 0).all()
    assert (found.ids[~found.covered] == -1).all()
    assert np.isnan(found.gold_logprob[~found.covered]).all()


@given(seeds, st.integers(1, 5))
def test_fewer_kept_entries_are_the_greatest_by_falling_prob_then_rising_id(seed, k):
    case = random_case(seed)
    few, all_of_them = case.project(k), case.project()
    for t in np.flatnonzero(few.covered):
        entries = sorted(as_dict(all_of_them, t).items(), key=lambda e: (-e[1], e[0]))
        assert list(as_dict(few, t).items()) == entries[:k]
    np.testing.assert_array_equal(few.gold_logprob, all_of_them.gold_logprob)


@given(seeds)
def test_gold_logprobs_sum_to_the_sources_own_where_no_token_is_straddled(seed):
    case = random_case(seed)
    found, alignment = case.project(), case.alignment
    with_bytes = np.diff(case.target_ends) > 0
    own = case.rows.gold_logprob.sum(dtype=np.float64)
    summed = found.gold_logprob[found.covered].sum()
    whole = found.covered[with_bytes].all() and with_bytes.any()
    if whole and not (alignment.case == align.STRADDLE).any():
        assert summed == pytest.approx(own)
    else:  # what is not covered or known only to its first bytes costs less
        assert summed >= own - 1e-6


@given(seeds)
def test_gold_logprobs_sum_exactly_where_the_target_writes_single_bytes(seed):
    rng = np.random.default_rng(seed)
    source = toys.random_toy(rng, "source")
    target = toys.toy("a", "b", fingerprint="target")
    text = toys.random_text(rng, 1, 14)
    ids, ends = toys.frame(source, toys.cut_anyhow(rng, source, text), eos=True)
    case = Case(
        source=source,
        target=target,
        rows=toys.random_rows(rng, ids, ends, logits_width=source.size, k=3),
        target_ids=toys.frame(target, [2 + (c == 98) for c in text], eos=True)[0],
        target_ends=np.array([*range(len(text) + 1), len(text)], np.int32),
        eos=True,
    )
    found = case.project()
    assert found.covered.all()
    assert found.gold_logprob.sum() == pytest.approx(
        case.rows.gold_logprob.sum(dtype=np.float64)
    )


@given(seeds)
def test_the_same_tokenizer_is_the_identity(seed):
    case = random_case(seed)
    rows, k = case.rows, case.rows.top_ids.shape[1]
    same = dataclasses.replace(
        case, target=case.source, target_ids=rows.token_ids, target_ends=rows.byte_ends
    )
    inside = rows.top_ids < case.source.size
    found = same.project(case.source.size)
    for t in np.flatnonzero(found.covered):
        expected = dict(
            zip(
                rows.top_ids[t][inside[t]].tolist(),
                np.exp(rows.top_logprobs[t][inside[t]]).tolist(),
                strict=True,
            )
        )
        gold = int(rows.token_ids[t + 1])
        expected[gold] = float(np.exp(rows.gold_logprob[t]))
        assert as_dict(found, t) == pytest.approx(expected, abs=1e-6)
        assert found.gold_logprob[t] == rows.gold_logprob[t]
        if gold in rows.top_ids[t] and inside[t].all():
            np.testing.assert_array_equal(found.ids[t, :k], rows.top_ids[t])
    assert found.covered.all()


def code_words(rng: np.random.Generator) -> list[str]:
    """Makes a prefix code over "a" and "b": what is written in it reads one way."""
    words = ["a", "b"]
    for _ in range(rng.integers(1, 6)):
        split = words.pop(int(rng.integers(len(words))))
        words += [split + "a", split + "b"]
    return words


@given(seeds)
def test_a_prefix_code_projects_onto_bytes_as_its_true_distribution(seed):
    rng = np.random.default_rng(seed)
    words = code_words(rng)
    source = toys.toy(*words, fingerprint="source")
    target = toys.toy("a", "b", fingerprint="target")
    text = rng.choice(words, rng.integers(1, 6)).tolist()
    ids, ends = toys.frame(source, [2 + words.index(w) for w in text], eos=False)
    flat = "".join(text)
    rows = toys.random_rows(rng, ids, ends, logits_width=source.size, k=source.size)
    case = Case(
        source=source,
        target=target,
        rows=rows,
        target_ids=np.array([0, *(2 + (c == "b") for c in flat)], np.int32),
        target_ends=np.arange(len(flat) + 1, dtype=np.int32),
        eos=False,
    )
    found, t = case.project(), 0
    for j, word in enumerate(text):
        p = dict(
            zip(rows.top_ids[j].tolist(), np.exp(rows.top_logprobs[j]), strict=True)
        )
        for n in range(len(word)):
            agree = [s for s in p if s > 1 and words[s - 2].startswith(word[:n])]
            given_ = sum(p[s] for s in agree) if n else 1.0
            for v, letter in ((2, "a"), (3, "b")):
                mass = sum(p[s] for s in agree if words[s - 2][n] == letter)
                assert as_dict(found, t).get(v, 0.0) == pytest.approx(
                    mass / given_, abs=1e-6
                )
            t += 1


def small_case(**changes) -> Case:
    """Source |ab|a| and target |a|b|a| with EOS behind; row 0 keeps ab, a, b."""
    source = toys.toy("a", "b", "ab", fingerprint="source")
    target = toys.toy("a", "b", fingerprint="target")
    ids, ends = toys.frame(source, [4, 2], eos=True)
    top = np.log(np.array([[0.5, 0.25, 0.125]] * 3, np.float32))
    rows = toys.Rows(
        token_ids=ids,
        byte_ends=ends,
        top_ids=np.array([[4, 2, 3], [2, 4, 3], [1, 2, 3]], np.int32),
        top_logprobs=top,
        gold_logprob=top[:, 0].copy(),
    )
    target_ids, target_ends = toys.frame(target, [2, 3, 2], eos=True)
    case = Case(
        source=source,
        target=target,
        rows=rows,
        target_ids=target_ids,
        target_ends=target_ends,
        eos=True,
    )
    return dataclasses.replace(case, rows=dataclasses.replace(rows, **changes))


def test_a_walk_down_by_hand():
    found = small_case().project(2)
    # ab and a begin with a; given a, ab goes on to b and a ends
    np.testing.assert_allclose(np.exp(found.gold_logprob[:2]), [0.75, 0.5 / 0.75])
    assert found.ids[:2].tolist() == [[2, 3], [3, -1]]
    np.testing.assert_allclose(found.tail[:2], [0.125, 1 / 3], atol=1e-6)
    # row 1 says a; "ab" begins with a as well, but is not what came: tail
    np.testing.assert_allclose(found.probs[2], [0.5, 0.125])
    # EOS by role, beside "a" and "b"
    assert found.ids[3].tolist() == [1, 2]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_with_nan_or_inf_is_silent_and_the_others_speak(bad):
    top = small_case().rows.top_logprobs.copy()
    top[0, 2] = bad
    assert small_case(top_logprobs=top).project().covered.tolist() == [
        *[False] * 2,
        *[True] * 2,
    ]
    gold = small_case().rows.gold_logprob.copy()
    gold[1] = bad
    found = small_case(gold_logprob=gold).project()
    assert found.covered.tolist() == [True, True, False, True]


def test_an_impossible_gold_token_has_no_probability_but_the_row_speaks():
    gold = np.array([-0.7, -np.inf, -0.7], np.float32)
    found = small_case(gold_logprob=gold).project()
    assert found.covered[2]
    assert found.gold_logprob[2] == -np.inf
    assert 2 not in found.ids[2]


def test_kept_probabilities_that_round_to_more_than_one_are_scaled():
    top = np.log(np.array([[0.9, 0.1, 0.01]] * 3, np.float32))
    found = small_case(top_logprobs=top, gold_logprob=top[:, 0].copy()).project()
    np.testing.assert_allclose(found.probs.sum(axis=1) + found.tail, 1.0, atol=1e-6)


def test_nothing_is_what_a_failed_window_says():
    found = project.project_nothing(3, k=2)
    assert not found.covered.any()
    assert (found.ids == -1).all()
    assert found.probs.sum() == found.tail.sum() == 0.0


def test_no_positions_project_to_no_rows():
    case = small_case()
    nothing = dataclasses.replace(
        case,
        target_ids=case.target_ids[:1],
        target_ends=case.target_ends[:1],
        rows=toys.Rows(
            token_ids=np.zeros(1, np.int32),
            byte_ends=np.zeros(1, np.int32),
            top_ids=np.zeros((0, 3), np.int32),
            top_logprobs=np.zeros((0, 3), np.float32),
            gold_logprob=np.zeros(0, np.float32),
        ),
        eos=False,
    )
    assert nothing.project().ids.shape == (0, 64)


def test_read_only_arrays_are_taken_as_they_are():
    case = small_case()
    expected = case.project()
    for array in dataclasses.astuple(case.rows):
        array.flags.writeable = False
    found = dataclasses.replace(case).project()
    np.testing.assert_array_equal(found.probs, expected.probs)


def test_an_alignment_of_another_window_is_refused():
    case = small_case()
    pairs = vocabulary.build_map(case.source, case.target)
    with pytest.raises(ValueError, match="must have 3 positions"):
        project.project_rows(
            case.alignment,
            case.rows,
            pairs,
            case.target_ids[:-1],
            begins_alike=True,
            k=2,
        )
    shorter = dataclasses.replace(case.rows, token_ids=case.rows.token_ids[:-1])
    with pytest.raises(ValueError, match="must be that of the rows"):
        project.project_rows(
            case.alignment, shorter, pairs, case.target_ids, begins_alike=True, k=2
        )


def test_k_must_be_positive():
    with pytest.raises(ValueError, match="k must be positive, got 0"):
        small_case().project(0)


def test_order_is_total_over_many_equal_masses():
    source = toys.toy(*map("".join, itertools.product("ab", repeat=5)), fingerprint="s")
    ids, ends = toys.frame(source, [2], eos=False)
    top = np.full((1, 32), np.log(1 / 32), np.float32)
    rows = toys.Rows(
        token_ids=ids,
        byte_ends=ends,
        top_ids=np.random.default_rng(0).permutation(32)[None].astype(np.int32) + 2,
        top_logprobs=top,
        gold_logprob=top[:, 0].copy(),
    )
    found = project.project_rows(
        align.align_spans(ends, ends, eos=False),
        rows,
        vocabulary.build_map(source, source),
        ids,
        begins_alike=True,
        k=40,
    )
    assert found.ids[0, :32].tolist() == list(range(2, 34))
