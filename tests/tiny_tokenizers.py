"""Small tokenizers of every kind, trained on the spot on the tests' snippets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from tests import snippets

BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
TEXTS = [snippets.PROSE, snippets.CODE, *snippets.LANGUAGES.values()]


def byte_level() -> Any:
    """Builds a GPT-2-like tokenizer: BOS and EOS are one token."""
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def nfc() -> Any:
    """Builds a byte-level tokenizer that composes characters, as Qwen's does."""
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def prefixed() -> Any:
    """Builds a Llama-2-like BPE: a `Prepend` normalizer and byte fallback."""
    alphabet = sorted({*snippets.PROSE, *snippets.LANGUAGES["de"], "▁"} - {" ", "\n"})
    pieces = ["<unk>", "<s>", "</s>", *BYTE_PIECES, *alphabet, "▁t", "▁th", "▁the"]
    tokenizer: Any = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=[("▁", "t"), ("▁t", "h"), ("▁th", "e")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return _with_special(tokenizer)


def unigram() -> Any:
    """Builds a Unigram model whose vocabulary holds control and byte pieces."""
    tokenizer: Any = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, show_progress=False, unk_token="<unk>", special_tokens=["<unk>"]
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    spec = json.loads(tokenizer.to_str())
    # as converted from SentencePiece: control and byte pieces score like the best
    extra = [[piece, 0.0] for piece in ("<s>", "</s>", *BYTE_PIECES)]
    spec["model"]["vocab"] += extra
    spec["model"]["byte_fallback"] = True
    return _with_special(Tokenizer.from_str(json.dumps(spec)))


def lossy() -> Any:
    """Builds a tokenizer that drops white space and control characters."""
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Replace("\x00", "")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(False)]
    )
    return tokenizer


KINDS: dict[str, Callable[[], Any]] = {
    "byte_level": byte_level,
    "nfc": nfc,
    "prefixed": prefixed,
    "unigram": unigram,
}


def save(tokenizer: Any, folder: Path) -> Path:
    """Writes a tokenizer's folder as models have it, with its roles."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    end = "</s>" if tokenizer.token_to_id("</s>") is not None else "<|endoftext|>"
    roles = {"eos_token": end}
    if end == "</s>":
        roles |= {"bos_token": "<s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))
    return folder


def _with_special(tokenizer: Any) -> Any:
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False) for text in ("<unk>", "<s>", "</s>")]
    )
    return tokenizer
