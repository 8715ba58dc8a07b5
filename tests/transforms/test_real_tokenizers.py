import os
import pydoc_data.topics

import numpy as np
import pytest
from tokenizers import Tokenizer as Library

from tests import real_tokenizers, reference, snippets
from transforms.functional import windows

pytestmark = pytest.mark.registry

MANUAL = "\n".join(pydoc_data.topics.topics.values())
ALL = "".join(snippets.ALL.values())
TEXTS = {**snippets.ALL, "all": ALL, "manual": MANUAL[:50000]}
# what a normalizer changes, or what is spelled like the space: bytes not the text's
REWRITTEN = {
    "neox": ("emoji", "all"),
    "qwen2_5": ("emoji", "all"),
    "llama2": ("spaces", "all"),
    "mistral_v1": ("spaces", "all"),
    "mistral_v3": ("spaces", "all"),
    "gemma3": ("spaces", "all"),
}


@pytest.fixture(scope="module", params=real_tokenizers.NAMES)
def name(request):
    if reason := real_tokenizers.missing().get(request.param):
        if os.environ.get("CI"):
            pytest.fail(f"{request.param}: {reason}")
        pytest.skip(f"{request.param}: {reason}")
    return request.param


@pytest.fixture(scope="module")
def real(name):
    return real_tokenizers.load(name)


@pytest.fixture(scope="module")
def library(name):
    path = real_tokenizers.available()[name]
    if path.suffix == ".gguf":
        from transformers import AutoTokenizer

        loaded = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        return loaded.backend_tokenizer
    return Library.from_file(str(path / "tokenizer.json"))


def spell(real, ids):
    return b"".join(real.token_bytes[index] or b"" for index in ids)


@pytest.mark.parametrize("kind", TEXTS)
def test_spans_tile_every_kind_of_text(real, kind):
    encoding = real.encode(TEXTS[kind])
    assert (np.diff(encoding.byte_ends, prepend=0) >= 0).all()
    assert encoding.byte_ends[-1] == len(TEXTS[kind].encode())


@pytest.mark.parametrize("kind", TEXTS)
def test_tokens_spell_the_text(real, name, kind):
    raw = TEXTS[kind].encode()
    spelled = spell(real, real.encode(TEXTS[kind]).token_ids)
    same = spelled in (raw, b" " + raw)
    assert same == (kind not in REWRITTEN.get(name, ()))


@pytest.mark.parametrize("kind", TEXTS)
def test_ids_are_the_librarys_own(real, library, kind):
    own = library.encode(TEXTS[kind], add_special_tokens=False).ids
    assert real.encode(TEXTS[kind]).token_ids.tolist() == own


def test_no_control_token_can_be_spelled(real, library):
    added = library.get_added_tokens_decoder()
    special = {index: token.content for index, token in added.items() if token.special}
    assert real.eos_id in special
    texts = [
        context.format(spelling)
        for spelling in [*special.values(), *(f"<0x{b:02X}>" for b in range(256))]
        for context in ("{}", "a{}b", " {0} {0}", "\n{0}{0}\n")
    ]
    for text, encoding in zip(texts, real.encode_batch(texts), strict=True):
        assert not special.keys() & set(encoding.token_ids.tolist())
        raw = text.encode()
        assert encoding.byte_ends[-1] == len(raw)
        if "▁" not in text:  # DeepSeek's spell their spaces so
            assert spell(real, encoding.token_ids) in (raw, b" " + raw)
    for ids in real.encode_middle_batch(texts):
        assert not special.keys() & set(ids)


def test_running_text_has_no_prefix(real):
    for text in ("the", " the", "中", "\n", "  x"):
        assert spell(real, real.encode_middle(text)) == text.encode()


def test_every_token_of_text_has_its_bytes(real, library):
    # a token alone, decoded, is what its bytes say, where they are UTF-8
    for index in range(0, real.size, 97):
        piece = real.token_bytes[index]
        if piece is None or not piece.isascii() or not piece.strip():
            continue
        decoded = library.decode([index], skip_special_tokens=False)
        assert decoded.strip() == piece.decode().strip()


def test_control_spans_read_as_the_library_reads_control_tokens(real, library):
    mark = library.id_to_token(real.eos_id)
    text = f"The dog{mark}jumps over{mark}\nit"
    own = library.encode(text, add_special_tokens=False).ids
    encoding = real.encode_window(text, False, (0, len(text.encode())))
    assert encoding.token_ids.tolist()[1:] == own
    assert encoding.byte_ends[-1] == len(text.encode())


def test_windows_of_real_text_fit(real):
    text = ALL + MANUAL[:20000] + "😀" * 300 + "x" * 3000
    cut = list(windows.cut_document(text, [real.count], 64))
    assert "".join(cut) == text
    for window in cut:
        assert len(real.encode_window(window, True).token_ids) <= 64


# the fixtures' names of tokenizers, and ours; the target's are under "pivot"
REFERENCE = {
    "llama2": "llama2",
    "smollm2": "smollm2",
    "qwen2_5": "qwen",
    "gemma3": "gemma3",
}


@pytest.mark.reference
def test_tokens_are_spelled_and_decoded_as_the_authors_library_does(name, real):
    if name not in REFERENCE:
        return
    vocabulary, decoded = real.vocabulary(), real.decode_each()
    for case in reference.cases("alignment"):
        for side in ("pivot", "source"):
            if case[side] == REFERENCE[name]:
                ids = case[f"{side}_ids"]
                assert [vocabulary[i] for i in ids] == case[f"{side}_tokens"]
                assert [decoded[i] for i in ids] == case[f"{side}_decoded"]
                assert real.space_mark() == case[f"{side}_marker"]
