import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.functional import longest_match
from transforms.functional.longest_match import LongestMatch

BYTES: list[bytes | None] = [None, *(bytes([b]) for b in range(256))]
PIECES = [b"ab", b"abab", b"ba", b"abc", "中".encode(), "中".encode()[:2], b"aaaa"]


@given(st.text(st.sampled_from("abc中 ")))
def test_each_token_is_the_longest_that_fits(text):
    table = [*BYTES, *PIECES]
    rest = text.encode()
    for token_id in LongestMatch(table).encode(text.encode()):
        fits = [piece for piece in table if piece and rest.startswith(piece)]
        assert table[token_id] == max(fits, key=len)
        rest = rest.removeprefix(table[token_id])
    assert rest == b""


def test_a_vocabulary_is_read_line_by_line():
    lines = ["1 '\\n' 1", "2 ' a b' 4", "4 b'\\xe4\\xb8' 2", "5 '中' 3"]
    found = longest_match.read_vocabulary(lines)
    assert found == [None, b"\n", b" a b", None, b"\xe4\xb8", "中".encode()]


@pytest.mark.parametrize("line", ["1 'ab' 3", "x 'a' 1", "1 a 1", "", "1 5 5"])
def test_a_line_that_is_no_token_is_refused_by_number(line):
    with pytest.raises(ValueError, match="line 2 of the vocabulary"):
        longest_match.read_vocabulary(["1 'a' 1", line])


def test_a_vocabulary_that_cannot_spell_every_text_is_refused():
    with pytest.raises(ValueError, match="0x00 is none"):
        LongestMatch([b"a"])
