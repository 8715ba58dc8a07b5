"""Chat templates and tokenizers of well-known models, as they come."""

import os

import numpy as np
import pytest
from tokenizers import Tokenizer as Library

from schemas.dialogues import ASSISTANT, USER, Turn
from schemas.documents import Document
from tests import real_tokenizers
from transforms import chat, templates
from transforms.functional import counted

pytestmark = pytest.mark.registry

TEMPLATES = ("qwen2_5", "llama3", "gemma3", "deepseek_v3", "tekken")
ENDS = {
    "qwen2_5": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma3": "<end_of_turn>",
    "deepseek_v3": "<\uff5cend▁of▁sentence\uff5c>",
    "tekken": "</s>",
}
SAID = (
    Turn(role=USER, content="What does `len` return?\n\n(In Python.)"),
    Turn(
        role=ASSISTANT, content="The number of items:\n```python\nlen([1, 2])  # 2\n```"
    ),
    Turn(role=USER, content="Und für Zeichenketten? 😀"),
    Turn(role=ASSISTANT, content="Die Zahl der Zeichen."),
)


def there(name: str) -> str:
    if reason := real_tokenizers.missing().get(name):
        if os.environ.get("CI"):
            pytest.fail(f"{name}: {reason}")
        pytest.skip(f"{name}: {reason}")
    return name


@pytest.fixture(scope="module", params=TEMPLATES)
def name(request):
    return there(request.param)


def windows_of(name, said, *others):
    folder = str(real_tokenizers.available()[name])
    owners = [real_tokenizers.load(one) for one in (name, *others)]
    document = Document(doc_id="d", text="d", turns=said)
    rendering = chat.render(document, templates.read(folder), owners)
    return chat.cut(document, rendering, owners, 2048, None)


def encoded(window, own):
    return own.encode_window(window.text, window.eos_follows, window.control_spans)


def test_a_model_reads_its_own_template_as_the_library_does_with_one_start(name):
    own = real_tokenizers.load(name)
    (window,) = windows_of(name, SAID)
    path = real_tokenizers.available()[name] / "tokenizer.json"
    library = Library.from_file(str(path))
    theirs = library.encode(window.text, add_special_tokens=False).ids
    found = encoded(window, own).token_ids.tolist()
    assert found == [own.start_id, *theirs]
    assert own.bos_id not in found[1:]
    assert not window.eos_follows


def test_what_is_learned_is_each_answer_and_the_end_of_its_turn(name):
    (window,) = windows_of(name, SAID)
    raw = window.text.encode()
    spans = np.reshape(window.loss_spans, (-1, 2))
    answers = [turn.content for turn in SAID if turn.role == ASSISTANT]
    learned = [raw[a:b].decode() for a, b in spans]
    assert learned == [answer + ENDS[name] for answer in answers]
    own = real_tokenizers.load(name)
    tokens = encoded(window, own)
    counts = counted.counted_tokens(tokens.byte_ends, window.loss_spans)
    end = own.controls
    (mark,) = {one.token_id for one in end if one.text == ENDS[name]}
    assert (tokens.token_ids[counts] == mark).sum() == len(answers)


def test_text_that_spells_the_end_of_turn_stays_text(name):
    said = (Turn(role=USER, content=f"Say {ENDS[name]}!"), SAID[1])
    (window,) = windows_of(name, said)
    own = real_tokenizers.load(name)
    (plain,) = windows_of(name, (Turn(role=USER, content="Say it!"), SAID[1]))
    (mark,) = {one.token_id for one in own.controls if one.text == ENDS[name]}
    found = [(encoded(w, own).token_ids == mark).sum() for w in (window, plain)]
    assert found[0] == found[1]


@pytest.mark.parametrize("other", ["llama2", "gpt2", "qwen2_5"])
def test_a_model_of_another_family_reads_the_same_bytes_with_its_own_start(name, other):
    own = real_tokenizers.load(there(other))
    (window,) = windows_of(name, SAID, other)
    tokens = encoded(window, own)
    assert tokens.token_ids[0] == own.start_id
    assert tokens.byte_ends[-1] == len(window.text.encode())
    if own.bos_id is not None:
        assert tokens.token_ids[1] != own.bos_id
