"""What reducing logits costs on a GPU by arithmetic: an estimate, and no measurement.

    python -m tests.bench.traffic       the table of docs/results.md

A forward pass takes its operations (`gpu_models.flop_of`) over the rate at which a GPU
multiplies; reducing logits takes the bytes that it moves, pass by pass over them, over
the rate of the GPU's memory, as nothing else of it counts beside that. Left out are
the starts of kernels, the search among tiles, and what caches save.
"""

import dataclasses

from examples import comparison
from tests.bench import gpu_models
from tests.bench.gpu_models import SHAPES, Shape


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


if __name__ == "__main__":
    print(table())
