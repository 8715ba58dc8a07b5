"""Real but tiny models, tokenizers and corpora, made in a moment for the tests.

The tokenizers are trained on the spot; the models have random weights from a fixed
seed, which is enough where only the plumbing and the arithmetic count.
"""

import functools
import json
import pydoc_data.topics
from pathlib import Path

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

SPECIAL = ["<unk>", "<s>", "</s>"]


@functools.cache
def texts() -> tuple[str, ...]:
    """Returns the articles of Python's manual, which every Python carries."""
    return tuple(sorted(pydoc_data.topics.topics.values()))


def byte_level(size: int = 300) -> Tokenizer:
    """Trains a byte-level BPE."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=letters,
        show_progress=False,
    )
    made.train_from_iterator(texts()[:12], trainer)
    return made


def unigram(size: int = 500) -> Tokenizer:
    """Trains a Unigram with byte fallback and a dummy prefix, as SentencePiece has."""
    trained = Tokenizer(models.Unigram())
    trained.normalizer = normalizers.Sequence([])
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size - 256,
        special_tokens=SPECIAL,
        unk_token="<unk>",
        show_progress=False,
    )
    trained.train_from_iterator(texts()[:12], trainer)
    pieces = json.loads(trained.to_str())["model"]["vocab"]
    fallback = [[f"<0x{byte:02X}>", 0.0] for byte in range(256)]
    vocabulary = [*pieces[: len(SPECIAL)], *fallback, *pieces[len(SPECIAL) :]]
    made = Tokenizer(
        models.Unigram([tuple(p) for p in vocabulary], unk_id=0, byte_fallback=True)
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]
    )
    made.add_special_tokens(SPECIAL)
    return made


def save(folder: Path, tokenizer: Tokenizer, model: PreTrainedModel) -> Path:
    """Writes a model folder as transformers does."""
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
    ).save_pretrained(folder)
    return folder


def llama(folder: Path, seed: int = 0) -> Path:
    """Makes a small Llama with a byte-level BPE."""
    torch.manual_seed(seed)
    tokenizer = byte_level()
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    )
    return save(folder, tokenizer, LlamaForCausalLM(config))


def neox(folder: Path, seed: int = 1) -> Path:
    """Makes a small GPT-NeoX with a Unigram tokenizer; its logits are padded."""
    torch.manual_seed(seed)
    tokenizer = unigram()
    config = GPTNeoXConfig(
        vocab_size=tokenizer.get_vocab_size() + 12,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    )
    return save(folder, tokenizer, GPTNeoXForCausalLM(config))


def corpus(folder: Path, documents: int = 30, start: int = 12) -> list[str]:
    """Writes a corpus of two files, with ids and domains; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = texts()[start : start + documents]
    paths = []
    for part in range(2):
        path = folder / f"part{part}.jsonl"
        lines = [
            json.dumps({"text": text[:1500], "name": f"t{i}", "kind": kind(i)})
            for i, text in enumerate(chosen)
            if i % 2 == part
        ]
        path.write_text("\n".join(lines) + "\n")
        paths.append(str(path))
    return paths


def kind(number: int) -> str:
    """Returns the domain of a document of `corpus`."""
    return ("even", "odd")[number % 4 // 2]
