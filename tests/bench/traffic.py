"""What reducing logits costs on a GPU by arithmetic: an estimate, and no measurement.

    python -m tests.bench.traffic       the tables of docs/results.md

A forward pass takes its operations (`gpu_models.flop_of`) over the rate at which a GPU
multiplies; reducing logits takes the bytes that it moves, pass by pass over them, over
the rate of the GPU's memory, as nothing else of it counts beside that. Left out are
the starts of kernels, the search among tiles, and what caches save.

What lies between the products of a model's body (norms, rotations, activations, sums)
also takes the bytes that it moves, and is counted on a model without memory, operation
by operation as transformers runs them; torch may compile several of them into one.
"""

import dataclasses
from typing import Any

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from examples import comparison
from tests.bench import gpu_models
from tests.bench.gpu_models import SHAPES, Shape
from transforms import packed_attention
from transforms.packed_attention import How, Layout


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """What a GPU is taken to reach.

    Attributes:
      flops: operations a second in products of bfloat16.
      bytes_per_s: to and from its memory.
    """

    flops: float
    bytes_per_s: float


H200 = Gpu(flops=0.75 * 989e12, bytes_per_s=0.8 * 4.8e12)
"""Three quarters of the nominal products, four fifths of the nominal memory."""

PLAIN = {"tile maxima": 2, "logit - peak": 2 + 4, "exp, in place": 4 + 4, "sum": 4}
"""Bytes a logit of bfloat16, read and written, by the pass of plain torch."""

KERNELS = {"tile maxima, peak and sum in one": 2}
"""The same of Triton's kernels; what they then read of k tiles is a hundredth of it."""

WINDOW = 1024
"""Tokens of a window."""

_PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm}
_FREE = {torch.ops.aten.detach, torch.ops.aten._unsafe_view, torch.ops.aten.empty}


class Moved(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it so
    """Counts what operations read and write, products and views left out.

    Attributes:
      bytes: of all their tensors, once each.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if not func.is_view and func.overloadpacket not in _PRODUCTS | _FREE:
            tensors = tree_leaves((args, kwargs, made))
            if func.overloadpacket is torch.ops.aten.embedding:
                tensors = [made, made]  # of its table only the rows that it takes
            self.bytes += sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))
        return made


def bytes_between(shape: Shape) -> float:
    """Counts what a token moves between the products of a model's body."""
    first, both = (_moved(shape, layers) for layers in (1, 2))
    return first + (both - first) * (shape.layers - 1)


def _moved(shape: Shape, layers: int) -> float:
    def skip(query: Any, key: Any, value: Any, layout: Layout, how: How) -> Any:
        return query.transpose(1, 2)  # attention is counted as products

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            config = gpu_models.config_of(shape, layers)
            body = transformers.AutoModel.from_config(config).eval()
            ids = torch.zeros(1, WINDOW, dtype=torch.int64)
            layout = Layout([WINDOW], skip)
            with (
                torch.no_grad(),  # inference_mode() shows no parts of operations
                packed_attention.lying([body.config], layout),
                Moved() as moved,
            ):
                body(input_ids=ids, position_ids=ids, use_cache=False)
    finally:
        torch.set_default_dtype(before)
    return moved.bytes / WINDOW


def seconds(
    shape: Shape, passes: dict[str, int], gpu: Gpu = H200
) -> tuple[float, float]:
    """Returns what a token's forward pass takes, and reducing its logits."""
    forward = flop_per_token(shape) / gpu.flops
    return forward, shape.vocabulary * sum(passes.values()) / gpu.bytes_per_s


def flop_per_token(shape: Shape) -> float:
    """Returns what a token of a window costs on average."""
    return gpu_models.flop_of(shape, [WINDOW]) / WINDOW


def table() -> str:
    """Writes the estimate of each shape as a table."""
    heads = ("shape", "GFLOP a token", "forward, us", "plain torch", "kernels")
    lines = []
    for name, shape in SHAPES.items():
        forward, plain = seconds(shape, PLAIN)
        _, kernels = seconds(shape, KERNELS)
        lines.append(
            [
                name,
                f"{flop_per_token(shape) / 1e9:.2f}",
                f"{forward * 1e6:.2f}",
                f"{plain / forward:.1%}",
                f"{kernels / forward:.1%}",
            ]
        )
    return comparison.table(heads, lines)


def rates() -> str:
    """Writes what a forward pass takes with what lies between its products."""
    heads = ("shape", "MB a token", "between, us", "products, us", "tokens/s")
    lines = []
    for name, shape in SHAPES.items():
        moved = bytes_between(shape)
        products = flop_per_token(shape) / H200.flops
        between = moved / H200.bytes_per_s
        lines.append(
            [
                name,
                f"{moved / 1e6:.1f}",
                f"{between * 1e6:.2f}",
                f"{products * 1e6:.2f}",
                f"{1 / (products + between):,.0f}",
            ]
        )
    return comparison.table(heads, lines)


if __name__ == "__main__":
    print(table(), rates(), sep="\n\n")
