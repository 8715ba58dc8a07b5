import numpy as np
import pytest

from tests.bench import peers


@pytest.mark.parametrize(
    ("k", "fusellm", "raw", "exact_15", "exact_18"),
    [
        (8, 88, 48, 31, 34),
        (10, 108, 60, 39, 43),
        (32, 328, 192, 124, 136),
        (64, 648, 384, 248, 272),
        (100, 1008, 600, 388, 425),
    ],
)
def test_fixed_layouts_take_what_is_known_of_them(
    k: int, fusellm: int, raw: int, exact_15: int, exact_18: int
) -> None:
    assert peers.fusellm(k) == fusellm
    assert peers.raw(k) == raw
    assert peers.distillkit(k, 32_000) == exact_15
    assert peers.distillkit(k, 151_936) == exact_18


@pytest.mark.parametrize(
    ("k", "size", "taken"),
    [(32, 32_000, 116), (64, 32_000, 176), (64, 151_936, 200), (100, 151_936, 281)],
)
def test_a_fit_takes_its_exact_entries_coefficients_and_ids(
    k: int, size: int, taken: int
) -> None:
    assert peers.distillkit(k, size, exact=16, terms=6) == taken


def test_dense_rows_take_four_bytes_an_id() -> None:
    assert (peers.dense(32_000), peers.dense(151_936)) == (128_000, 607_744)


def rows(size: int, t: int = 3000, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Makes ids without any order, and logprobs that fall."""
    rng = np.random.default_rng(0)
    falling = -np.sort(rng.exponential(3.0, (t, k)).astype(np.float32), axis=1)
    return rng.integers(0, size, (t, k)).astype(np.int32), falling


def test_what_no_compressor_can_shorten_stays_as_long_as_its_layout() -> None:
    ids, logprobs = rows(1 << 17)
    assert 10 * (2 + 1.5) < peers.megatron(ids, logprobs) < 10 * 5
    assert 10 * (2 + 1.5) < peers.nested_lists(ids, logprobs) < 10 * (4 + 4)


def test_ids_that_do_not_fit_17_bits_are_refused() -> None:
    ids, logprobs = rows(10)
    ids[3, 4] = 1 << 17
    with pytest.raises(ValueError, match="must be below 131072, got 131072"):
        peers.megatron(ids, logprobs)


def test_variable_lengths_are_those_of_protocol_buffers() -> None:
    ids = np.array([[0, 127, 128, 16_383, 16_384]])
    assert peers.varints(ids) == (1 + 1 + 2 + 2 + 3) + 4 * 5


def test_text_spells_every_digit() -> None:
    ids, logprobs = np.array([[7, 1234]]), np.array([[-0.5, -2.25]])
    line = '{"logits": [[-0.5, -2.25]], "ids": [[7, 1234]]}'
    assert peers.json_lines(ids, logprobs) == len(line)
