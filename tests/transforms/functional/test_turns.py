import dataclasses
import itertools
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.dialogues import ASSISTANT, SYSTEM, TOOL, USER, Turn
from tests.transforms import chat_templates as made
from transforms.functional import turns

WORDS = (
    *("Hi", "you", "Äh", "😀", "a" * 30, "\n", " ", "  ", "\t", "<|im_end|>", "</s>"),
    *(
        "<|user|>",
        "\U000f0000",
        "\U000f0003",
        "<end_of_turn>",
        "USER: ",
        '"',
        "{{ x }}",
    ),
)


def plain(head: str, told: str, end: str, tail: str):
    """Returns a turn's parts: text, whether the template's, whether learned."""
    return [
        (head, True, False),
        (told, False, None),
        (end, True, None),
        (tail, True, 0),
    ]


def chatml(turn: Turn, first: bool):
    return plain(f"<|im_start|>{turn.role}\n", turn.content, "<|im_end|>", "\n")


def llama3(turn: Turn, first: bool):
    head = f"<|start_header_id|>{turn.role}<|end_header_id|>\n\n"
    return plain(head, turn.content.strip(), "<|eot_id|>", "")


def gemma(turn: Turn, first: bool):
    role = "model" if turn.role == ASSISTANT else turn.role
    head = f"<start_of_turn>{role}\n"
    return plain(head, turn.content.strip(), "<end_of_turn>", "\n")


def zephyr(turn: Turn, first: bool):
    return plain(f"<|{turn.role}|>\n", turn.content, "</s>", "\n")


def phi(turn: Turn, first: bool):
    return plain(f"<|{turn.role}|>\n", turn.content, "<|end|>", "\n")


ORACLES = {
    "chatml": (made.CHATML, "chatml", chatml, ""),
    "llama3": (made.LLAMA3, "llama3", llama3, ""),
    "gemma": (made.GEMMA, "gemma", gemma, ""),
    "zephyr": (made.ZEPHYR, "llama2", zephyr, ""),
    "phi": (made.PHI, "phi", phi, "<|endoftext|>"),
}


def locate(text: str, family: str, dialogue, **more):
    template = made.template(text, family, **more)
    return turns.locate(
        dialogue,
        template.render,
        looked_for=template.looked_for(),
        controls=made.CONTROLS,
        bos=template.tokens["bos_token"],
    )


def parts(found: turns.Rendering, spans) -> list[str]:
    raw = found.text.encode()
    return [raw[a:b].decode() for a, b in zip(spans[::2], spans[1::2], strict=True)]


def marked(spans, size: int) -> list[bool]:
    marks = [False] * size
    for a, b in zip(spans[::2], spans[1::2], strict=True):
        marks[a:b] = [True] * (b - a)
    return marks


contents = (
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=6)
    .map("".join)
    .filter(str.strip)
)


@st.composite
def dialogues(draw):
    rounds = draw(st.integers(1, 4))
    said = draw(st.lists(contents, min_size=2 * rounds, max_size=2 * rounds))
    # the same words again and again: to search for them would find the wrong ones
    said = [draw(st.sampled_from(said)) for _ in said]
    roles = itertools.cycle((USER, ASSISTANT))
    return tuple(Turn(role=r, content=c) for r, c in zip(roles, said, strict=False))


@pytest.mark.parametrize("name", ORACLES)
@given(dialogue=dialogues())
def test_spans_are_those_of_a_template_written_out_in_python(name, dialogue):
    text, family, oracle, ending = ORACLES[name]
    found = locate(text, family, dialogue)
    raw, control, loss, borders = b"", [], [], []
    for place, turn in enumerate(dialogue):
        if place and turn.role == USER:
            borders.append(len(raw))
        for piece, is_control, is_loss in oracle(turn, place == 0):
            size = len(piece.encode())
            learned = turn.role == ASSISTANT if is_loss is None else bool(is_loss)
            raw += piece.encode()
            control += [is_control] * size
            loss += [learned] * size
    raw += ending.encode()
    control += [True] * len(ending)
    loss += [False] * len(ending)
    assert found.text == raw.decode()
    assert marked(found.loss_spans, len(raw)) == loss
    # white space of a turn that a template trims and writes itself may pass for either
    ink = [not chr(byte).isspace() for byte in raw]
    ours = marked(found.control_spans, len(raw))
    assert list(itertools.compress(ours, ink)) == list(itertools.compress(control, ink))
    assert list(found.borders) == borders


