"""Tasks of a search: how they are asked, and what is refused before it starts."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines import cli
from schemas import files
from schemas.errors import SchemaError
from tests import searching as small
from tests.searching import Made
from tests.transforms import chat_templates
from train.search import tasks
from transforms.templates import Template

QUICK: dict[str, Any] = {
    "windows": None,
    "report": None,
    "baselines": [],
    "budget": 1,
    "max_new_tokens": 12,
}
CALLS = {"calls": [{"function": "f", "arguments": [3]}], "expected": [6]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    found = small.make(tmp_path_factory.mktemp("asking"))
    Path(found["base"], "chat_template.jinja").write_text(chat_templates.ZEPHYR)
    return found


def asked(
    folder: Path, program: bool = False, answer: str = "6", **more: Any
) -> dict[str, Any]:
    """Returns the tables of a task with two items a split."""
    folder.mkdir(exist_ok=True)
    told: dict[str, Any] = {}
    for split in ("search", "report"):
        lines = [
            {"prompt": f"{split} {n}?", "answer": answer, **(CALLS if program else {})}
            for n in range(2)
        ]
        told[split] = str(folder / f"{split}.jsonl")
        Path(told[split]).write_text("\n".join(map(json.dumps, lines)))
    return {"tasks": {"sums": {**told, "weight": 2.0, **more}}}


def test_worked_programs_are_searched_on_and_the_template_is_the_bases(
    made: Made, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Template | None] = []

    def write(
        _: Any, known: Any, prompts: list[str], most: int, *, template: Template | None
    ) -> list[str]:
        seen.append(template)
        said = {"0": "Twice.\n= def f(x): return 2 * x", "1": "= def f(x): return x"}
        return [said[prompt[-2]] for prompt in prompts]

    monkeypatch.setattr(tasks, "written", write)
    given = asked(tmp_path / "t", program=True, answer_after="=", chat_prompts=True)
    result = small.run(made, out, **QUICK, **given, run_code=True)
    best = result["arms"]["cma"]["best"]
    for split in ("search", "report"):
        assert best[split]["accuracy"] == {"sums": 0.5}
        assert best[split]["objective"] == -2 * 0.5
    assert {one.text for one in seen if one} == {chat_templates.ZEPHYR}
    assert None not in seen


def test_models_that_write_for_themselves_are_searched_on_worked_answers(
    made: Made, out: str, tmp_path: Path
) -> None:
    given = asked(tmp_path / "t", answer_after="e", chat_prompts=True)
    found = small.run(made, out, **QUICK, **given)["arms"]["cma"]["best"]
    assert found["search"]["accuracy"]["sums"] in (0.0, 0.5, 1.0)


def test_programs_of_models_run_only_where_it_is_allowed(
    made: Made, out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = asked(tmp_path / "t", program=True)
    path = small.recipe(made, out, **QUICK, **given)
    assert cli.main(["search", path]) == 1
    told = capsys.readouterr().err
    assert "search.jsonl, line 1, asks for a program" in told
    assert "--run_code" in told
    assert not Path(out, "s").exists()
    assert cli.main(["search", path, "--run_code"]) == 0


def test_a_task_that_is_asked_in_another_way_is_another_search(
    made: Made, out: str, tmp_path: Path
) -> None:
    template = tmp_path / "a.jinja"
    template.write_text(chat_templates.ZEPHYR)
    named = {**QUICK, "max_new_tokens": 2, "chat_template": str(template)}
    same = asked(tmp_path / "t", chat_prompts=True)
    small.run(made, out, **named, **same)
    before = Path(out, "s", "search.json").read_bytes()
    plain = {**QUICK, "max_new_tokens": 2}
    for given, change in (
        (plain, {"chat_prompts": False}),
        (named, {"chat_prompts": True, "answer_after": "="}),
        (named, {"chat_prompts": True, "answer": "7"}),
    ):
        with pytest.raises(SchemaError, match="was made with"):
            small.run(made, out, **given, **asked(tmp_path / "t", **change))
    same = asked(tmp_path / "t", chat_prompts=True)
    small.run(made, out, **named, **same, run_code=True)  # as nothing asks for it
    assert Path(out, "s", "search.json").read_bytes() == before
    template.write_text(chat_templates.CHATML)
    with pytest.raises(SchemaError, match="was made with input template = "):
        small.run(made, out, **named, **same)


def test_a_search_without_tasks_depends_on_no_setting_of_theirs(
    made: Made, out: str
) -> None:
    small.run(made, out, budget=1, baselines=[])
    identity = files.read_json(f"{out}/s/search.json")["identity"]
    settings = {"asked", "chat_template", "chat_date", "run_code", "input template"}
    assert not settings & identity.keys()


def test_what_does_not_fit_is_refused_before_anything_is_removed(
    made: Made, out: str, tmp_path: Path
) -> None:
    small.run(made, out, **{**QUICK, "max_new_tokens": 2}, **asked(tmp_path / "t"))
    before = Path(out, "s", "search.json").read_bytes()
    long = asked(tmp_path / "u", answer="6 and so much more")
    for change, told in (
        ({**long, "max_new_tokens": 2}, r"search\.jsonl, line 1, must have a right"),
        ({**long, "max_new_tokens": 505}, r"line 1, must leave .* of the 512 that"),
    ):
        with pytest.raises(SchemaError, match=told):
            small.run(made, out, **{**QUICK, **change}, overwrite=True)
    assert Path(out, "s", "search.json").read_bytes() == before


def test_a_model_without_a_template_has_no_chat_prompts(
    made: Made, out: str, tmp_path: Path
) -> None:
    given = asked(tmp_path / "t", chat_prompts=True)
    bare = {**made, "base": made["m1"]}
    with pytest.raises(ValueError, match=r"it has none; name .* by --chat_template"):
        small.run(bare, out, **QUICK, **given)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"answer_after": " "}, "answer_after must be what a line begins with"),
        ({"answer_after": "a\nb"}, "answer_after must be what a line begins with"),
        ({"answer_after": 3}, r"sums\]\.answer_after must be "),
        ({"chat_prompts": "yes"}, r"sums\]\.chat_prompts must be "),
        ({"weight": "much"}, r"sums\]\.weight must be "),
        ({"search": ""}, r"sums\]: search must be a file of items"),
        ({"answer_behind": "="}, "got 'answer_behind'; did you mean answer_after"),
    ],
)
def test_a_table_of_a_task_that_says_no_sense_is_refused(
    change: dict[str, Any], told: str, made: Made, out: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=told):
        small.given(made, out, **QUICK, **asked(tmp_path / "t", **change))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"chat_template": "default"}, r"\[search\]\.chat_template must stand beside"),
        (
            {"chat_date": "2024-07-26"},
            r"\[search\]\.chat_date must stand beside",
        ),
        ({"chat_date": "today"}, "chat_date must be YYYY-MM-DD, got 'today'"),
    ],
)
def test_settings_of_a_template_that_nothing_uses_are_refused(
    change: dict[str, Any], told: str, made: Made, out: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=told):
        small.given(made, out, **QUICK, **asked(tmp_path / "t"), **change)
