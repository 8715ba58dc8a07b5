import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from schemas.errors import AlignmentError
from tests import snippets, tiny_tokenizers
from transforms import tokenizer, tokenizer_backends

letters = st.characters(exclude_categories=["Cs"]) | st.sampled_from(
    " \n\t\x00▁aä中😀\u0301\u0323\u200d\u1100\u1161"
)
spellings = st.sampled_from(
    ["<s>", "</s>", "<unk>", "<0x0A>", "<|endoftext|>", " " * 40]
)
texts = st.lists(letters | spellings, max_size=60).map("".join)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {
        kind: tiny_tokenizers.save(build(), root / kind)
        for kind, build in tiny_tokenizers.KINDS.items()
    }


@pytest.fixture(scope="session", params=tiny_tokenizers.KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="session")
def tiny(folders, kind):
    return tokenizer.load(str(folders[kind]))


@pytest.fixture(scope="session")
def library(folders, kind):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folders[kind] / "tokenizer.json"))


def assert_tiled(encoding, text):
    ends = encoding.byte_ends
    assert len(ends) == len(encoding.token_ids)
    assert (np.diff(ends, prepend=0) >= 0).all()
    assert (ends[-1] if len(ends) else 0) == len(text.encode())


def spell(tiny, ids):
    return b"".join(tiny.token_bytes[index] or b"" for index in ids)


@given(text=texts)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_spans_tile_every_text(tiny, text):
    assert_tiled(tiny.encode(text), text)


# not their own bytes: what a normalizer composes, and what is spelled like a space
PLAIN = {k: v for k, v in snippets.ALL.items() if not {"\u2581", "\u0301"} & set(v)}


@pytest.mark.parametrize("name", PLAIN)
def test_spans_hold_the_bytes_of_their_tokens(tiny, name):
    raw = PLAIN[name].encode()
    encoding = tiny.encode(PLAIN[name])
    pieces = [tiny.token_bytes[index] for index in encoding.token_ids]
    if tiny.has_dummy_prefix and b"".join(pieces) != raw:
        pieces[0] = pieces[0].removeprefix(b" ")
    starts = [0, *encoding.byte_ends[:-1]]
    spans = zip(starts, encoding.byte_ends, strict=True)
    assert [raw[start:stop] for start, stop in spans] == pieces


@given(text=texts)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_becomes_a_control_token(tiny, text):
    roles = {tiny.bos_id, tiny.eos_id} - {None}
    assert roles.isdisjoint(tiny.encode(text).token_ids.tolist())
    assert roles.isdisjoint(tiny.encode_middle(text).tolist())


@pytest.mark.parametrize("byte", [0x0A, 0x20, 0xFF])
def test_text_that_spells_a_byte_piece_is_text(tiny, byte):
    text = f"x<0x{byte:02X}>y"
    assert spell(tiny, tiny.encode(text).token_ids).strip() == text.encode()


@pytest.mark.parametrize("name", snippets.ALL)
def test_ids_are_the_librarys_own(tiny, library, name):
    own = library.encode(snippets.ALL[name], add_special_tokens=False).ids
    assert tiny.encode(snippets.ALL[name]).token_ids.tolist() == own
    assert tiny.count(snippets.ALL[name]) == len(own)


