"""Models of known shapes, made on the device with random weights."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import transformers

from tests.bench import gpu


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model, and the rows that it is run on.

    Attributes:
      kind: architecture, as transformers calls it.
      tied: whether the output head is the embedding.
      rows: rows of a training step.
      tokens: tokens of a row or window.
    """

    kind: str
    vocabulary: int
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    tied: bool = False
    rows: int = 4
    tokens: int = 2048


SHAPES = {
    "Llama-2-7B": Shape(
        kind="llama", vocabulary=32_000, width=4096, inner=11_008, layers=32, heads=32,
        kv_heads=32,
    ),
    "Qwen2.5-7B": Shape(
        kind="qwen2", vocabulary=152_064, width=3584, inner=18_944, layers=28, heads=28,
        kv_heads=4, rows=2,
    ),
    "Llama-3.2-1B": Shape(
        kind="llama", vocabulary=128_256, width=2048, inner=8192, layers=16, heads=32,
        kv_heads=8, tied=True,
    ),
    "Qwen2.5-0.5B": Shape(
        kind="qwen2", vocabulary=151_936, width=896, inner=4864, layers=24, heads=14,
        kv_heads=2, tied=True,
    ),
}  # fmt: skip
TINY = Shape(
    kind="llama", vocabulary=512, width=32, inner=64, layers=2, heads=2, kv_heads=1,
    rows=2, tokens=64,
)  # fmt: skip


def config_of(shape: Shape, layers: int) -> Any:
    """Returns a configuration of a shape, with that many layers."""
    return transformers.AutoConfig.for_model(
        shape.kind,
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.tokens,
        tie_word_embeddings=shape.tied,
    )


def flop_of(shape: Shape, lengths: Sequence[int]) -> float:
    """Counts what a forward pass over windows computes: 2 (N + V d) T + 4 L d P.

    N = L (2 d^2 + 2 d e + 3 d i) are the weights of the layers' matrices, with width d,
    width e of keys and values, inner width i, L layers; a token of T costs two
    operations for each, and for each of the head's V d, tied or not. P, the sum of
    t (t + 1) / 2 over windows of t tokens, are the pairs of query and key, which cost
    2 d for the product and 2 d for the value. Norms, biases and rotations are left out.

    References:
      Kaplan et al. 2020, "Scaling laws for neural language models", table 1.
    """
    keys = shape.width // shape.heads * shape.kv_heads
    inner = shape.layers * shape.width * (2 * shape.width + 2 * keys + 3 * shape.inner)
    pairs = sum(length * (length + 1) // 2 for length in lengths)
    products = 2 * (inner + shape.vocabulary * shape.width) * sum(lengths)
    return products + 4 * shape.layers * shape.width * pairs


def build(shape: Shape) -> Any:
    """Makes a model of a shape; bfloat16 on a GPU, where its weights are drawn."""
    before = torch.get_default_dtype()
    on = gpu.device()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16 if on.type == "cuda" else torch.float32)
    try:
        with on:
            config = config_of(shape, shape.layers)
            return transformers.AutoModelForCausalLM.from_config(config)
    finally:
        torch.set_default_dtype(before)