FAMILIES = {
    "llama2": (made.LLAMA2, "llama2", ["[INST] <<SYS>>\n", "\n<</SYS>>\n\n"]),
    "mistral": (made.MISTRAL, "llama2", ["[INST] ", "\n\n", "[/INST] "]),
    "deepseek": (made.DEEPSEEK, "deepseek", None),
    "vicuna": (made.VICUNA, "llama2", ["\n\nUSER: ", "\nASSISTANT: "]),
    "default system": (made.DEFAULT_SYSTEM, "chatml", ["<|im_start|>system\n"]),
}
LEARNED = {
    "llama2": [" Hi <|im_end|> you </s>", " Hi </s>"],
    "mistral": [" Hi <|im_end|> you</s>", " Hi</s>"],
    "deepseek": [
        f"Hi <|im_end|> you<{made.BAR}end▁of▁sentence{made.BAR}>",
        f"Hi<{made.BAR}end▁of▁sentence{made.BAR}>",
    ],
    "vicuna": [" Hi <|im_end|> you\n", " Hi\n"],
    "default system": ["Hi <|im_end|> you<|im_end|>", "Hi<|im_end|>"],
}


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_and_what_the_template_wrote_are_found_in_every_family(name):
    text, family, control = FAMILIES[name]
    found = locate(text, family, made.TURNS)
    assert parts(found, found.loss_spans) == LEARNED[name]
    if control:
        assert parts(found, found.control_spans)[: len(control)] == control
    assert len(found.borders) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_that_is_not_learned_is_rendered_and_counts_nowhere(name):
    text, family, _ = FAMILIES[name]
    whole = locate(text, family, made.TURNS)
    for place, left in ((2, 1), (4, 0)):
        said = list(made.TURNS)
        said[place] = dataclasses.replace(said[place], is_learned=False)
        found = locate(text, family, said)
        assert parts(found, found.loss_spans) == [LEARNED[name][left]]
        assert dataclasses.replace(found, loss_spans=whole.loss_spans) == whole


def test_what_is_done_for_a_dialogue_grows_as_its_turns_do(monkeypatch):
    looked = Counter()

    class Counted(str):
        __slots__ = ()

        def index(self, *given):
            looked["index"] += 1
            return super().index(*given)

        def __iter__(self):
            looked["walks"] += 1
            return super().__iter__()

    disguise = turns.disguises.disguise

    def counted(*given):
        found = disguise(*given)
        return dataclasses.replace(found, codes=Counted(found.codes))

    monkeypatch.setattr(turns.disguises, "disguise", counted)
    for rounds in (10, 200):
        looked.clear()
        said = (
            Turn(role=USER, content="q"),
            Turn(role=ASSISTANT, content="a"),
        ) * rounds
        found = locate(made.CHATML, "chatml", said)
        assert len(found.loss_spans) == 2 * rounds
        assert sum(looked.values()) < 10


def test_a_character_that_could_stand_for_a_turn_may_be_a_turn_s_own():
    said = (
        Turn(role=USER, content="\U000f0000 \U000f0003"),
        Turn(role=ASSISTANT, content="\U000f0004!"),
    )
    found = locate(made.CHATML, "chatml", said)
    assert parts(found, found.loss_spans) == ["\U000f0004!<|im_end|>"]


def test_text_of_a_user_that_spells_a_control_token_is_in_no_control_span():
    for text, family, *_ in FAMILIES.values():
        found = locate(text, family, made.TURNS)
        raw = found.text.encode()
        spelled = [m.start() for m in re.finditer(rb"Hi <\|im_end\|> you", raw)]
        written = marked(found.control_spans, len(raw))
        assert len(spelled) == 2
        for start in spelled:
            assert not any(written[start : start + len("Hi <|im_end|> you")])


def test_every_other_turn_begins_at_a_weaker_border():
    said = (
        Turn(role=SYSTEM, content="s"),
        Turn(role=USER, content="q"),
        Turn(role=ASSISTANT, content="a"),
        Turn(role=TOOL, content="t"),
        Turn(role=ASSISTANT, content="b"),
        Turn(role=USER, content="r"),
        Turn(role=ASSISTANT, content="c"),
    )
    for text, family in ((made.CHATML, "chatml"), (made.PHI, "phi")):
        found = locate(text, family, said)
        head = "<|im_start|>" if family == "chatml" else "<|"
        raw = found.text.encode()
        roles = ["user", "assistant", "tool", "assistant", "assistant"]
        begun = [raw[at:].decode().removeprefix(head) for at in found.weaker]
        assert [b.startswith(r) for b, r in zip(begun, roles, strict=True)] == [
            True
        ] * 5
        (border,) = found.borders
        assert raw[border:].decode().startswith(f"{head}user")


def test_a_window_of_a_template_whose_next_role_is_the_end_begins_with_that_role():
    found = locate(made.GLM, "chatml", made.TURNS)
    (border,) = found.borders
    assert found.text.encode()[border:].decode().startswith("<|user|>\nÄh?")


def test_a_bos_in_front_is_left_out_and_later_ones_stay():
    found = locate(made.LLAMA2, "llama2", made.TURNS)
    assert found.text.startswith("[INST]")
    assert found.text.count("<s>") == 1
    raw = found.text.encode()
    assert raw[found.borders[0] :].startswith(b"<s>[INST]")


def test_a_system_turn_in_front_of_the_last_question_parts_rounds_as_that_would():
    last = made.MISTRAL.replace("loop.first", "loop.index0 == 2")
    found = locate(last, "llama2", made.TURNS)
    (border,) = found.borders
    assert found.text.encode()[border:].decode().startswith("[INST] Be  brief.")


