"""Tiny causal language models of many architectures, with random weights."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests import tiny_tokenizers
from transforms import tokenizer
from transforms.tokenizer import Tokenizer

CONTEXT = 160
_SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": CONTEXT,
}
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "gpt_neox": ("gpt_neox", {}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "gemma3": ("gemma3_text", {"head_dim": 8, "sliding_window": 8}),
    "mpt": (
        "mpt",
        {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": CONTEXT},
    ),
    # heads that do more than multiply
    "gemma2": ("gemma2", {"head_dim": 8, "final_logit_softcapping": 3.0}),
    "cohere": ("cohere", {"logit_scale": 0.3}),
    "granite": ("granite", {"logits_scaling": 3.0}),
    # its head asks the body for the experts' routing
    "mixtral": ("mixtral", {"num_local_experts": 3}),
    # its head reaches past the base model, so it cannot be cut
    "opt": ("opt", {"ffn_dim": 24, "word_embed_proj_dim": 16}),
    "mistral": ("mistral", {"sliding_window": 8}),
    # attention sinks
    "gpt_oss": (
        "gpt_oss",
        {
            "head_dim": 8,
            "sliding_window": 8,
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    # rotary embeddings that change with the longest row
    "phi3": (
        "phi3",
        {
            "original_max_position_embeddings": 40,
            "rope_scaling": {
                "type": "longrope",
                "long_factor": [1.0, 2.0, 3.0, 4.0],
                "short_factor": [1.0, 1.0, 1.0, 1.0],
            },
        },
    ),
    # windows end at every fiftieth token
    "llama4": (
        "llama4_text",
        {
            "head_dim": 8,
            "attention_chunk_size": 50,
            "intermediate_size_mlp": 24,
            "num_local_experts": 2,
            "layer_types": ["chunked_attention", "full_attention"],
        },
    ),
    # a convolution that runs on from window to window
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    # its state runs on from window to window
    "mamba": ("mamba", {"state_size": 4}),
    "bert": ("bert", {}),  # looks ahead
}
CAUSAL = tuple(name for name in _CONFIGS if name != "bert")
MAIN = ("llama", "gpt_neox", "qwen2", "gemma3", "mpt")


def make(name: str, width: int) -> Any:
    """Makes a model of an architecture with `width` logits, the same every time."""
    kind, more = _CONFIGS[name]
    roles = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    config = AutoConfig.for_model(kind, **_SIZES, **more, **roles, vocab_size=width)
    generator = torch.Generator().manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for weight in model.parameters():
        if weight.ndim > 1:  # larger than usual: their logits should differ
            weight.data.normal_(0, 0.4, generator=generator)
    return model


@functools.cache
def tokenizer_of(kind: str = "unigram") -> Tokenizer:
    """Returns one of `tiny_tokenizers`; "byte_level" has no BOS."""
    with tempfile.TemporaryDirectory() as folder:
        made = tiny_tokenizers.KINDS[kind]()
        return tokenizer.load(str(tiny_tokenizers.save(made, Path(folder) / kind)))
