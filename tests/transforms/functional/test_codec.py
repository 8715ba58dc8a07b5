import functools

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import SchemaError
from transforms.functional import codec, levels, ranks
from transforms.functional.codec import Distributions

SIZE = 1 << 20
SEEDS = st.integers(0, 2**32 - 1)


def make_rows(seed: int, t: int, k: int, size: int) -> tuple[Distributions, np.ndarray]:
    """Rows of every temper: flat, peaked, without tail, all tail, empty."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, min(k, size - 1) + 1, t).astype(np.int32)
    ids = np.full((t, k), -1, np.int32)
    probs, tail = np.zeros((t, k), np.float32), np.zeros(t, np.float32)
    vocabulary = rng.integers(0, size, 4 * k)  # few ids, so that lists recall some
    for p, count in enumerate(counts):
        if count == 0:
            continue
        fresh = rng.permutation(np.unique(np.append(vocabulary, rng.integers(size))))
        counts[p] = count = min(count, len(fresh))
        nats = np.sort(rng.exponential(rng.choice([0, 0.01, 1, 5, 40]), count))
        masses = np.exp(nats[0] - nats)
        rest = rng.choice([0, 1e-30, 0.1, 1, 1e6]) * rng.random()
        total = masses.sum() + rest
        ids[p, :count], probs[p, :count] = fresh[:count], masses / total
        tail[p] = rest / total
    token_ids = rng.choice(vocabulary, t).astype(np.int32)
    return Distributions(counts=counts, ids=ids, probs=probs, tail=tail), token_ids


@functools.cache
def table_of(size: int) -> ranks.RankTable:
    return ranks.rank_by_frequency(np.random.default_rng(size).poisson(0.5, size))


def round_trip(rows: Distributions, token_ids: np.ndarray, size: int) -> Distributions:
    table = table_of(size)
    frame = codec.encode_rows(rows, token_ids, table)
    return codec.decode_rows(frame, token_ids, table)


def divergence(stored: Distributions, original: Distributions) -> np.ndarray:
    """KL(stored || original) of each position, over the k entries and the tail."""
    s, o = (
        np.concatenate([d.probs, d.tail[:, None]], axis=1).astype(np.float64)
        for d in (stored, original)
    )
    o /= np.maximum(o.sum(axis=1, keepdims=True), 1e-300)
    terms = s * np.log(np.maximum(s, 1e-300) / np.maximum(o, 1e-300))
    return np.where(s > 1e-15, terms, 0).sum(axis=1)


def step(nats: np.ndarray) -> np.ndarray:
    return np.minimum(0.034 * np.exp(0.25 * np.abs(nats)), 2)


CASES = given(
    SEEDS,
    st.integers(0, 40),
    st.sampled_from([1, 2, 10, 64, 255]),
    st.sampled_from([50, SIZE]),
)


@CASES
def test_ids_and_counts_come_back_as_they_were(
    seed: int, t: int, k: int, size: int
) -> None:
    rows, token_ids = make_rows(seed, t, k, size)
    found = round_trip(rows, token_ids, size)
    np.testing.assert_array_equal(found.ids, rows.ids)
    np.testing.assert_array_equal(found.counts, rows.counts)


@CASES
def test_encoding_what_was_decoded_gives_the_same_frame(
    seed: int, t: int, k: int, size: int
) -> None:
    rows, token_ids = make_rows(seed, t, k, size)
    table = table_of(size)
    frame = codec.encode_rows(rows, token_ids, table)
    found = codec.decode_rows(frame, token_ids, table)
    assert codec.encode_rows(found, token_ids, table) == frame


@CASES
def test_decoded_rows_fall_and_sum_to_one(seed: int, t: int, k: int, size: int) -> None:
    rows, token_ids = make_rows(seed, t, k, size)
    found = round_trip(rows, token_ids, size)
    total = found.probs.sum(axis=1, dtype=np.float64) + found.tail
    np.testing.assert_allclose(total, (rows.counts > 0).astype(float), atol=1e-6)
    assert (np.diff(found.probs, axis=1) <= 0).all()
    assert not found.probs[np.arange(k) >= rows.counts[:, None]].any()
    assert (found.tail[rows.tail == 0] == 0).all()


@CASES
def test_log_ratios_to_the_likeliest_err_by_half_a_step(
    seed: int, t: int, k: int, size: int
) -> None:
    rows, token_ids = make_rows(seed, t, k, size)
    found = round_trip(rows, token_ids, size)
    sound = rows.probs[:, :1] > 1e-12
    tails = (rows.tail[:, None], found.tail[:, None])
    for wanted, stored in ((rows.probs, found.probs), tails):
        wanted, stored = wanted.astype(float), stored.astype(float)
        near = sound & (wanted > rows.probs[:, :1] * 1e-15)
        near &= wanted < rows.probs[:, :1] * 1e15
        nats = np.log(np.where(near, wanted / np.maximum(rows.probs[:, :1], 1e-38), 1))
        first = np.maximum(found.probs[:, :1].astype(float), 1e-300)
        held = np.log(np.where(near, np.maximum(stored, 1e-300) / first, 1))
        # y(u + 1/2) - y(u): more than half a step, as steps grow
        half = -4 * np.log1p(-step(nats) / 8)
        assert (np.abs(held - nats) <= half + 1e-4).all()


@CASES
def test_the_error_of_a_position_keeps_to_its_bound(
    seed: int, t: int, k: int, size: int
) -> None:
    rows, token_ids = make_rows(seed, t, k, size)
    found = round_trip(rows, token_ids, size)
    # KL <= 1/2 sum p e^2 with |e| <= step / 2, and a little for the third order
    masses = np.concatenate([rows.probs, rows.tail[:, None]], axis=1).astype(float)
    top = np.maximum(masses.max(axis=1, keepdims=True), 1e-30)
    nats = np.log(np.maximum(masses / top, 1e-30))
    bound = (masses * step(nats) ** 2).sum(axis=1)
    assert (divergence(found, rows) <= 0.16 * bound + 1e-6).all()


@pytest.mark.parametrize("spread", [0.5, 1, 2, 4, 8])
@pytest.mark.parametrize("k", [1, 10, 12, 64])
def test_rows_like_a_models_err_by_less_than_the_aim(spread: float, k: int) -> None:
    rng = np.random.default_rng(k)
    logits = rng.normal(0, spread, (500, 2000))
    probs = np.exp(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    ids = np.argsort(-probs, axis=1)[:, :k].astype(np.int32)
    kept = np.take_along_axis(probs, ids, axis=1)
    rows = Distributions(
        counts=np.full(500, k, np.int32),
        ids=ids,
        probs=kept.astype(np.float32),
        tail=(1 - kept.sum(axis=1)).clip(0).astype(np.float32),
    )
    token_ids = rng.integers(0, 2000, 500).astype(np.int32)
    found = round_trip(rows, token_ids, 2000)
    assert divergence(found, rows).mean() < 1.5e-4


def test_certainty_is_stored_exactly() -> None:
    rows = Distributions(
        counts=np.array([1], np.int32),
        ids=np.array([[7]], np.int32),
        probs=np.ones((1, 1), np.float32),
        tail=np.zeros(1, np.float32),
    )
    found = round_trip(rows, np.array([3], np.int32), 8)
    assert found.probs[0, 0] == 1
    assert found.tail[0] == 0


def test_a_row_that_recurs_takes_few_bytes() -> None:
    again = Distributions(
        counts=np.full(500, 10, np.int32),
        ids=np.tile(np.arange(29_000, 29_010, dtype=np.int32), (500, 1)),
        probs=np.tile(np.full(10, 0.1, np.float32), (500, 1)),
        tail=np.zeros(500, np.float32),
    )
    token_ids = np.full(500, 5, np.int32)
    frame = codec.encode_rows(again, token_ids, table_of(30_000))
    assert len(frame) < 500


GOOD, TOKENS = make_rows(3, 30, 10, 1000)
TABLE = table_of(1000)
FRAME = codec.encode_rows(GOOD, TOKENS, TABLE)
CONTENT = zstandard.ZstdDecompressor().decompress(FRAME)


def reframe(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


@given(st.integers(0, len(FRAME) - 1))
def test_a_truncated_frame_is_refused(size: int) -> None:
    with pytest.raises(SchemaError, match="a distribution frame must"):
        codec.decode_rows(FRAME[:size], TOKENS, TABLE)


@given(st.integers(0, len(FRAME) - 1), st.integers(1, 255))
def test_a_changed_byte_is_noticed_or_changes_nothing(place: int, change: int) -> None:
    broken = bytearray(FRAME)
    broken[place] ^= change
    try:
        found = codec.decode_rows(bytes(broken), TOKENS, TABLE)
    except SchemaError:
        return
    # zstandard leaves some bits unused; the checksum vouches for all others
    sound = codec.decode_rows(FRAME, TOKENS, TABLE)
    for name in ("counts", "ids", "probs", "tail"):
        np.testing.assert_array_equal(getattr(found, name), getattr(sound, name))


@settings(max_examples=300)
@given(st.integers(0, len(CONTENT) - 1), st.integers(1, 255))
def test_a_forged_frame_gives_sound_rows_or_is_refused(place: int, change: int) -> None:
    forged = bytearray(CONTENT)
    forged[place] ^= change
    try:
        found = codec.decode_rows(reframe(bytes(forged)), TOKENS, TABLE)
    except SchemaError:
        return
    used = np.arange(found.ids.shape[1]) < found.counts[:, None]
    assert ((found.ids >= 0) & (found.ids < 1000) | ~used).all()
    assert np.isfinite(found.probs).all()


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused(content: bytes) -> None:
    for frame in (content, reframe(content)):
        with pytest.raises(SchemaError):
            codec.decode_rows(frame, TOKENS, TABLE)


def test_a_bomb_is_refused_before_it_is_decompressed() -> None:
    bomb = reframe(bytes(1 << 27))
    assert len(bomb) < 20_000
    with pytest.raises(SchemaError, match="state at most"):
        codec.decode_rows(bomb, TOKENS, TABLE)


def test_a_frame_that_states_no_size_or_has_no_checksum_is_refused() -> None:
    for options in ({"write_content_size": False}, {"write_checksum": False}):
        frame = zstandard.ZstdCompressor(**options).compress(CONTENT)
        with pytest.raises(SchemaError, match="must have a checksum and state"):
            codec.decode_rows(frame, TOKENS, TABLE)


def test_bytes_behind_a_frame_are_refused() -> None:
    with pytest.raises(SchemaError, match="one whole zstandard frame"):
        codec.decode_rows(FRAME + b"x", TOKENS, TABLE)
    with pytest.raises(SchemaError, match="must end"):
        codec.decode_rows(reframe(CONTENT + b"x"), TOKENS, TABLE)


def test_a_frame_of_another_version_is_refused() -> None:
    with pytest.raises(SchemaError, match="must be of version 1 or 2, begins '03'"):
        codec.decode_rows(reframe(b"\x03" + CONTENT[1:]), TOKENS, TABLE)


def test_a_frame_is_read_by_the_levels_of_its_version() -> None:
    one = Distributions(
        counts=np.array([2], np.int32),
        ids=np.array([[7, 8]], np.int32),
        probs=np.array([[0.6, 0.3]], np.float32),
        tail=np.array([0.1], np.float32),
    )
    frame = codec.encode_rows(one, TOKENS[:1], TABLE)
    content = zstandard.ZstdDecompressor().decompress(frame)
    assert content[0] == 2
    for version, held in ((1, levels.FIRST), (2, levels.FINE)):
        frame = reframe(bytes([version]) + content[1:])
        found = codec.decode_rows(frame, TOKENS[:1], TABLE)
        rise, rest = (int(level) for level in (content[18], content[17]))
        weights = held.weights[rise], held.weights[rest]
        np.testing.assert_allclose(found.probs[0, 1] / found.probs[0, 0], weights[0])
        np.testing.assert_allclose(found.tail[0] / found.probs[0, 0], weights[1])


def test_a_frame_is_refused_with_the_tokens_of_another_row() -> None:
    with pytest.raises(SchemaError, match="must hold 29 positions"):
        codec.decode_rows(FRAME, TOKENS[:-1], TABLE)


def test_a_rank_beyond_the_table_is_refused() -> None:
    small = ranks.rank_by_frequency(np.ones(2, np.int64))
    with pytest.raises(SchemaError, match="ranks in"):
        codec.decode_rows(FRAME, TOKENS, small)


def changed(**arrays: np.ndarray) -> Distributions:
    given_ = {n: getattr(GOOD, n) for n in ("counts", "ids", "probs", "tail")}
    return Distributions(**{**given_, **arrays})


@pytest.mark.parametrize(
    ("rows", "law"),
    [
        (changed(counts=GOOD.counts + 11), "counts must be in"),
        (changed(ids=GOOD.ids + 2000), "kept ids must be in"),
        (changed(probs=GOOD.probs * np.nan), "probabilities must be"),
        (changed(probs=GOOD.probs[:, ::-1]), "never rising"),
        (changed(tail=GOOD.tail - 1), "probabilities must be"),
        (changed(tail=GOOD.tail * 0, probs=GOOD.probs / 2), "must sum to 1"),
    ],
)
def test_rows_that_are_no_distributions_are_refused(
    rows: Distributions, law: str
) -> None:
    with pytest.raises(ValueError, match=law):
        codec.encode_rows(rows, TOKENS, TABLE)


@pytest.mark.parametrize(
    ("held", "fine", "coarse", "knee", "last"),
    [(levels.FIRST, 0.05, 0.5, 9.21, 36.2), (levels.FINE, 0.034, 2, 16.3, 37.0)],
)
def test_levels_are_the_docstrings_function_of_nats(
    held: levels.Levels, fine: float, coarse: float, knee: float, last: float
) -> None:
    nats = -np.log(held.weights)
    curved, straight = nats < knee, nats > knee
    u = (1 - np.exp(-nats / 4)) / (fine / 4)
    np.testing.assert_allclose(u[curved], np.flatnonzero(curved), atol=1e-9)
    np.testing.assert_allclose(np.diff(nats[straight]), coarse)
    assert abs(nats[-1] - last) < 0.05
    assert len(nats) <= 128
    falls = held.weights[:-1] > held.borders[:-1]
    assert (falls & (held.borders[:-1] > held.weights[1:])).all()


@given(SEEDS, st.integers(0, 3000))
def test_a_rank_table_survives_its_text(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    table = ranks.rank_by_frequency(rng.poisson(rng.random() * 3, size))
    again = ranks.load_ranks(ranks.dump_ranks(table))
    np.testing.assert_array_equal(again.order, table.order)
    np.testing.assert_array_equal(again.ranks[again.order], np.arange(size))


def test_frequent_ids_have_low_ranks() -> None:
    frequencies = np.random.default_rng(0).permutation(2000)
    table = ranks.rank_by_frequency(frequencies)
    by_rank = frequencies[table.order]
    assert by_rank[:256].min() > by_rank[256:].max()
    assert by_rank[256:512].min() > by_rank[512:].max()


@pytest.mark.parametrize("text", ["", "é", "not a table", "0" * 50])
def test_a_text_that_is_no_rank_table_is_refused(text: str) -> None:
    with pytest.raises(SchemaError, match="rank table"):
        ranks.load_ranks(text)


def test_a_truncated_rank_table_is_refused() -> None:
    text = ranks.dump_ranks(TABLE)
    for size in range(0, len(text), 5):
        with pytest.raises(SchemaError, match="rank table"):
            ranks.load_ranks(text[:size])
