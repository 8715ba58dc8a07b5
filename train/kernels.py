"""`softmax` on a GPU: two reads and one write of a chunk of logits.

Logits may be of bfloat16, and stay in place; arithmetic is in float32 (float64 where
they are). The kept ids are first overwritten by minus infinity, which leaves the tail's
ids alone to be summed and, later, to be multiplied. Imported only where Triton is.

So far these kernels ran in Triton's interpreter alone (TRITON_INTERPRET=1), which the
tests use where there is no GPU.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl

from train.softmax import Measured
from train.tensors import Factors, Kept, Logits, Targets, TopIds

_BLOCK = 4096
"""Logits that a program holds at a time."""

_WARPS = 8


@triton.jit
@no_type_check
def _warped(x, scale: tl.constexpr, cap: tl.constexpr):
    z = x * scale
    if cap > 0:
        z = cap * (2 * tl.sigmoid(2 * z / cap) - 1)  # tanh
    return tl.where(x == float("-inf"), x, z)


@triton.jit
@no_type_check
def _sum_row(
    logits,
    stride,
    width,
    tops,
    sums,
    scale: tl.constexpr,
    cap: tl.constexpr,
    wide: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, block)
    # Finite, so that exp(-inf - top) is 0 before the first number is seen.
    top = tl.full((block,), -1e30, wide)
    total = tl.zeros((block,), wide)
    for start in range(0, width, block):
        at = start + lanes
        x = tl.load(logits + row * stride + at, mask=at < width, other=float("-inf"))
        z = _warped(x.to(wide), scale, cap)
        higher = tl.maximum(top, z)
        total = total * tl.exp(top - higher) + tl.exp(z - higher)
        top = higher
    best = tl.max(top, 0)
    tl.store(tops + row, best)
    tl.store(sums + row, tl.sum(total * tl.exp(top - best), 0))


@triton.jit
@no_type_check
def _spread_row(
    logits,
    stride,
    width,
    tops,
    factors,
    scale: tl.constexpr,
    cap: tl.constexpr,
    wide: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, block)
    top, factor = tl.load(tops + row), tl.load(factors + row)
    for start in range(0, width, block):
        at = start + lanes
        place = logits + row * stride + at
        x = tl.load(place, mask=at < width, other=float("-inf"))
        z = _warped(x.to(wide), scale, cap)
        gradient = factor * tl.exp(z - top) * scale
        if cap > 0:
            near = tl.where(z > -1e30, z, 0.0) / cap
            gradient = gradient * (1 - near * near)
        tl.store(place, gradient.to(x.dtype), mask=at < width)


def warped(logits: Any, scale: float, cap: float | None) -> Any:
    """Scales and caps a few logits: the twin of `_warped`, and of `softmax.warp`."""
    logits = logits * scale
    return logits if cap is None else cap * torch.tanh(logits / cap)


def slopes(warped: Any, scale: float, cap: float | None) -> Any:
    """Returns dz/dx of warped logits z."""
    return (
        scale
        * torch.ones_like(warped)
        * (1 if cap is None else 1 - (warped / cap) ** 2)
    )


def measure(
    logits: Logits,
    gold: Targets,
    ids: TopIds,
    kept: Kept,
    *,
    scale: float,
    cap: float | None,
) -> Measured:
    """Measures rows of a head's outputs; puts minus infinity at the kept ids."""
    wide = torch.promote_types(torch.float32, logits.dtype)
    at_gold = warped(logits.gather(1, gold[:, None]).squeeze(1).to(wide), scale, cap)
    at_kept = warped(logits.gather(1, ids).to(wide), scale, cap)  # (n, k)
    logits.scatter_(1, ids, -torch.inf)
    tops, sums = (at_gold.new_empty(len(logits)) for _ in range(2))
    _run(_sum_row, logits, tops, sums, scale, cap)
    best = torch.where(kept, at_kept, -torch.inf).amax(-1)
    top = torch.maximum(tops, best)
    mass = (at_kept - top[:, None]).exp() * kept
    rest = sums * (tops - top).exp()
    whole = rest + mass.sum(-1)
    return Measured(
        at_gold=at_gold,
        at_kept=at_kept,
        gold=(at_gold - top).exp(),
        kept=mass,
        rest=rest,
        whole=whole,
        norm=top + whole.log(),
        top=top,
    )


def spread(
    logits: Logits, found: Measured, factor: Factors, *, scale: float, cap: float | None
) -> None:
    """Overwrites what `measure` left by factor exp(z - top) dz/dx, 0 at kept ids."""
    _run(_spread_row, logits, found.top, factor.contiguous(), scale, cap)


def _run(
    kernel: Any, logits: Any, first: Any, second: Any, scale: float, cap: float | None
) -> None:
    if not len(logits):
        return
    exact = logits.dtype == torch.float64
    kernel[(len(logits),)](
        logits,
        logits.stride(0),
        logits.shape[1],
        first,
        second,
        scale,
        cap or 0.0,
        tl.float64 if exact else tl.float32,
        min(_BLOCK, triton.next_power_of_2(logits.shape[1])),
        num_warps=_WARPS,
    )
