"""The laws of `spans`, over real tokenizers in all ordered pairs."""

import itertools
import os

import numpy as np
import pytest

from tests import real_tokenizers
from tests.transforms import pair_windows
from tests.transforms.functional import toys
from tests.transforms.pair_windows import Excerpt, Meeting
from transforms.functional import coverage, vocabulary

pytestmark = pytest.mark.registry

NAMES = real_tokenizers.EVERY
PAIRS = list(itertools.product(NAMES, NAMES))
ORACLE_TOKENS, ORACLE_WINDOWS = 60, 4
"""The oracle is slow: of each pair it gets some windows of few tokens, by turns."""


@pytest.fixture(scope="module")
def excerpts():
    """Tokenizers that were asked for, each loaded once."""
    return {}


def excerpt(name: str, made: dict[str, Excerpt]) -> Excerpt:
    if reason := real_tokenizers.missing().get(name):
        if os.environ.get("CI"):
            pytest.fail(f"{name}: {reason}")
        pytest.skip(f"{name}: {reason}")
    if name not in made:
        made[name] = pair_windows.cut_down(real_tokenizers.load(name))
    return made[name]


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def met(request, excerpts):
    """All windows of a pair: the source's name comes first."""
    source, target = (excerpt(name, excerpts) for name in request.param)
    return pair_windows.meet(source, target)


@pytest.fixture(scope="module", params=NAMES)
def alone(request, excerpts):
    return excerpt(request.param, excerpts)


def adds_up(one: Meeting) -> np.ndarray:
    """Says of every target token whether nothing of the source is lost by it.

    It does where it crosses no source border or ends on one, and where it is no token
    without bytes inside a source token. Said in bytes alone, not by the alignment.
    """
    source = one.rows.byte_ends
    a, b = one.byte_ends[:-1], one.byte_ends[1:]
    behind = np.searchsorted(source, a, side="right")  # the first border behind a
    following = np.append(source, b.max(initial=0))[behind]
    crosses = following < b
    return np.where(a == b, np.isin(a, source), ~crosses | np.isin(b, source))


def chunk_of(borders: np.ndarray, byte_ends: np.ndarray) -> np.ndarray:
    """Numbers, for each token, the chunk between shared borders that it begins in."""
    return np.searchsorted(borders, byte_ends[:-1], side="right") - 1


def test_spans_tile_every_window(alone):
    texts = {
        **pair_windows.WINDOWS,
        **{name: text for name, (text, _) in pair_windows.CHATS.items()},
    }
    for name, text in texts.items():
        ends = alone.encodings[name].byte_ends
        assert ends[0] == 0
        assert (np.diff(ends) >= 0).all()
        assert ends[-1] == len(text.encode())
        assert ends.size > 1 or not text


def test_a_tokenizer_onto_itself_is_the_identity(alone):
    for one in pair_windows.meet(alone, alone).values():
        found, rows = one.projected, one.rows
        assert found.covered.all()
        np.testing.assert_array_equal(found.gold_logprob, rows.gold_logprob)
        gold, known = rows.token_ids[1:, None], rows.top_ids < alone.size
        for t, gold_kept in enumerate((rows.top_ids == gold).any(axis=1)):
            kept = rows.top_ids[t][known[t] & (rows.top_ids[t] >= 0)]
            wanted = kept if gold_kept else [*kept, rows.token_ids[t + 1]]
            assert set(found.ids[t][found.ids[t] >= 0]) == set(wanted)
            probs = dict(
                zip(rows.top_ids[t], np.exp(rows.top_logprobs[t]), strict=True)
            )
            for v, p in zip(found.ids[t], found.probs[t], strict=True):
                own = probs.get(v, np.exp(rows.gold_logprob[t])) if v >= 0 else 0.0
                assert p == pytest.approx(own, rel=1e-6)


def test_kept_mass_and_tail_sum_to_one(met):
    for one in met.values():
        found = one.projected
        total = found.probs.sum(axis=1, dtype=np.float64) + found.tail
        np.testing.assert_allclose(total, found.covered, atol=1e-6)
        assert (found.tail >= 0).all()
        assert (np.diff(found.probs, axis=1) <= 0).all()
        assert (found.ids[~found.covered] == -1).all()
        assert np.isnan(found.gold_logprob[~found.covered]).all()


