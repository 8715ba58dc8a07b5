import json
from pathlib import Path
from typing import Any

import pytest

from examples import skills, worked
from schemas.errors import SchemaError
from train.sandbox import Call
from train.search import answers
from train.search.answers import Item

DOUBLE: dict[str, Any] = {
    "prompt": "Write double(x).",
    "answer": "def double(x): return 2 * x",
    "calls": [{"function": "double", "arguments": [4]}],
    "expected": [8],
}


def written(path: Path, *lines: Any) -> str:
    path.write_text("\n\n".join(json.dumps(line) for line in lines))
    return str(path)


def plain(prompt: str = "1+1=", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "answer": "2", **more}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 3, must hold 'prompt' and 'answer'"),
        ("[]", "line 3, must"),
        ('{"prompt": "a"}', "line 3, .*'answer'"),
        ('{"prompt": "a", "answer": 1}', "they are no strings"),
        ('{"prompt": "", "answer": "1"}', "one is empty"),
        ('{"prompt": "a", "answer": " "}', "one is empty"),
        ('{"prompt": "a", "answer": "1\\n2"}', "the answer has several lines"),
        ("\xff", "line 3, must"),
        (json.dumps(plain("\ud800")), "surrogates not allowed"),
        (json.dumps(plain(response=1)), "'response' is no string"),
        (json.dumps(plain(calls={})), "is no list"),
        (json.dumps({**DOUBLE, "expected": []}), "has 1 calls, and expects 0"),
        (json.dumps({**DOUBLE, "calls": ["double(4)"]}), "a call has no 'function'"),
        (json.dumps({**DOUBLE, "expected": [float("nan")]}), "not JSON compliant"),
    ],
)
def test_a_line_that_is_no_item_is_named(line: str, told: str, tmp_path: Path) -> None:
    path = Path(written(tmp_path / "a", plain()))
    path.write_bytes(path.read_bytes() + b"\n\n" + line.encode("latin-1"))
    with pytest.raises(SchemaError, match=f"a, .*{told}"):
        answers.read(str(path), run_code=True)


def test_an_item_ends_with_its_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text('{"prompt": "1\u2028+1=", "answer": "2"}\r\n')
    assert answers.read(str(path)) == (Item(prompt="1\u2028+1=", answer="2"),)


def test_a_task_without_items_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="must hold an item at least"):
        answers.read(written(tmp_path / "a"))


def test_an_item_knows_its_line_and_how_it_is_worked(tmp_path: Path) -> None:
    path = written(tmp_path / "a", plain(), plain("2+0=", response="2 is 2.\n2"))
    first, second = answers.read(path)
    assert (first.line, second.line) == (1, 3)
    assert (first.response, second.response) == (None, "2 is 2.\n2")


def test_programs_are_read_only_where_they_may_run(tmp_path: Path) -> None:
    path = written(tmp_path / "a", plain(), DOUBLE)
    with pytest.raises(SchemaError, match=r"a, line 3, asks for .* pass --run_code"):
        answers.read(path)
    _, item = answers.read(path, run_code=True)
    assert item.calls == (Call("double", (4,)),)
    assert item.expected == (8,)


@pytest.mark.parametrize(
    ("text", "mark", "wanted"),
    [
        ("\n  12 m \nor so", None, "12 m"),
        ("", None, ""),
        ("Answer: 1\nAnswer: 2 \nso", "Answer:", "2"),
        ("Answer: 1\nno Answer: 2", "Answer:", "1"),
        ("12", "Answer:", ""),
        ("Answer:", "Answer:", ""),
        ("Answer: 1\nAnswer:", "Answer:", ""),
    ],
)
def test_an_answer_is_the_first_line_or_stands_behind_the_last_mark(
    text: str, mark: str | None, wanted: str
) -> None:
    assert answers.said(text, mark) == wanted


def test_a_program_is_right_by_what_it_returns_and_not_by_its_words(
    tmp_path: Path,
) -> None:
    (item,) = answers.read(written(tmp_path / "a", DOUBLE), run_code=True)
    assert answers.is_right(item, "Why?\n= def double(n): return n + n", "=")
    assert not answers.is_right(item, "= def double(n): return n * n", "=")
    assert not answers.is_right(item, "= 8", "=")
    assert not answers.is_right(item, "nothing", "=")


def test_items_of_skills_are_items_of_tasks_and_judged_alike(tmp_path: Path) -> None:
    skills.write(str(tmp_path), {"search": 2}, 0)
    for skill in skills.SINGLE:
        path = str(tmp_path / f"search.{skill}.jsonl")
        made, read = skills.read(path), answers.read(path, run_code=True)
        for one, item, other in zip(made, read, reversed(made), strict=True):
            assert (item.calls, item.expected) == (one.calls, one.expected)
            for response in (one.response, other.response, one.answer):
                told = answers.is_right(item, response, worked.MARK)
                assert told == skills.is_right(one, response)
            assert answers.is_right(item, one.response, worked.MARK)
