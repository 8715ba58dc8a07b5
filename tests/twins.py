"""Tiny random twins of the papers' models, and their recipes cut down to these.

A twin is of its model's own architecture, with a tokenizer that is trained on the spot.
A recipe keeps all that says how is fused, trained and merged; what it is done with, and
how much of it, becomes small.
"""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

from tests import tiny
from tests.transforms import chat_templates

MARKS = ("<|im_start|>", "<|im_end|>")

_SHARED = {"bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2}
_LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    **_SHARED,
}
_KINDS: Mapping[str, tuple[Any, Mapping[str, Any]]] = {
    "llama": (transformers.LlamaConfig, _LLAMA),
    "mistral": (transformers.MistralConfig, _LLAMA),
    "mixtral": (transformers.MixtralConfig, {**_LLAMA, "num_local_experts": 2}),
    "qwen2": (transformers.Qwen2Config, _LLAMA),
    "mpt": (
        transformers.MptConfig,
        {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 512, **_SHARED},
    ),
}
_SMALL: Mapping[str, Mapping[str, Any]] = {
    "prepare": {
        "splits": "fusion=.75,heldout=.25",
        "protected": [],
        "max_tokens": 128,
        "group_windows": 8,
        "slice_bytes": 1 << 14,
    },
    "score": {"dtype": "float32", "batch_tokens": 512, "threads": 1},
    "fuse": {"seq_length": 256},
    "train": {
        "max_steps": 2,
        "batch_size": 2,
        "accumulation": 2,
        "dtype": "float32",
        "device": "cpu",
        "threads": 1,
    },
    "evaluate": {"dtype": "float32", "batch_tokens": 512, "threads": 1},
}


def make(folder: Path, kind: str, seed: int, tokenizer: tokenizers.Tokenizer) -> str:
    """Makes a twin: an architecture with random weights, and a tokenizer."""
    torch.manual_seed(seed)
    cls, given = _KINDS[kind]
    config = cls(**given, vocab_size=tokenizer.get_vocab_size())
    model = transformers.AutoModelForCausalLM.from_config(config)
    return str(tiny.save(folder, tokenizer, model))


def chatty(folder: str) -> str:
    """Gives a twin a chat template, ChatML."""
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    loaded.chat_template = chat_templates.CHATML
    loaded.save_pretrained(folder)
    return folder


def byte_level(size: int = 300) -> tokenizers.Tokenizer:
    """Trains a byte-level BPE that has ChatML's marks."""
    made = tiny.byte_level(size)
    made.add_special_tokens([*MARKS])
    return made


def cut_down(
    path: str, models: Mapping[str, str], inputs: list[str], **changes: Any
) -> str:
    """Returns a recipe of a paper for its twins.

    Args:
      path: the recipe.
      models: the twin of each model, by the id or folder that the recipe names.
      inputs: the corpus.
      **changes: settings by table, over those that make it small.
    """
    given = tomllib.loads(Path(path).read_text())
    given["corpus"]["inputs"] = inputs
    for table in (given["target"], *given["sources"].values()):
        table["model"] = models[table["model"]]
    for small in (_SMALL, changes):
        for name, settings in small.items():
            given[name] = {**given.get(name, {}), **settings}
    return dumped(given)


def dumped(recipe: Mapping[str, Any]) -> str:
    """Writes a recipe as TOML."""
    lines: list[str] = []
    for name, table in recipe.items():
        if not isinstance(table, Mapping):
            lines.insert(0, f"{name} = {_value(table)}")
        elif name in ("sources", "arms", "merges"):
            for key, settings in table.items():
                lines += _table(f"{name}.{json.dumps(key)}", settings)
        else:
            lines += _table(name, table)
    return "\n".join(lines) + "\n"


def _table(name: str, settings: Mapping[str, Any]) -> list[str]:
    return [f"[{name}]", *(f"{key} = {_value(v)}" for key, v in settings.items())]


def _value(value: Any) -> str:
    """Spells a value; what JSON writes of text, numbers and truth TOML reads."""
    if isinstance(value, Mapping):
        held = (f"{json.dumps(key)} = {_value(one)}" for key, one in value.items())
        return f"{{ {', '.join(held)} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value)
