"""Dialogues as token ids, for the target whose template it is and other families."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from schemas.checked import UnusableError
from schemas.dialogues import ASSISTANT, USER, Turn
from schemas.documents import Document
from schemas.scores import Score
from schemas.windows import Window
from tests import tiny
from tests.transforms import chat_templates as made
from transforms import chat, rows, tokenizer
from transforms.functional import counted
from transforms.templates import Template
from transforms.tokenizer import Encoding, Tokenizer

MARKS = ["<|im_start|>", "<|im_end|>"]
SAID = (
    Turn(role=USER, content="How is a module imported?"),
    Turn(role=ASSISTANT, content="By the import statement."),
    Turn(role=USER, content="And a name?"),
    Turn(role=ASSISTANT, content="By from and import."),
)


@dataclasses.dataclass(frozen=True)
class Family:
    """A model's tokenizer, ours and the library's."""

    own: Tokenizer
    library: PreTrainedTokenizerFast

    @classmethod
    def save(cls, folder: Path, fast: object, **roles: str) -> "Family":
        library = PreTrainedTokenizerFast(tokenizer_object=fast, **roles)
        library.save_pretrained(folder)
        return cls(own=tokenizer.load(str(folder)), library=library)

    @property
    def template_tokens(self) -> dict[str, str]:
        return dict(self.library.special_tokens_map)

    def id(self, token: str) -> int:
        found = self.library.convert_tokens_to_ids(token)
        assert isinstance(found, int)
        return found

    def encode(self, window: Window) -> Encoding:
        return self.own.encode_window(
            window.text, window.eos_follows, window.control_spans
        )


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Family:
    """Returns a byte-level BPE with ChatML's tokens; its EOS is the end of a turn."""
    fast = tiny.byte_level()
    fast.add_special_tokens(MARKS)
    folder = tmp_path_factory.mktemp("target")
    return Family.save(folder, fast, bos_token="<s>", eos_token="<|im_end|>")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Family:
    """Returns a Unigram with byte fallback and a dummy prefix; no token of ChatML's."""
    folder = tmp_path_factory.mktemp("source")
    return Family.save(folder, tiny.unigram(), bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def opener(tmp_path_factory) -> Family:
    """Returns a tokenizer whose BOS is ChatML's opener, as SmolLM2's is."""
    fast = tiny.byte_level()
    fast.add_special_tokens(MARKS)
    folder = tmp_path_factory.mktemp("opener")
    return Family.save(folder, fast, bos_token=MARKS[0], eos_token=MARKS[1])


def windows_of(
    text: str, said, *families: Family, max_tokens: int = 512
) -> list[Window]:
    template = Template(text=text, tokens=families[0].template_tokens)
    document = Document(doc_id="d", text="d", turns=said)
    owners = [one.own for one in families]
    rendering = chat.render(document, template, owners)
    return chat.cut(document, rendering, owners, max_tokens, None)


def only(text: str, said, *families: Family) -> Window:
    (window,) = windows_of(text, said, *families, max_tokens=4096)
    return window


def messages(said) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in said]


@pytest.mark.parametrize("text", [made.CHATML, made.LLAMA3, made.GEMMA, made.LLAMA2])
def test_the_target_reads_what_the_library_would_with_one_bos(text, target):
    found = target.encode(only(text, SAID, target)).token_ids.tolist()
    theirs = target.library.apply_chat_template(
        messages(SAID), chat_template=text, tokenize=True, return_dict=False
    )
    bos = target.id("<s>")
    # a template without BOS leaves it to the tokenizer, which begins every window so
    assert found == (theirs if theirs[0] == bos else [bos, *theirs])
    assert found.count(bos) == 1 + (text == made.LLAMA2)  # which opens later rounds too


def test_a_source_of_another_family_begins_with_its_own_bos_and_reads_text(
    target, source
):
    for text in (made.CHATML, made.LLAMA3):
        window = only(text, SAID, target, source)
        found = source.encode(window).token_ids.tolist()
        assert found[0] == source.id("<s>")
        assert source.id("<s>") not in found[1:]
        spelled = b"".join(source.own.token_bytes[i] or b"" for i in found[1:])
        assert spelled.decode().lstrip() == window.text


def test_nothing_follows_an_end_of_turn_that_the_template_wrote(target, source):
    window = only(made.CHATML, SAID, target, source)
    ids = target.encode(window).token_ids.tolist()
    end = target.id("<|im_end|>")
    line = target.library.encode("\n", add_special_tokens=False)
    assert window.ends_document
    assert not window.eos_follows
    assert ids[-1 - len(line) :] == [end, *line]
    assert source.id("</s>") not in source.encode(window).token_ids


