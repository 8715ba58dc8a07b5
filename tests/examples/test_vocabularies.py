import hashlib
import subprocess
import sys

import pytest

from examples import vocabularies

TEXTS = [
    f"at::Tensor & op_{n}(const at::Tensor & self, int64_t dim_{n % 7}) {{\n"
    f"    return at::_ops::op_{n}::call(self, dim_{n % 7});\n}}\n"
    for n in range(200)
]
SPELLINGS = [*TEXTS[:3], "naïve → 日本 \t\x00 a  b\n\n", " leading", "", "\n", "▁"]


@pytest.fixture(scope="module")
def byte_bpe():
    return vocabularies.train_byte_bpe(TEXTS, 400)


@pytest.fixture(scope="module")
def unigram():
    return vocabularies.train_unigram(TEXTS, 400)


@pytest.mark.parametrize("text", SPELLINGS)
def test_byte_bpe_spells_every_text(byte_bpe, text):
    assert byte_bpe.decode(byte_bpe.encode(text).ids) == text


@pytest.mark.parametrize("text", [t for t in SPELLINGS if "▁" not in t])
def test_unigram_spells_every_text_behind_its_dummy_prefix(unigram, text):
    assert unigram.decode(unigram.encode(text).ids) == text


def test_unigram_falls_back_to_bytes(unigram):
    tokens = unigram.encode("日").tokens
    assert tokens[-3:] == ["<0xE6>", "<0x97>", "<0xA5>"]


def test_sizes_are_kept(byte_bpe, unigram):
    assert byte_bpe.get_vocab_size() == 400
    assert unigram.get_vocab_size() <= 400


def test_control_tokens_come_first(byte_bpe, unigram):
    assert byte_bpe.token_to_id(vocabularies.BORDER) == 0
    controls = (vocabularies.UNKNOWN, vocabularies.BEGIN, vocabularies.END)
    assert [unigram.token_to_id(token) for token in controls] == [0, 1, 2]


@pytest.mark.parametrize("kind", ["byte_bpe", "unigram"])
def test_another_process_trains_the_same_vocabulary(kind, request):
    trained = request.getfixturevalue(kind).to_str()
    code = (
        "from tests.examples.test_vocabularies import TEXTS\n"
        "from examples import vocabularies\n"
        f"print(vocabularies.train_{kind}(TEXTS, 400).to_str(), end='')\n"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, timeout=120
    )
    digests = [hashlib.sha256(t).digest() for t in (other.stdout, trained.encode())]
    assert digests[0] == digests[1]
