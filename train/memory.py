"""How much memory a training takes on each GPU, computed, not measured.

    python -m train.memory

prints the tables of docs/running.md. With P parameters, of which one layer has P_l and
embedding and head V d each, in bytes, arithmetic in bfloat16:

    state       16 P: weight, gradient and Adam's two moments in float32
                + 2 P   the bfloat16 copies that autocast keeps while a step lasts
                + 4 P   the buckets that data parallel reduces gradients in
    FSDP over n 16 P / n + 4 P_l (two layers gathered in bfloat16)
                + 6 P_l (a layer's gradient in bfloat16, and in float32 on its way)
                + 4 V d (embedding and head gathered)
    adapters    2 P (QLoRA: 0.516 a weight of the layers, 2 others) + 16 P_a, where
                P_a = r (in + out), summed over the linear layers
    activations of t tokens, f the inner size, k the size of all keys of a token
                t L (20 d + 4 k + 8 f)     all kept: norms 16 d, attention 4 d + 4 k,
                                           MLP 8 f
                t (2 L d + 20 d + 4 k + 8 f)   checkpointing: layers' inputs, one layer
                t (20 d + 4 k + 8 f)           and those inputs offloaded
    loss        8 * 2^27 for a chunk of logits + 4 t d + 4 V d for the head's gradient

What is left out: the allocator's fragments, buffers of NCCL (one or two GB), CUDA's own
context (half a GB). Give a GPU a tenth more.
"""

import dataclasses
from typing import Literal

GIB = 1 << 30
TOKENS = 4 * 2048
"""Tokens of a micro-batch in the tables: four rows of 2,048."""

Way = Literal["one", "ddp", "fsdp", "lora", "qlora"]
Kept = Literal["all", "checkpointed", "offloaded"]

_CHUNK = 1 << 27
_NF4 = 0.516
"""Bytes of a weight in NF4 with its scales quantised again: 4.127 bits."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a decoder of Llama's kind.

    Attributes:
      name: what people call it.
      layers: how many.
      hidden: size of the residual stream.
      inner: size of the MLP's inner states.
      keys: size of all keys of one token, and of all values.
      vocabulary: rows of the embedding.
      tied: whether the head is the embedding.
    """

    name: str
    layers: int
    hidden: int
    inner: int
    keys: int
    vocabulary: int
    tied: bool = False

    @property
    def layer(self) -> int:
        """Weights of the linear layers of one decoder layer."""
        d = self.hidden
        return 2 * d * d + 2 * d * self.keys + 3 * d * self.inner

    @property
    def table(self) -> int:
        """Weights of the embedding; as many of an untied head."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All weights, but for the norms' few."""
        return self.layers * self.layer + self.table * (1 if self.tied else 2)

    def adapters(self, rank: int) -> int:
        """Weights of adapters on all linear layers but the head."""
        ends = 4 * self.hidden + 2 * (self.hidden + self.keys)
        return self.layers * rank * (ends + 3 * (self.hidden + self.inner))


SHAPES = (
    Shape(
        name="1B",
        layers=16,
        hidden=2048,
        inner=8192,
        keys=512,
        vocabulary=128_256,
        tied=True,
    ),
    Shape(
        name="3B",
        layers=28,
        hidden=3072,
        inner=8192,
        keys=1024,
        vocabulary=128_256,
        tied=True,
    ),
    Shape(
        name="7B", layers=32, hidden=4096, inner=11_008, keys=4096, vocabulary=32_000
    ),
    Shape(
        name="13B", layers=40, hidden=5120, inner=13_824, keys=5120, vocabulary=32_000
    ),
    Shape(
        name="70B", layers=80, hidden=8192, inner=28_672, keys=1024, vocabulary=32_000
    ),
)
"""Llama 3.2 1B and 3B, Llama 2 7B, 13B and 70B."""


def state(shape: Shape, way: Way, processes: int = 1, rank: int = 16) -> float:
    """Returns the bytes of weights, gradients and optimizer states on one GPU."""
    whole = float(shape.parameters)
    if way in ("one", "ddp"):
        return whole * (18 if way == "one" else 22)
    if way == "fsdp":
        tables = 2 * shape.table * (1 if shape.tied else 2)
        return 16 * whole / processes + 10 * shape.layer + tables
    trained = 16.0 * shape.adapters(rank)
    linear = shape.layers * shape.layer
    frozen = _NF4 * linear if way == "qlora" else 2 * linear
    return trained + frozen + 2 * (whole - linear)


def activations(shape: Shape, tokens: int, kept: Kept = "all") -> float:
    """Returns the bytes that one GPU's forward pass keeps, the loss's among them."""
    d = shape.hidden
    layer = tokens * (20 * d + 4 * shape.keys + 8 * shape.inner)
    inputs = 2.0 * tokens * shape.layers * d
    loss = 8 * _CHUNK + 4 * tokens * d + 4 * shape.table
    layers = {
        "all": float(layer * shape.layers),
        "checkpointed": inputs + layer,
        "offloaded": float(layer),
    }
    return loss + layers[kept]


def checkpoint(shape: Shape, rank: int | None = None) -> int:
    """Returns the bytes of a checkpoint: weights and both moments in float32."""
    return 12 * (shape.parameters if rank is None else shape.adapters(rank))


def _total(shape: Shape, way: Way, processes: int = 1) -> str:
    sum_ = state(shape, way, processes) + activations(shape, TOKENS, "checkpointed")
    return f"{sum_ / GIB:,.0f}"


def table() -> str:
    """Writes GiB on each GPU by model and way, and of a checkpoint."""
    head = (
        "| model | parameters | one GPU | DDP | FSDP, 8 | FSDP, 64 | LoRA | QLoRA |"
        " a checkpoint | of adapters |"
    )
    lines = [head, "| --- |" + " ---: |" * 9]
    for shape in SHAPES:
        cells = [
            shape.name,
            f"{shape.parameters / 1e9:.2f}e9",
            _total(shape, "one"),
            _total(shape, "ddp"),
            _total(shape, "fsdp", 8),
            _total(shape, "fsdp", 64),
            _total(shape, "lora"),
            _total(shape, "qlora"),
            f"{checkpoint(shape) / GIB:,.0f}",
            f"{checkpoint(shape, 16) / GIB:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def activation_table() -> str:
    """Writes GiB of activations by model and by what is kept of them."""
    lines = [
        "| model | all kept | checkpointed | checkpointed and offloaded |",
        "| --- |" + " ---: |" * 3,
    ]
    for shape in SHAPES:
        found = [
            activations(shape, TOKENS, "all"),
            activations(shape, TOKENS, "checkpointed"),
            activations(shape, TOKENS, "offloaded"),
        ]
        cells = [shape.name, *(f"{size / GIB:,.1f}" for size in found)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(), activation_table(), sep="\n\n")