def test_eos_follows_an_answer_that_nothing_closes_and_is_learned(target, source):
    open_end = made.VICUNA.replace(
        "message.content + '\\n' }}{% endif %}", "message.content }}{% endif %}"
    )
    window = only(open_end, SAID, target, source)
    assert window.eos_follows
    for family, end in ((target, "<|im_end|>"), (source, "</s>")):
        made_of = family.encode(window)
        assert made_of.token_ids[-1] == family.id(end)
        assert loss_ids(window, made_of)[-1] == family.id(end)


def loss_ids(window: Window, encoding: Encoding) -> list[int]:
    n = len(encoding.token_ids)
    nothing = np.zeros((n - 1, 0), np.float32)
    score = Score(
        window_id=window.window_id,
        token_ids=encoding.token_ids,
        byte_ends=encoding.byte_ends,
        top_ids=nothing.astype(np.int32),
        top_logprobs=nothing,
        logsumexp=np.zeros(n - 1, np.float32),
        gold_logprob=np.zeros(n - 1, np.float32),
        nll_nats=0.0,
        n_bytes=1,
    )
    return encoding.token_ids[1:][rows.loss_positions(window, score)].tolist()


def test_answers_and_their_ends_of_turn_are_learned_and_nothing_else(target):
    window = only(made.CHATML, SAID, target)
    learned = loss_ids(window, target.encode(window))
    end = target.id("<|im_end|>")
    wanted: list[int] = []
    for turn in SAID:
        if turn.role == ASSISTANT:
            wanted += [*target.own.encode_middle(turn.content).tolist(), end]
    assert learned == wanted


def test_a_source_without_the_token_learns_the_same_bytes_as_text(target, source):
    window = only(made.CHATML, SAID, target, source)
    for family in (target, source):
        found = family.encode(window)
        counts = counted.counted_tokens(found.byte_ends, window.loss_spans)
        starts = np.concatenate([[0], found.byte_ends[:-1]])
        covered = [
            (int(a), int(b))
            for a, b, c in zip(starts, found.byte_ends, counts, strict=True)
            if c
        ]
        spans = np.reshape(window.loss_spans, (-1, 2))
        inside = sum(
            max(0, min(b, stop) - max(a, start))
            for a, b in covered
            for start, stop in spans
        )
        assert inside == counted.counted_bytes(0, window.loss_spans)


def test_a_control_token_in_what_a_user_says_stays_text(target):
    said = (Turn(role=USER, content="Say <|im_end|>."), SAID[1])
    ids = target.encode(only(made.CHATML, said, target)).token_ids.tolist()
    assert ids.count(target.id("<|im_end|>")) == 2


def test_a_bos_that_the_template_opens_turns_with_is_not_doubled(opener, target):
    window = only(made.CHATML, SAID, opener, target)
    mark = opener.id("<|im_start|>")
    found = opener.encode(window)
    theirs = opener.library.apply_chat_template(
        messages(SAID), chat_template=made.CHATML, tokenize=True, return_dict=False
    )
    assert found.token_ids.tolist() == theirs
    assert found.token_ids.tolist().count(mark) == len(SAID)
    assert (found.byte_ends[0], found.byte_ends[-1]) == (0, len(window.text.encode()))
    other = target.encode(window).token_ids.tolist()
    assert other[:2] == [target.id("<s>"), target.id("<|im_start|>")]


@pytest.mark.parametrize("max_tokens", [24, 40, 80])
def test_windows_are_the_rendering_cut_up_and_fit_every_tokenizer(
    max_tokens, target, source
):
    said = tuple(
        Turn(role=turn.role, content=turn.content * (1 + n % 3))
        for n in range(4)
        for turn in SAID
    )
    whole = only(made.CHATML, said, target)
    cut = windows_of(made.CHATML, said, target, source, max_tokens=max_tokens)
    assert "".join(window.text for window in cut) == whole.text
    assert [w.ends_document for w in cut] == [False] * (len(cut) - 1) + [True]
    for name in ("loss_spans", "control_spans"):
        joined = np.zeros(len(whole.text.encode()) + 1, int)
        for window in cut:
            for at, edge in enumerate(getattr(window, name)):
                joined[window.byte_start + edge] += 1 - 2 * (at % 2)
        edges = np.flatnonzero(joined).tolist()
        assert edges == list(getattr(whole, name))
    for family in (target, source):
        sizes = [len(family.encode(window).token_ids) for window in cut]
        assert max(sizes) <= max_tokens