def test_a_bos_that_opens_every_turn_stays_in_front():
    template = made.template(made.CHATML)
    found = turns.locate(
        made.TURNS, template.render, controls=made.CONTROLS, bos="<|im_start|>"
    )
    assert found.text.startswith("<|im_start|>system")


def test_a_prompt_that_the_template_always_writes_is_not_learned():
    always = made.LLAMA3.replace("if add_generation_prompt", "if true")
    found = locate(always, "llama3", made.TURNS)
    assert parts(found, found.loss_spans) == [
        "Hi <|im_end|> you<|eot_id|>",
        "Hi<|eot_id|>",
    ]
    assert found.text.endswith("assistant<|end_header_id|>\n\n")


def test_an_end_that_is_written_behind_the_dialogue_alone_is_learned_there():
    once = made.VICUNA + "{{- '' if add_generation_prompt else eos_token }}"
    found = locate(once, "llama2", made.TURNS)
    assert parts(found, found.loss_spans)[-1] == " Hi\n</s>"


def test_an_end_that_differs_behind_the_last_answer_is_learned_wherever_it_is():
    found = locate(made.GPT_OSS, "chatml", made.TURNS)
    assert parts(found, found.loss_spans) == [
        "<|message|>Hi <|im_end|> you<|end|>",
        "<|message|>Hi<|return|>",
    ]
    raw = found.text.encode()
    assert raw[found.borders[0] :].startswith("<|start|>user<|message|>Äh?".encode())


def test_an_answer_that_the_next_role_alone_ends_is_learned_up_to_that():
    found = locate(made.GLM, "chatml", made.TURNS)
    assert parts(found, found.loss_spans) == ["Hi <|im_end|> you<|user|>", "Hi"]


def test_what_a_template_puts_before_an_answer_is_learned_behind_its_prompt():
    found = locate(made.THINKING, "chatml", made.TURNS)
    assert parts(found, found.loss_spans)[-1] == "<think>\n\n</think>\n\nHi<|im_end|>"


def test_a_header_is_not_learned_where_the_template_has_no_prompt():
    silent = made.ZEPHYR.partition("{%- if add")[0]
    found = locate(silent, "llama2", made.TURNS)
    assert parts(found, found.loss_spans)[-1] == "Hi</s>"


def test_the_generation_keyword_says_what_is_learned_and_its_end_is_too():
    found = locate(made.GENERATION, "chatml", made.TURNS)
    assert parts(found, found.loss_spans) == ["Hi<|im_end|>"]
    assert "\U000f0000" not in found.text


def test_a_template_that_changes_case_is_seen_through():
    found = locate(made.SHOUTING, "chatml", made.TURNS)
    assert parts(found, found.loss_spans)[0] == "HI <|IM_END|> YOU<|im_end|>"


def test_a_template_that_escapes_is_seen_through_by_its_letters():
    said = (Turn(role=USER, content='say "x"'), Turn(role=ASSISTANT, content='a "b" c'))
    found = locate(made.JSONED, "chatml", said)
    assert parts(found, found.loss_spans) == ['"a \\"b\\" c"<|im_end|>']


def test_reasoning_that_the_template_drops_is_not_there_and_the_rest_is_learned():
    said = (
        Turn(role=USER, content="q"),
        Turn(role=ASSISTANT, content="<think>so so</think>yes"),
    )
    found = locate(made.DEEPSEEK, "deepseek", said)
    (learned,) = parts(found, found.loss_spans)
    assert learned.startswith("yes<")


def test_a_template_whose_doing_cannot_be_seen_is_told_of():
    mangled = "message.content | replace(message.content[:2], 'z')"
    said = (Turn(role=USER, content="x"), Turn(role=ASSISTANT, content="banana"))
    text = made.CHATML.replace("message.content", f"({mangled})")
    assert locate(text, "chatml", said) is None


def test_a_dialogue_whose_answers_are_dropped_has_no_loss_spans():
    deaf = made.CHATML.replace(
        "for message in messages", "for message in messages if message.role == 'user'"
    )
    found = locate(deaf, "chatml", made.TURNS)
    assert found.loss_spans == ()


def test_a_blank_system_turn_is_rendered_as_it_is():
    said = (Turn(role=SYSTEM, content=" "), *made.TURNS[1:])
    found = locate(made.CHATML, "chatml", said)
    assert found.text.startswith("<|im_start|>system\n <|im_end|>")
    assert parts(found, found.loss_spans) == LEARNED["default system"]


@pytest.mark.parametrize(
    "refused",
    [
        "messages | length > 2",  # one more turn
        "add_generation_prompt",
        "messages[-1].role == 'user'",
        "'Hi' not in messages[0].content",  # the full disguise
    ],
)
def test_a_dialogue_is_learned_though_the_template_refuses_what_is_only_tried(
    refused: str,
) -> None:
    said = (Turn(role=USER, content="Hi you"), Turn(role=ASSISTANT, content="Yes"))
    check = f"{{%- if {refused} %}}{{{{ raise_exception('no') }}}}{{% endif %}}"
    found = locate(check + made.CHATML, "chatml", said)
    assert parts(found, found.loss_spans)[-1].endswith("Yes<|im_end|>")