def test_gold_logprobs_sum_to_the_sources_own_between_shared_borders(met):
    held = total = 0
    for one in met.values():
        found, source = one.projected, one.rows.byte_ends
        borders = np.intersect1d(one.byte_ends, source)
        mine, theirs = (chunk_of(borders, ends) for ends in (one.byte_ends, source))
        own = one.rows.gold_logprob.astype(np.float64)
        if one.source_eos and not one.target_eos:
            own[-1] = 0.0
        spoken = np.where(found.covered, found.gold_logprob, 0.0)
        summed = np.bincount(mine, spoken, borders.size)
        wanted = np.bincount(theirs, own, borders.size)
        lost = np.bincount(mine, ~adds_up(one), borders.size) > 0
        widths = np.diff(borders, append=borders[-1])
        held, total = held + widths[~lost].sum(), total + widths.sum()
        np.testing.assert_allclose(summed[~lost], wanted[~lost], rtol=1e-6, atol=1e-6)
        # what is not covered, or known only to its first bytes, costs less
        assert (summed[lost] >= wanted[lost] - 1e-6).all()
    assert held > 0.8 * total  # bytes: the law's condition is the rule


def test_whole_windows_that_add_up_are_covered_and_sum_to_the_sources_own(met):
    whole = [one for one in met.values() if adds_up(one).all()]
    assert len(whole) > len(met) / 4
    for one in whole:
        found, own = one.projected, one.rows.gold_logprob.astype(np.float64)
        assert found.covered[np.diff(one.byte_ends) > 0].all()
        own = own[:-1] if one.source_eos and not one.target_eos else own
        assert found.gold_logprob[found.covered].sum() == pytest.approx(own.sum())


def test_classes_say_what_is_covered(met):
    for one in met.values():
        found = one.projected
        classes = coverage.classify_positions(
            one.alignment,
            found.covered,
            one.rows,
            one.byte_ends,
            target_eos=one.target_eos,
        )
        speaks = np.isin(classes, list(coverage.SPEAKING))
        np.testing.assert_array_equal(speaks, found.covered)


def test_projecting_equals_the_definitions(met, request):
    turn = PAIRS.index(request.node.callspec.params["met"])
    short = [one for one in met.values() if len(one.token_ids) <= ORACLE_TOKENS]
    for place in range(turn, turn + ORACLE_WINDOWS):
        check_against_definitions(short[place % len(short)])


def check_against_definitions(one: Meeting) -> None:
    found, mapping = one.projected, one.mapping
    begins = mapping.beginning(one.begins_alike)
    expected = toys.oracle(
        one.token_ids.tolist(),
        one.byte_ends.tolist(),
        one.rows,
        listed(mapping.offsets, mapping.ids),
        spelled(mapping),
        eos=one.eos,
        start_seqs=listed(*begins[:2]),
    )
    assert found.covered.tolist() == [spoken is not None for spoken in expected]
    for t, spoken in enumerate(expected):
        if spoken is None:
            continue
        over = max(1.0, sum(spoken.masses.values()))
        kept = {v: m / over for v, m in spoken.masses.items() if np.float32(m) > 0}
        ids = found.ids[t][found.ids[t] >= 0].tolist()
        assert set(ids) == set(kept)
        wanted = [kept[v] for v in ids]
        np.testing.assert_allclose(found.probs[t, : len(ids)], wanted, rtol=1e-5)
        np.testing.assert_allclose(
            found.gold_logprob[t], np.log(spoken.gold), rtol=1e-5, atol=1e-5
        )


def listed(offsets: np.ndarray, flat: np.ndarray) -> list[list[int]]:
    """Lists rows that lie end to end."""
    bounds, ids = offsets.tolist(), flat.tolist()
    return [ids[start:stop] for start, stop in itertools.pairwise(bounds)]


def spelled(mapping: vocabulary.VocabularyMap) -> list[bytes]:
    """Lists the bytes of the source's tokens."""
    bounds, raw = mapping.byte_offsets.tolist(), mapping.flat_bytes.tobytes()
    return [raw[start:stop] for start, stop in itertools.pairwise(bounds)]
