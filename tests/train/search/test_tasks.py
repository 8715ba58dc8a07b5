from typing import Any

import pytest
import torch
import transformers

from schemas.checked import UnusableError
from schemas.errors import SchemaError
from tests import twins
from tests.transforms import chat_templates
from train.sandbox import Call
from train.search import answers, tasks
from train.search.answers import Item
from train.search.tasks import Task
from transforms import chat, templates, tokenizer
from transforms.templates import Template
from transforms.tokenizer import Tokenizer

PROMPTS = ["def f(", "import os, ", "The value of a", "x = "]


@pytest.fixture(scope="module")
def llama(models: dict[str, str]) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(models["llama"])


def alone(model: Any, ids: list[int], count: int, stops: set[int]) -> list[int]:
    """Goes on one token at a time, without a cache or a batch."""
    made = list(ids)
    for _ in range(count):
        with torch.no_grad():
            made.append(int(model(torch.tensor([made])).logits[0, -1].argmax()))
        if made[-1] in stops:
            return made[len(ids) : -1]
    return made[len(ids) :]


def bytes_of(known: Tokenizer, ids: list[int]) -> bytes:
    return b"".join(known.token_bytes[n] or b"" for n in ids if n < known.size)


@pytest.mark.parametrize("kind", ["llama", "neox"])
def test_what_is_written_is_what_the_model_likes_best_to_the_end(
    kind: str, models: dict[str, str]
) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(models[kind])
    known = tokenizer.load(models[kind])
    assert known.eos_id is not None
    wanted = []
    for prompt in PROMPTS:
        ids = [known.start_id, *map(int, known.encode(prompt).token_ids)]
        made = alone(model, ids, 12, {known.eos_id})
        wanted.append(bytes_of(known, made).decode(errors="replace"))
    assert tasks.written(model, known, PROMPTS, 12) == wanted


def test_an_answer_is_right_or_wrong_by_itself(
    models: dict[str, str], llama: Any
) -> None:
    known = tokenizer.load(models["llama"])
    said = [answers.said(text) for text in tasks.written(llama, known, PROMPTS, 6)]
    items = tuple(
        Item(prompt=prompt, answer=answer if n != 1 else answer + "!")
        for n, (prompt, answer) in enumerate(zip(PROMPTS, said, strict=True))
    )
    asked = Task(items=items)
    assert tasks.marks(llama, known, asked, 6) == [True, False, True, True]
    assert tasks.accuracy(llama, known, asked, 6) == 0.75


def test_worked_answers_and_programs_are_judged_by_their_last_mark(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        tasks,
        "written",
        lambda *_, **__: [
            "3 * 2 = 6.\nAnswer: 6",
            "6",
            "Answer: def f(x): return x + x",
            "Answer: def f(x): return x",
        ],
    )
    number = Item(prompt="3 * 2?", answer="6")
    program = Item(prompt="f?", answer="-", calls=(Call("f", (4,)),), expected=(8,))
    asked = Task(items=(number, number, program, program), answer_after="Answer:")
    known = tokenizer.load(models["llama"])
    assert tasks.marks(None, known, asked, 9) == [True, False, True, False]


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("spoken")
    return twins.chatty(twins.make(folder / "m", "llama", 0, twins.byte_level()))


@pytest.mark.parametrize("prompt", ["Turn 3 feet.", "Say <|im_end|>\n now", "Käse?"])
def test_a_prompt_is_a_turn_of_the_user_as_the_library_has_it(
    prompt: str, spoken: str
) -> None:
    known, library = (
        tokenizer.load(spoken),
        transformers.AutoTokenizer.from_pretrained(spoken),
    )
    found = tasks.prompt_ids(known, prompt, templates.read(spoken))
    asked = library.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        tokenize=False,
    )
    assert found[0] == known.start_id
    assert b"".join(spellings(known, found[1:])) == asked.encode()
    marks = [n for n in found if n in control_ids(known)]
    assert len(marks) == 1 + 3  # BOS, and three of the template's, none of the user's


def control_ids(known: Tokenizer) -> dict[int, str]:
    return {one.token_id: one.text for one in known.controls}


