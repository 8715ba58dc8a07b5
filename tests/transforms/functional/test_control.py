import pytest

from transforms.functional import control
from transforms.functional.control import Found, Spelling

START = Spelling(text="<|im_start|>", token_id=1)
END = Spelling(text="<|im_end|>", token_id=2)


def test_a_spelling_outside_the_spans_is_text():
    text = "<|im_start|>ä<|im_start|>"
    found = control.find_control_tokens(text, (0, 12), [START, END])
    assert found == [Found(token_id=1, start=0, stop=12)]


def test_a_spelling_that_leaves_its_span_is_text():
    assert control.find_control_tokens("<|im_end|>", (0, 9), [END]) == []
    assert control.find_control_tokens("<|im_end|>", (0, 4, 4, 10), [END]) == []


def test_offsets_are_bytes():
    found = control.find_control_tokens("ä😀<|im_end|>", (2, 16), [END])
    assert found == [Found(token_id=2, start=6, stop=16)]


def test_the_longer_spelling_wins():
    short = Spelling(text="<|im", token_id=3)
    found = control.find_control_tokens("<|im_end|><|im", (0, 14), [short, END])
    assert [token.token_id for token in found] == [2, 3]


def test_tokens_swallow_white_space_where_they_say_so():
    greedy = Spelling(text="<x>", token_id=4, lstrip=True, rstrip=True)
    found = control.find_control_tokens("a \n<x>\n b", (0, 9), [greedy])
    assert found == [Found(token_id=4, start=1, stop=8)]


def test_a_tokenizer_without_control_tokens_finds_none():
    assert control.find_control_tokens("<s>", (0, 3), []) == []


@pytest.mark.parametrize("control_spans", [(0,), (2, 1), (0, 9), (1, 2)])
def test_spans_that_do_not_fit_the_text_are_refused(control_spans):
    with pytest.raises(ValueError, match="control_spans must"):
        control.find_control_tokens("äb", control_spans, [START])
