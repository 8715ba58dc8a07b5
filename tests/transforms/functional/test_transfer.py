import dataclasses
import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transforms.functional import toys
from transforms.functional import align, project, transfer, vocabulary
from transforms.functional.transfer import Partners, Transferred

STRATEGIES = ("exact", "mined", "statistics")
seeds = st.integers(0, 2**32 - 1)
strategies = st.sampled_from(STRATEGIES)


@dataclasses.dataclass(kw_only=True)
class Window:
    token_ids: np.ndarray
    byte_ends: np.ndarray


@dataclasses.dataclass(kw_only=True)
class Case:
    """One window under two toys, with all that transferring its rows needs."""

    text: bytes
    source: toys.Toy
    rows: toys.Rows
    target: Window
    partners: Partners

    def find(self, strategy: str) -> np.ndarray:
        pairing = transfer.pair_tokens(
            self.text, self.rows, self.target, strategy=strategy
        )
        return transfer.find_rows(
            pairing, self.rows, self.target, self.partners, strategy=strategy
        )

    def transfer(self, strategy: str, k: int = 64) -> Transferred:
        row = self.find(strategy)
        return transfer.transfer_rows(row, self.rows, self.target, self.partners, k=k)


def same_at_start(ids: np.ndarray) -> Partners:
    return Partners(ids=ids, start_ids=ids)


def random_case(seed: int, *, text: bytes | None = None, alike: bool = False) -> Case:
    rng = np.random.default_rng(seed)
    source = toys.random_toy(rng, "source")
    target = source if alike else toys.random_toy(rng, "target")
    text = toys.random_text(rng, 0, 14) if text is None else text
    eos = bool(rng.integers(2))
    lone = [[2] if rng.integers(4) == 0 else [] for _ in range(2)]
    cuts = [toys.cut_anyhow(rng, toy, text) for toy in (source, target)]
    ids, ends = toys.frame(source, cuts[0], eos=eos, lone=lone[0])
    target_ids, target_ends = toys.frame(target, cuts[1], eos=eos, lone=lone[1])
    width = source.size + int(rng.integers(3))  # logits padded beyond the tokenizer
    rows = toys.random_rows(
        rng, ids, ends, logits_width=width, k=int(rng.integers(1, width + 1))
    )
    partners = rng.integers(-1, target.size, source.size).astype(np.int32)
    if alike:
        target_ids, target_ends = ids, ends
        partners = np.arange(source.size, dtype=np.int32)
    return Case(
        text=text,
        source=source,
        rows=rows,
        target=Window(token_ids=target_ids, byte_ends=target_ends),
        partners=same_at_start(partners),
    )


def defined(case: Case, row: int, t: int) -> dict[int, float]:
    """Adds up what is known of a source row, by the definition."""
    masses: dict[int, float] = defaultdict(float)
    gold = case.rows.token_ids[row + 1]
    known = dict(
        zip(case.rows.top_ids[row], np.exp(case.rows.top_logprobs[row]), strict=True)
    )
    known[gold] = math.exp(case.rows.gold_logprob[row])
    alike = case.rows.byte_ends[row + 1] == case.target.byte_ends[t + 1]
    for s, mass in known.items():
        partner = case.partners.ids[s] if s < case.partners.ids.size else -1
        if s == gold and alike:
            partner = case.target.token_ids[t + 1]
        if partner >= 0:
            masses[int(partner)] += float(mass)
    return masses


@given(seeds, strategies)
def test_a_row_is_the_sum_of_its_entries_partners(seed, strategy):
    case = random_case(seed)
    row, found = case.find(strategy), case.transfer(strategy).projected
    for t in np.flatnonzero(row >= 0):
        wanted = defined(case, row[t], t)
        kept = found.ids[t] >= 0
        masses = dict(zip(found.ids[t][kept], found.probs[t][kept], strict=True))
        assert masses == pytest.approx(
            {v: m for v, m in wanted.items() if m > 0}, abs=1e-6
        )
        gold = wanted.get(int(case.target.token_ids[t + 1]), 0.0)
        wanted_gold = math.log(gold) if gold > 0 else math.nan
        assert found.gold_logprob[t] == pytest.approx(
            wanted_gold, abs=1e-6, nan_ok=True
        )