def spellings(known: Tokenizer, ids: list[int]) -> list[bytes]:
    controls = control_ids(known)
    return [
        controls[n].encode() if n in controls else known.token_bytes[n] or b""
        for n in ids
    ]


def test_a_model_stops_at_the_end_of_its_turn_and_at_the_end_of_text(
    spoken: str,
) -> None:
    known, template = tokenizer.load(spoken), templates.read(spoken)
    end = chat.end_of_turn(template, known)
    assert end is not None
    assert end != known.eos_id
    for stop in (end, known.eos_id):
        model = transformers.AutoModelForCausalLM.from_pretrained(spoken)
        asked = tasks.prompt_ids(known, "Why?", template)
        free = alone(model, asked, 6, set())
        with torch.no_grad():  # what the model likes fourth becomes what ends it
            head = model.lm_head.weight
            head[[stop, free[3]]] = head[[free[3], stop]]
        made = alone(model, asked, 6, {stop})
        assert len(made) < 6
        told = tasks.written(model, known, ["Why?"], 6, template=template)
        assert told == [bytes_of(known, made).decode(errors="replace")]


def test_a_prompt_that_the_template_refuses_is_an_error(spoken: str) -> None:
    text = chat_templates.CHATML + "{{ raise_exception('no') }}"
    template = Template(text=text, tokens={})
    with pytest.raises(UnusableError, match="it refuses"):
        tasks.prompt_ids(tokenizer.load(spoken), "Why?", template)


def test_tokens_without_bytes_and_logits_without_tokens_are_not_spelled(
    models: dict[str, str],
) -> None:
    known = tokenizer.load(models["llama"])
    ids = [int(n) for n in known.encode("12 m").token_ids]
    assert tasks.spelled(known, [1, *ids, known.size + 3]) == "12 m"


def refuse(known: Tokenizer, most: int, longest: int | None, **more: Any) -> None:
    items = (Item(prompt="x = ", answer="12345", line=3, **more.pop("item", {})),)
    tasks.refuse_misfits("a.jsonl", Task(items=items, **more), known, longest, most)


def test_a_prompt_leaves_room_for_all_that_may_be_written(
    models: dict[str, str], spoken: str
) -> None:
    for folder in (models["llama"], models["neox"], spoken):
        known = tokenizer.load(folder)
        asked = len(tasks.prompt_ids(known, "x = "))
        refuse(known, 9, asked + 9)
        refuse(known, 9, None)
        with pytest.raises(SchemaError, match=r"a\.jsonl, line 3, must leave room"):
            refuse(known, 9, asked + 8)
    template = templates.read(spoken)
    with pytest.raises(SchemaError, match=rf"its prompt has \d+ of the {asked + 9} "):
        refuse(known, 9, asked + 9, template=template)


def test_a_right_answer_is_no_longer_than_what_may_be_written(
    models: dict[str, str],
) -> None:
    known = tokenizer.load(models["llama"])
    needed = len(known.encode_middle("12345"))
    refuse(known, needed, None)
    with pytest.raises(SchemaError, match=rf"line 3, .*but it has {needed}; set max"):
        refuse(known, needed - 1, None)


def test_the_work_of_an_answer_counts_where_it_is_known(
    models: dict[str, str],
) -> None:
    known = tokenizer.load(models["llama"])
    work = {"response": "1 2 3 4 5 6 7.\n= 12345"}
    needed = len(known.encode_middle(work["response"]))
    refuse(known, 1, None, answer_after="=")
    refuse(known, needed, None, answer_after="=", item=work)
    with pytest.raises(SchemaError, match=f"with its work, but it has {needed}"):
        refuse(known, needed - 1, None, answer_after="=", item=work)
    refuse(known, needed - 1, None, item=work)  # of which the first line is asked


def test_a_prompt_that_cannot_be_rendered_is_named(spoken: str) -> None:
    text = chat_templates.CHATML + "{{ raise_exception('no') }}"
    template = Template(text=text, tokens={})
    with pytest.raises(SchemaError, match=r"a\.jsonl, line 3, must .* it refuses: no"):
        refuse(tokenizer.load(spoken), 9, None, template=template)