@given(text=st.text(st.sampled_from("abc dä中\n"), max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_running_text_spells_itself_without_a_prefix(tiny, text):
    assert spell(tiny, tiny.encode_middle(text)) == text.encode()


def test_a_batch_equals_its_texts(tiny):
    batch = tiny.encode_batch(list(snippets.ALL.values()))
    for text, encoding in zip(snippets.ALL.values(), batch, strict=True):
        alone = tiny.encode(text)
        assert encoding.token_ids.tolist() == alone.token_ids.tolist()
        assert encoding.byte_ends.tolist() == alone.byte_ends.tolist()


def test_vocabularies_are_the_librarys_strings_and_decoded_tokens(tiny, library):
    assert tiny.vocabulary() == [library.id_to_token(i) for i in range(tiny.size)]
    decoded = [library.decode([i], skip_special_tokens=False) for i in range(tiny.size)]
    assert tiny.decode_each() == decoded


def test_the_mark_of_a_space_is_what_the_vocabulary_writes_for_it(tiny):
    strings = tiny.vocabulary()
    spaces = [strings[i] for i, piece in enumerate(tiny.token_bytes) if piece == b" "]
    assert tiny.space_mark() in spaces


def test_a_window_has_empty_spans_at_start_and_end(tiny):
    text = "the Häuser"
    inside = tiny.encode(text)
    last = tiny.encode_window(text, ends_document=True)
    assert last.token_ids.tolist() == [
        tiny.start_id,
        *inside.token_ids.tolist(),
        tiny.eos_id,
    ]
    assert last.byte_ends.tolist() == [0, *inside.byte_ends.tolist(), 11]
    middle = tiny.encode_window(text, ends_document=False)
    assert middle.token_ids.tolist() == last.token_ids.tolist()[:-1]
    for one, other in zip(
        tiny.encode_windows([text, ""], [True, True]),
        [last, tiny.encode_window("", ends_document=True)],
        strict=True,
    ):
        assert one.byte_ends.tolist() == other.byte_ends.tolist()
        assert one.token_ids.dtype == one.byte_ends.dtype == np.int32


def test_only_control_spans_make_control_tokens(tiny):
    mark = {0: "<|endoftext|>"}.get(tiny.eos_id, "</s>")
    text = f"{mark}the{mark} Haus{mark}"
    first, last = len(mark), len(text)
    encoding = tiny.encode_window(text, False, (0, first, last - first, last))
    assert_tiled(encoding, text)
    ids = encoding.token_ids.tolist()[1:]
    assert ids.count(tiny.eos_id) == 2
    assert ids[0] == ids[-1] == tiny.eos_id
    assert encoding.byte_ends.tolist()[1] == first
    assert encoding.byte_ends.tolist()[-2] == last - first


@pytest.mark.parametrize("kind", ["byte_level", "nfc", "unigram"], indirect=True)
def test_control_spans_tokenize_as_the_library_reads_control_tokens(tiny, library):
    mark = {0: "<|endoftext|>"}.get(tiny.eos_id, "</s>")
    text = f"the{mark}dogs jump{mark}{mark} over"
    own = library.encode(text, add_special_tokens=False).ids
    encoding = tiny.encode_window(text, False, (0, len(text)))
    assert encoding.token_ids.tolist()[1:] == own


def test_pickled_tokenizers_still_read_text_as_text(tiny):
    again = pickle.loads(pickle.dumps(tiny))
    text = "x<s></s><|endoftext|>"
    assert again.encode(text).token_ids.tolist() == (
        tiny.encode(text).token_ids.tolist()
    )
    assert again.fingerprint == tiny.fingerprint


def test_fingerprints_agree_between_processes(folders, tiny, kind):
    code = (
        "import sys; from transforms import tokenizer;"
        "print(tokenizer.load(sys.argv[1]).fingerprint, 'torch' in sys.modules,"
        "'transformers' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(folders[kind])],
        env={"PYTHONHASHSEED": "5", "PYTHONPATH": "."},
        capture_output=True,
        check=True,
        text=True,
    )
    assert run.stdout.split() == [tiny.fingerprint, "False", "False"]


def test_roles_count_in_the_fingerprint(folders, tmp_path):
    before = tokenizer.load(str(folders["unigram"]))
    (tmp_path / "tokenizer.json").write_bytes(
        (folders["unigram"] / "tokenizer.json").read_bytes()
    )
    (tmp_path / "config.json").write_text('{"bos_token_id": 0, "eos_token_id": [1]}')
    after = tokenizer.load(str(tmp_path))
    assert (after.bos_id, after.eos_id) == (0, 1)
    assert after.fingerprint != before.fingerprint


def test_padding_truncation_start_tokens_and_dropout_are_off(tmp_path):
    from tokenizers import processors

    built = tiny_tokenizers.byte_level()
    plain = tokenizer.load(str(tiny_tokenizers.save(built, tmp_path / "a")))
    built.enable_truncation(2)
    built.enable_padding(length=50)
    built.model.dropout = 0.5
    built.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    noisy = tokenizer.load(str(tiny_tokenizers.save(built, tmp_path / "b")))
    assert noisy.fingerprint == plain.fingerprint
    text = snippets.PROSE
    assert noisy.encode(text).token_ids.tolist() == (
        plain.encode(text).token_ids.tolist()
    )


def test_added_tokens_that_are_not_special_are_text(tmp_path):
    built = tiny_tokenizers.byte_level()
    built.add_tokens([AddedToken("<tool>", normalized=False), "    "])
    loaded = tokenizer.load(str(tiny_tokenizers.save(built, tmp_path)))
    encoding = loaded.encode("a<tool>    b")
    pieces = [loaded.token_bytes[index] for index in encoding.token_ids]
    assert pieces == [b"a", b"<tool>", b"    ", b"b"]
    assert encoding.byte_ends.tolist() == [1, 7, 11, 12]


def test_ids_without_a_token_have_no_bytes(tmp_path):
    folder = tiny_tokenizers.save(tiny_tokenizers.prefixed(), tmp_path)
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["model"]["vocab"]["Ω"] = 1000
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    loaded = tokenizer.load(str(folder))
    assert loaded.size == 1001
    assert loaded.token_bytes[1000] == "Ω".encode()
    assert loaded.token_bytes[999] is None
    assert loaded.token_bytes[loaded.bos_id] is None


def test_token_bytes_read_spaces_and_byte_pieces(folders):
    loaded = tokenizer.load(str(folders["prefixed"]))
    ids = loaded.encode("the\n😀").token_ids
    assert [loaded.token_bytes[index] for index in ids[:2]] == [b" the", b"\n"]
    assert loaded.encode("the\n😀").byte_ends.tolist() == [3, 4, 5, 6, 7, 8]


def test_a_prefix_that_is_a_token_of_its_own_has_an_empty_span(folders):
    loaded = tokenizer.load(str(folders["prefixed"]))
    encoding = loaded.encode("中")
    assert loaded.token_bytes[encoding.token_ids[0]] == b" "
    assert encoding.byte_ends.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("text", ["a b", "a\x00", " zz"])
def test_tokenizers_that_drop_text_are_refused_without_quoting_it(tmp_path, text):
    folder = tiny_tokenizers.save(tiny_tokenizers.lossy(), tmp_path / "lossy")
    with pytest.raises(AlignmentError, match=r"tokens of lossy .* dropped") as caught:
        tokenizer.load(str(folder)).encode(text)
    assert text not in str(caught.value)


def test_composed_characters_are_covered_by_their_token(folders):
    loaded = tokenizer.load(str(folders["nfc"]))
    encoding = loaded.encode("xe\u0301y")
    pieces = [loaded.token_bytes[index] for index in encoding.token_ids]
    lengths = np.cumsum([len(piece) for piece in pieces])
    ends = dict(zip(lengths.tolist(), encoding.byte_ends.tolist(), strict=True))
    assert b"".join(pieces) == "xéy".encode()
    assert ends[1] == 1  # x
    assert ends[3] == 4  # é: two bytes of the tokens, three of the text
    assert ends[4] == 5  # y


def test_a_one_letter_control_token_of_a_model_is_refused(tmp_path):
    built = tiny_tokenizers.unigram()
    spec = json.loads(built.to_str())
    spec["model"]["vocab"].append(["|", 0.0])
    from tokenizers import Tokenizer

    built = Tokenizer.from_str(json.dumps(spec))
    built.add_special_tokens(["|"])
    folder = tiny_tokenizers.save(built, tmp_path)
    with pytest.raises(ValueError, match=r"U\+007C"):
        tokenizer.load(str(folder))


def test_a_model_without_start_and_end_is_refused(folders, tmp_path):
    source = folders["unigram"] / "tokenizer.json"
    (tmp_path / "tokenizer.json").write_bytes(source.read_bytes())
    with pytest.raises(ValueError, match="BOS or an EOS"):
        tokenizer.load(str(tmp_path))


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/model", "none.gguf", "a/b/c"])
def test_paths_that_lead_nowhere_are_not_looked_up_on_the_hub(name):
    with pytest.raises(FileNotFoundError, match=name.replace(".", r"\.")):
        tokenizer.load(name)


def test_names_on_the_hub_come_from_its_cache(folders, tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options))
        return str(folders["unigram"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    loaded = tokenizer.load("org/model")
    assert loaded.name == "org/model"
    assert asked[0][0] == "org/model"
    assert not any("safetensors" in p for p in asked[0][1]["allow_patterns"])


def slow_folder(folder):
    from transformers import ByT5Tokenizer

    ByT5Tokenizer(extra_ids=0).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", snippets.ALL)
def test_python_tokenizers_give_exact_spans(tmp_path, name):
    loaded = tokenizer.load(str(slow_folder(tmp_path)))
    text = snippets.ALL[name] + "</s>"
    encoding = loaded.encode(text)
    assert encoding.byte_ends.tolist() == list(range(1, len(text.encode()) + 1))
    assert loaded.token_bytes[loaded.eos_id] is None
    assert loaded.eos_id not in encoding.token_ids
    chat = loaded.encode_window("a</s>", False, (1, 5))
    assert chat.token_ids.tolist()[-1] == loaded.eos_id


def world_folder(folder, **files):
    singles = [f"{b + 1} {bytes([b])!r} 1" for b in range(256)]
    lines = [*singles, "257 ' the' 4", "258 '中' 3", "260 '</s>' 4"]
    (folder / "rwkv_vocab_v1.txt").write_text("\n".join(lines) + "\n")
    for name, entries in files.items():
        (folder / f"{name}.json").write_text(json.dumps(entries))
    return str(folder)


@pytest.mark.parametrize("name", snippets.ALL)
def test_rwkvs_tokenizer_gives_exact_spans(tmp_path, name):
    loaded = tokenizer.load(world_folder(tmp_path))
    text = snippets.ALL[name] + " the</s>"
    encoding = loaded.encode(text)
    assert spell(loaded, encoding.token_ids) == text.encode()
    assert encoding.token_ids[-2:].tolist() == [257, 260]
    assert_tiled(encoding, text)
    assert loaded.count(text) == len(encoding.token_ids)
    assert loaded.encode_middle(text).tolist() == encoding.token_ids.tolist()
    assert loaded.size == 261
    assert loaded.token_bytes[259] is None
    assert loaded.vocabulary()[255:] == ["\\xfe", "\\xff", " the", "中", None, "</s>"]
    assert loaded.decode_each()[255:] == ["\ufffd", "\ufffd", " the", "中", "", "</s>"]


def test_the_end_of_rwkvs_tokenizer_is_id_0_whatever_it_is_called(tmp_path):
    alone = tokenizer.load(world_folder(tmp_path))
    assert (alone.eos_id, alone.bos_id, alone.start_id) == (0, None, 0)
    config = {"bos_token": "<s>", "eos_token": "<|endoftext|>"}
    named = tokenizer.load(world_folder(tmp_path, tokenizer_config=config))
    assert (named.eos_id, named.bos_id) == (0, 0)
    assert named.fingerprint != alone.fingerprint


def test_a_vocabulary_of_rwkv_that_is_cut_off_is_refused_by_name(tmp_path):
    folder = world_folder(tmp_path)
    file = tmp_path / "rwkv_vocab_v1.txt"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"rwkv_vocab_v1.txt: line 259 .* fetch"):
        tokenizer.load(folder)


class Words:
    """A greedy longest-match tokenizer with a dummy prefix, as Python code."""

    pieces = ("<s>", "<unk>", "▁", "▁a", "a", "b", "▁b", "\n", "ä", "中", "😀", "x")
    all_special_ids = (0, 1)
    all_special_tokens = ("<s>", "<unk>")
    unk_token_id = 1

    def __init__(self, prefix="▁"):
        self._prefix = prefix
        self._letters = [*self.pieces, *"A,\ty", "\n▁", "▁▁"]

    def get_vocab(self):
        return {piece: index for index, piece in enumerate(self._letters)}

    def tokenize(self, text, split_special_tokens):
        assert split_special_tokens
        text = self._prefix + text.replace(" ", "▁")
        tokens = []
        while text:
            fits = [p for p in self._letters if text.startswith(p) and p != "\n▁"]
            token = max(fits, key=len) if fits else text[0]
            tokens.append(token)
            text = text[len(token) :]
        return tokens

    def convert_tokens_to_ids(self, tokens):
        vocabulary = self.get_vocab()
        return [vocabulary.get(token, 1) for token in tokens]


def wrap(slow):
    backend = tokenizer_backends.SlowBackend(slow, b"words")
    roles = tokenizer.roles.Roles(bos_id=0, eos_id=None, pad_id=None, unk_id=1)
    return tokenizer._assemble("words", backend, roles)


def test_python_tokenizers_may_have_a_dummy_prefix():
    loaded = wrap(Words())
    assert loaded.has_dummy_prefix
    encoding = loaded.encode("a b😀")
    pieces = [loaded.token_bytes[index] for index in encoding.token_ids]
    assert pieces == [b" a", b" b", "😀".encode()]
    assert encoding.byte_ends.tolist() == [1, 3, 7]
    middle = loaded.encode_middle("a b")
    assert [loaded.token_bytes[index] for index in middle] == [b"a", b" b"]


def test_python_tokenizers_that_meet_the_unknown_are_refused():
    with pytest.raises(AlignmentError, match="words"):
        wrap(Words()).encode("a?")


def test_python_tokenizers_of_unknown_spelling_are_refused():
    slow = Words(prefix="b")
    with pytest.raises(ValueError, match="reading"):
        wrap(slow)