@given(seeds, strategies)
def test_equal_tokenizers_give_the_rows_themselves(seed, strategy):
    case = random_case(seed, alike=True)
    found = case.transfer(strategy)
    wanted = project.project_rows(
        align.align_spans(case.target.byte_ends, case.rows.byte_ends, eos=False),
        case.rows,
        vocabulary.build_map(case.source, case.source),
        case.target.token_ids,
        begins_alike=True,
        k=64,
    )
    assert found.used.all()
    covered = wanted.covered  # all but the EOS, which spans know by its role
    assert (found.projected.ids[covered] == wanted.ids[covered]).all()
    for name in ("probs", "tail"):
        given, expected = (getattr(p, name) for p in (found.projected, wanted))
        np.testing.assert_allclose(given[covered], expected[covered], atol=1e-6)
    np.testing.assert_allclose(
        found.projected.gold_logprob, case.rows.gold_logprob, atol=1e-6
    )


@given(seeds, strategies, st.integers(1, 5))
def test_kept_and_tail_sum_to_one_in_order(seed, strategy, k):
    found = random_case(seed).transfer(strategy, k=k).projected
    total = found.probs.sum(axis=1, dtype=np.float64) + found.tail
    np.testing.assert_allclose(total, 1.0, atol=1e-6)
    for ids, probs in zip(found.ids, found.probs, strict=True):
        kept = [(-p, v) for p, v in zip(probs, ids, strict=True) if v >= 0]
        assert kept == sorted(kept)
        assert all(probs[ids < 0] == 0)


@given(seeds, strategies)
def test_other_positions_are_certain_of_the_next_token(seed, strategy):
    case = random_case(seed)
    found, row = case.transfer(strategy), case.find(strategy)
    np.testing.assert_array_equal(found.used, row >= 0)
    rest = ~found.used
    assert found.projected.covered.all()
    following = case.target.token_ids[1:]
    np.testing.assert_array_equal(found.projected.ids[rest, 0], following[rest])
    assert (found.projected.probs[rest, 0] == 1).all()
    assert (found.projected.gold_logprob[rest] == 0).all()


@given(seeds)
def test_mined_uses_what_exact_does_and_its_maps_pairs(seed):
    case = random_case(seed)
    exact, mined = case.find("exact"), case.find("mined")
    assert (mined[exact >= 0] == exact[exact >= 0]).all()
    for t in np.flatnonzero((mined >= 0) & (exact < 0)):
        partner = case.partners.ids[case.rows.token_ids[mined[t]]]
        assert partner == case.target.token_ids[t]


@given(seeds, strategies)
def test_a_row_stands_where_its_position_does(seed, strategy):
    case = random_case(seed)
    row = case.find(strategy)
    t = np.flatnonzero(row >= 0)
    ends, target_ends = case.rows.byte_ends, case.target.byte_ends
    np.testing.assert_array_equal(ends[row[t]], target_ends[t])
    empty = ends[row[t] + 1] == ends[row[t]]
    np.testing.assert_array_equal(empty, target_ends[t + 1] == target_ends[t])


@given(seeds, strategies, st.sampled_from([np.nan, np.inf]))
def test_a_row_with_no_number_in_it_is_not_used(seed, strategy, value):
    case = random_case(seed)
    row = case.find(strategy)
    bad = np.random.default_rng(seed).integers(0, 2, row.size) == 1
    logprobs = case.rows.top_logprobs.copy()
    logprobs[row[bad & (row >= 0)], 0] = value
    case.rows.top_logprobs = logprobs
    found = case.transfer(strategy)
    np.testing.assert_array_equal(found.used, (row >= 0) & ~bad)
    assert np.isfinite(found.projected.probs).all()
    following = case.target.token_ids[1:]
    np.testing.assert_array_equal(found.projected.ids[bad, 0], following[bad])


@given(seeds, strategies)
def test_an_empty_window_has_the_end_alone_to_speak_of(seed, strategy):
    case = random_case(seed, text=b"", alike=True)
    assert case.transfer(strategy).used.size == case.target.token_ids.size - 1


def paired(source, target, partners=None):
    """Makes a window of two cuts of one text; ids number the pieces."""
    known = {piece: 2 + i for i, piece in enumerate(dict.fromkeys([*source, *target]))}
    windows = []
    for cut in (source, target):
        ends = np.cumsum([0, *map(len, cut)]).astype(np.int32)
        ids = np.array([0, *(known[piece] for piece in cut)], np.int32)
        windows.append(Window(token_ids=ids, byte_ends=ends))
    ids = np.full(2 + len(known), -1, np.int32)
    for one, other in (partners or {}).items():
        ids[known[one]] = known[other]
    text = "".join(source).encode()
    return text, *windows, same_at_start(ids)