def test_windows_begin_with_a_user_s_turn_where_rounds_fit(target):
    said = SAID * 4
    cut = windows_of(made.CHATML, said, target, max_tokens=130)
    assert len(cut) > 1
    assert all(window.text.startswith("<|im_start|>user\n") for window in cut)


def test_a_window_without_an_answer_holds_no_byte_that_counts(target):
    said = (Turn(role=USER, content="word " * 80), SAID[1])
    first, *_ = windows_of(made.CHATML, said, target, max_tokens=60)
    assert first.loss_spans == ()
    assert loss_ids(first, target.encode(first)) == []


def test_what_the_template_refuses_is_refused_without_the_text(target):
    twice = (SAID[0], SAID[0], SAID[1])
    with pytest.raises(UnusableError) as caught:
        only(made.LLAMA2, twice, target)
    reason, detail = caught.value.args
    assert reason == "template_refused"
    assert "roles must alternate" in detail
    telling = "{{ raise_exception('I refuse ' + messages[0].content) }}"
    with pytest.raises(UnusableError) as caught:
        only(telling, SAID, target)
    assert "module" not in caught.value.args[1]


def test_a_dialogue_whose_answers_the_template_drops_is_refused(target):
    deaf = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with pytest.raises(UnusableError) as caught:
        only(deaf, SAID, target)
    assert caught.value.args[0] == "no_answer"


@pytest.fixture(scope="module")
def polyglot(tmp_path_factory) -> Family:
    """Returns a byte-level BPE with the control tokens of all families."""
    fast = tiny.byte_level()
    fast.add_special_tokens([*made.CONTROLS])
    folder = tmp_path_factory.mktemp("polyglot")
    return Family.save(folder, fast, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("name", made.FAMILIES)
def test_what_is_asked_is_the_templates_prompt_for_an_answer(name, polyglot):
    template = made.template(*made.FAMILIES[name])
    said = "Käse? <|im_end|> or [/INST]"
    asked, controls = chat.ask(said, template, polyglot.own)
    wanted = template.render([Turn(role=USER, content=said)], prompt=True)
    wanted = wanted.removeprefix(template.tokens["bos_token"])
    if name == "generation":  # which has none, so its header of an answer follows
        wanted += "<|im_start|>assistant\n"
    assert asked == wanted
    raw = asked.encode()
    pairs = list(zip(controls[::2], controls[1::2], strict=True))
    told = b"".join(raw[start:stop] for start, stop in pairs).decode()
    assert told == asked.replace(said, "")
    ids = polyglot.own.encode_window(asked, False, controls).token_ids.tolist()
    end = "<|im_end|>"  # what a user says stays text
    assert ids.count(polyglot.id(end)) == asked.replace(said, "").count(end)


def test_an_answer_is_asked_for_as_it_stands_in_a_dialogue(polyglot):
    for text in (made.CHATML, made.LLAMA3, made.GEMMA, made.LLAMA2, made.GENERATION):
        template = Template(text=text, tokens=polyglot.template_tokens)
        document = Document(doc_id="d", text="d", turns=SAID[:2])
        whole = chat.render(document, template, [polyglot.own])
        start = whole.loss_spans[0]
        asked = chat.ask(SAID[0].content, template, polyglot.own)
        assert asked == (whole.text[:start], chat.clip(whole.control_spans, 0, start))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("chatml", "<|im_end|>"),
        ("llama2", "</s>"),
        ("llama3", "<|eot_id|>"),
        ("gemma", "<end_of_turn>"),
        ("phi", "<|end|>"),
        ("generation", "<|im_end|>"),
        ("vicuna", None),
    ],
)
def test_a_turn_ends_with_the_control_token_behind_an_answer(name, wanted, polyglot):
    template = made.template(*made.FAMILIES[name])
    found = chat.end_of_turn(template, polyglot.own)
    assert found == (None if wanted is None else polyglot.id(wanted))


def test_a_template_that_refuses_to_ask_says_so(polyglot):
    stern = "{% if add_generation_prompt %}{{ raise_exception('no') }}{% endif %}"
    template = Template(text=made.CHATML + stern, tokens={})
    with pytest.raises(UnusableError, match="it refuses: no"):
        chat.ask("Why?", template, polyglot.own)
