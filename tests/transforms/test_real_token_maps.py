"""Token maps between tokenizers of well-known models; not run unless fetched."""

import functools
import os

import numpy as np
import pytest

from tests import real_tokenizers, snippets
from transforms import tokenizer
from transforms.functional import counterparts, token_map
from transforms.functional.token_map import TokenMap
from transforms.tokenizer import Tokenizer

pytestmark = pytest.mark.registry

WORLD = "rwkv_world"
PAIRS = [
    ("qwen2_5", "llama2"),  # byte-level, padded, onto byte fallback
    ("mistral_v1", "gpt2"),  # byte fallback onto byte-level
    (WORLD, "llama2"),  # slow-only as source
    ("neox", WORLD),  # and as target
]


@pytest.fixture(scope="module")
def load():
    @functools.cache
    def loaded(name: str) -> Tokenizer:
        if reason := real_tokenizers.missing().get(name):
            if os.environ.get("CI"):
                pytest.fail(f"{name}: {reason}")
            pytest.skip(f"{name}: {reason}")
        return tokenizer.load(str(real_tokenizers.available()[name]))

    return loaded


@pytest.fixture(scope="module")
def first(load):
    @functools.cache
    def built(source: str, target: str) -> TokenMap:
        return counterparts.build_first(load(source), load(target))

    return built


def check(made: TokenMap, source: Tokenizer, target: Tokenizer) -> None:
    for s, (t, way) in enumerate(zip(made.target_ids, made.how, strict=True)):
        same = source.token_bytes[s] == (target.token_bytes[t] if t >= 0 else b"")
        if way == token_map.BYTES:
            assert same
        elif way > token_map.ROLE:
            assert not same
            assert target.token_bytes[t]
            assert made.distances[s] > 0
        elif way == token_map.NONE:
            assert t == -1
    # both know all bytes, so every text has a counterpart
    text = [s for s, piece in enumerate(source.token_bytes) if piece]
    assert (made.target_ids[text] >= 0).all()
    assert made.target_ids[source.eos_id] == target.eos_id


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_every_text_token_has_a_counterpart(load, first, pair):
    check(first(*pair), *map(load, pair))


def test_the_nearest_of_a_real_vocabulary_is_found(load, first):
    source, target = load(WORLD), load("llama2")
    made = counterparts.build_mined(source, target)
    check(made, source, target)
    guessed = made.how == token_map.EDIT
    others = first(WORLD, "llama2").distances
    assert (made.distances[guessed] <= others[guessed]).all()


def test_a_padded_vocabulary_has_rows_without_a_token(load, first):
    made = first("qwen2_5", "llama2")
    padding = np.arange(load("qwen2_5").size, 151_936, dtype=np.int32)
    assert padding.size > 100
    assert (made.translate(padding) == -1).all()


def test_what_a_model_has_no_logit_for_is_never_chosen(load):
    source, target = load("neox"), load("gemma3")
    made = counterparts.build_first(source, target, target_width=262_144)
    assert made.target_ids.max() < 262_144 < target.size


def test_byte_tokens_meet_byte_tokens(load, first):
    source, target = load("mistral_v1"), load("gpt2")
    made = first("mistral_v1", "gpt2")
    for byte in range(128, 256):
        piece = bytes([byte])
        (s,) = [i for i, p in enumerate(source.token_bytes) if p == piece]
        assert target.token_bytes[made.target_ids[s]] == piece


@pytest.mark.parametrize("name", snippets.ALL)
def test_the_longest_match_spells_every_text(load, name):
    own = load(WORLD)
    text = snippets.ALL[name]
    encoding = own.encode(text)
    pieces = [own.token_bytes[i] for i in encoding.token_ids]
    assert b"".join(pieces) == text.encode()
    assert np.cumsum([len(p) for p in pieces]).tolist() == encoding.byte_ends.tolist()
    rest = text.encode()
    known = set(filter(None, own.token_bytes))
    longest = max(map(len, known))
    for piece in pieces:
        assert not any(
            rest[:n] in known
            for n in range(len(piece) + 1, longest + 1)
            if n <= len(rest)
        )
        rest = rest[len(piece) :]


def test_the_end_is_the_one_control_token(load):
    own = load(WORLD)
    assert (own.start_id, own.eos_id, own.bos_id) == (0, 0, None)
    assert own.encode_window("a", True).token_ids.tolist()[::2] == [0, 0]
    assert own.token_bytes[0] is None
