import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import FusionError
from tests import snippets
from transforms.functional import windows

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300) | st.text(
    st.sampled_from("ab \n\r\t\u0301\u200d😀🇩中"), max_size=300
)


def count_bytes(text: str) -> int:
    return len(text.encode())


def count_words(text: str) -> int:
    return len(text.split())


@given(texts, st.integers(6, 40), st.none() | st.integers(4, 50))
def test_windows_fit_every_tokenizer_and_are_the_document(text, most, most_bytes):
    cut = list(windows.cut_document(text, [count_words, count_bytes], most, most_bytes))
    assert "".join(cut) == text
    assert all(cut)
    for window in cut:
        assert count_bytes(window) <= most - windows.FRAME_TOKENS
        assert most_bytes is None or count_bytes(window) <= most_bytes


@given(texts)
def test_a_document_that_fits_is_one_window(text):
    cut = list(windows.cut_document(text, [count_bytes], count_bytes(text) + 3))
    assert cut == ([text] if text else [])


def test_windows_end_behind_a_line_end_near_their_end():
    text = "word word word\n" * 20
    cut = list(windows.cut_document(text, [len], 102))
    assert all(window.endswith("\n") for window in cut)
    assert min(len(window) for window in cut[:-1]) >= 70


def test_windows_end_before_white_space_where_no_line_end_is_near():
    text = "word " * 100
    cut = list(windows.cut_document(text, [len], 102))
    assert all(window.startswith(" word") for window in cut[1:])
    assert all(window.endswith("word") for window in cut[:-1])


@pytest.mark.parametrize(
    "unit", ["e\u0301", "👩\u200d👩\u200d👧", "👍🏽", "\r\n", "\u1100\u1161\u11a8"]
)
def test_characters_that_belong_together_stay_together(unit):
    cut = list(windows.cut_document("x" + unit * 30, [len], 22))
    assert all(window.startswith(unit) for window in cut[1:])
    assert len(cut) > 1


def test_a_combining_sequence_longer_than_a_window_is_cut():
    text = "a" + "\u0301" * 500
    assert "".join(windows.cut_document(text, [len], 22)) == text


def test_a_character_over_the_limit_names_its_place_and_the_cure():
    with pytest.raises(FusionError, match=r"byte 3 has 4 tokens.*max_tokens to 6"):
        list(windows.cut_document("aä😀", [count_bytes], 5))


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(FusionError, match="surrogate pair at character 2"):
        list(windows.cut_document("ab\ud800", [len], 10))


@pytest.mark.parametrize(("tokens", "most_bytes"), [(2, None), (10, 3)])
def test_limits_below_any_text_are_refused(tokens, most_bytes):
    with pytest.raises(ValueError, match="must be"):
        list(windows.cut_document("a", [len], tokens, most_bytes))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("one line", "x" * 400_000),
        ("white space", " " * 400_000),
        ("prose", snippets.PROSE * 2500),
        ("ever denser", "".join("ab " * n + "😀" * n for n in range(1, 400))),
    ],
)
def test_work_is_linear_in_the_document(name, text):
    seen = 0

    def count(piece: str) -> int:
        nonlocal seen
        seen += len(piece)
        return len(piece.encode())

    cut = list(windows.cut_document(text, [count], 2048))
    assert "".join(cut) == text
    assert seen < 3 * len(text), name


def test_windows_of_cheap_text_are_not_much_shorter_than_they_could_be():
    def count(piece: str) -> int:
        return len(piece) // 100  # as with long runs of spaces

    cut = list(windows.cut_document("x" * 1_000_000, [count], 102))
    assert len(cut) <= 160


def test_a_window_id_depends_on_text_document_and_place():
    ids = {
        windows.window_id("a", 0, "bc"),
        windows.window_id("ab", 0, "c"),
        windows.window_id("a", 1, "bc"),
        windows.window_id("b", 0, "bc"),
    }
    assert len(ids) == 4


def test_a_window_id_stays_what_it_was():
    # files of earlier runs hold these ids
    assert windows.window_id("doc", 7, "täxt") == "f589a0feef6c90a84ee9560719c2350e"