def rows_of(source, target, strategy, partners=None):
    text, one, other, found = paired(source, target, partners)
    pairing = transfer.pair_tokens(text, one, other, strategy=strategy)
    return transfer.find_rows(pairing, one, other, found, strategy=strategy).tolist()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_window_of_one_token_uses_the_row_at_its_beginning(strategy):
    assert rows_of(["a"], ["a"], strategy) == [0]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_lone_dummy_prefix_is_not_mistaken_for_the_text(strategy):
    # tokens: the start, the prefix, "a"; and the start, "a"
    with_prefix = Window(token_ids=np.array([0, 2, 3]), byte_ends=np.array([0, 0, 1]))
    without = Window(token_ids=np.array([0, 3]), byte_ends=np.array([0, 1]))
    found = {}
    for name, source, target in [
        ("the source's", with_prefix, without),
        ("the target's", without, with_prefix),
        ("both", with_prefix, with_prefix),
    ]:
        one, other = (
            Window(
                token_ids=w.token_ids.astype(np.int32),
                byte_ends=w.byte_ends.astype(np.int32),
            )
            for w in (source, target)
        )
        pairing = transfer.pair_tokens(b"a", one, other, strategy=strategy)
        found[name] = transfer.find_rows(
            pairing, one, other, same_at_start(np.zeros(0, np.int32)), strategy=strategy
        ).tolist()
    assert found == {"the source's": [1], "the target's": [-1, 0], "both": [0, 1]}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_row_that_predicts_text_is_not_used_for_a_token_without_bytes(strategy):
    # behind the control token "a" of a chat the target writes a lone dummy prefix
    source = Window(
        token_ids=np.array([0, 3, 4], np.int32), byte_ends=np.array([0, 1, 2], np.int32)
    )
    target = Window(
        token_ids=np.array([0, 3, 2, 4], np.int32),
        byte_ends=np.array([0, 1, 1, 2], np.int32),
    )
    pairing = transfer.pair_tokens(b"ab", source, target, strategy=strategy)
    found = transfer.find_rows(
        pairing,
        source,
        target,
        same_at_start(np.arange(5, dtype=np.int32)),
        strategy=strategy,
    )
    assert found.tolist() == [0, -1, -1]


def test_one_token_for_several_is_used_at_its_end():
    rest = " undoubtedly"
    source, target = ["un", "believable", rest], ["un", "believ", "able", rest]
    assert rows_of(source, target, "exact") == [0, 1, -1, -1]
    assert rows_of(source, target, "statistics") == [0, 1, -1, 2]


def test_several_tokens_for_one_are_used_at_their_end():
    # FuseChat takes the row of the first "a": it ends like "banana" too
    source, target = ["b", "a", "nana", " undoubtedly"], ["banana", " undoubtedly"]
    assert rows_of(source, target, "exact") == [0, -1]
    assert rows_of(source, target, "statistics") == [0, 3]


def test_a_mapped_token_is_used_where_it_ends():
    # both new lines have the one partner; what follows the first is the second
    source, target = ["a", "\n\n", "b"], ["a", "\n", "\n", "b"]
    partners = {"\n\n": "\n"}
    assert rows_of(source, target, "exact") == [0, 1, -1, -1]
    assert rows_of(source, target, "mined", partners) == [0, 1, -1, 2]


def test_what_begins_a_window_has_partners_of_its_own():
    _, source, target, partners = paired(["a", "b"], ["a", "b"])
    rows = toys.Rows(
        token_ids=source.token_ids,
        byte_ends=source.byte_ends,
        top_ids=np.array([[3], [2]], np.int32),
        top_logprobs=np.log(np.full((2, 1), 0.25, np.float32)),
        gold_logprob=np.log(np.full(2, 0.5, np.float32)),
    )
    other = Partners(ids=partners.ids, start_ids=np.full(4, 1, np.int32))
    row = np.array([0, 1], np.int32)
    found = transfer.transfer_rows(row, rows, target, other, k=2)
    assert found.projected.ids.tolist() == [[2, 1], [3, -1]]


@pytest.mark.parametrize("k", [0, -1])
def test_nothing_to_keep_is_refused(k):
    with pytest.raises(ValueError, match="k must be positive"):
        random_case(0).transfer("exact", k=k)


def test_rows_of_another_window_are_refused():
    case = random_case(0, text=b"ab")
    with pytest.raises(ValueError, match="one a position"):
        transfer.transfer_rows(
            np.zeros(9, np.int32), case.rows, case.target, case.partners, k=1
        )


def test_the_pairing_of_another_window_is_refused():
    case, other = random_case(0, text=b"ab"), random_case(0, text=b"abababab")
    pairing = transfer.pair_tokens(
        other.text, other.rows, other.target, strategy="exact"
    )
    with pytest.raises(ValueError, match="the pairing must be of"):
        transfer.find_rows(
            pairing, case.rows, case.target, case.partners, strategy="exact"
        )
