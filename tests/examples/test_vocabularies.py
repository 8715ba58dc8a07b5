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
def digit_bpe():
    return vocabularies.train_digit_bpe(TEXTS, 400)


@pytest.fixture(scope="module")
def unigram():
    return vocabularies.train_unigram(TEXTS, 400)


@pytest.fixture(scope="module")
def piece_bpe():
    return vocabularies.train_piece_bpe(TEXTS, 400)


@pytest.mark.parametrize("text", SPELLINGS)
@pytest.mark.parametrize("kind", ["byte_bpe", "digit_bpe"])
def test_byte_level_spells_every_text(kind, text, request):
    trained = request.getfixturevalue(kind)
    assert trained.decode(trained.encode(text).ids) == text


@pytest.mark.parametrize("text", [t for t in SPELLINGS if "▁" not in t])
@pytest.mark.parametrize("kind", ["unigram", "piece_bpe"])
def test_sentencepiece_spells_every_text_behind_its_dummy_prefix(kind, text, request):
    trained = request.getfixturevalue(kind)
    assert trained.decode(trained.encode(text).ids) == text


@pytest.mark.parametrize("kind", ["unigram", "piece_bpe"])
def test_sentencepiece_falls_back_to_bytes(kind, request):
    tokens = request.getfixturevalue(kind).encode("日").tokens
    assert tokens[-3:] == ["<0xE6>", "<0x97>", "<0xA5>"]


@pytest.mark.parametrize(("kind", "most"), [("byte_bpe", 2), ("digit_bpe", 1)])
def test_digits_stay_apart_where_they_shall(kind, most, request):
    trained = request.getfixturevalue(kind)
    tokens = trained.encode("".join(TEXTS)).tokens
    assert max(sum(c.isdigit() for c in token) for token in tokens) >= most
    joined = any(sum(c.isdigit() for c in token) > 1 for token in tokens)
    assert joined == (most > 1)


@pytest.mark.parametrize(
    "train", [vocabularies.train_unigram, vocabularies.train_piece_bpe]
)
def test_characters_that_stay_apart_are_in_no_longer_piece(train):
    trained = train(TEXTS, 350, "_\n0123456789")
    pieces = [piece for piece in trained.get_vocab() if not piece.startswith("<")]
    assert {piece for piece in pieces if set(piece) & set("_\n0123456789")} == {
        *"_\n0123456789"
    }
    assert trained.decode(trained.encode(TEXTS[0]).ids) == TEXTS[0]


def test_merges_make_the_pieces_that_sentencepiece_makes(piece_bpe):
    own = vocabularies._train_sentencepiece(TEXTS, 400, "bpe", "")
    for text in [*TEXTS, *SPELLINGS[3:-1]]:
        assert piece_bpe.encode(text).ids == own.encode(text)


def test_sizes_are_kept(byte_bpe, digit_bpe, unigram, piece_bpe):
    for trained in (byte_bpe, piece_bpe):
        assert trained.get_vocab_size() == 400
    for trained in (digit_bpe, unigram):  # these texts hold too little for more
        assert 256 < trained.get_vocab_size() <= 400


def test_control_tokens_come_first(byte_bpe, digit_bpe, unigram, piece_bpe):
    for trained in (byte_bpe, digit_bpe):
        assert trained.token_to_id(vocabularies.BORDER) == 0
    controls = (vocabularies.UNKNOWN, vocabularies.BEGIN, vocabularies.END)
    for trained in (unigram, piece_bpe):
        assert [trained.token_to_id(token) for token in controls] == [0, 1, 2]


@pytest.mark.parametrize("kind", ["byte_bpe", "digit_bpe", "unigram", "piece_bpe"])
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
