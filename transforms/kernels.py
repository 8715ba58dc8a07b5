"""`logits.reduce_logits` on a GPU: one read of a chunk of logits, and two kernels.

The first kernel goes over a row once, and leaves the largest logit of each tile and the
row's log-sum-exp. The second one looks for the k first tiles among these, and for the
k first entries in them, by k times taking the largest; that is exact, ties included.
Plain torch moves ten times as many bytes (`tests/bench/traffic.py` counts them).

Imported only where Triton is. So far these kernels ran in Triton's interpreter alone
(TRITON_INTERPRET=1), which the tests use where there is no GPU; `transforms.reduction`
tries them on every device before they are used.
"""

import contextlib
import math
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from schemas.shapes import Bool, Float, Float32, Int32, Int64

TILE = 64
"""Ids of which only the largest logit is looked at first."""

_TILES = 32
"""Tiles that a program reads at a time."""

_MOST = 128
"""Entries that the second kernel may be asked for: each costs it a turn."""

_LOG2E = math.log2(math.e)

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Chosen = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Ids, logprobs, log-sum-exp, logprob of the gold token, whether all is finite."""


@triton.jit
@no_type_check
def _measure_row(
    logits,
    stride,
    width,
    n_ids,
    peaks,
    n_tiles,
    norms,
    tile: tl.constexpr,
    tiles: tl.constexpr,
    per_nat: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    lanes, slots = tl.arange(0, tile)[None, :], tl.arange(0, tiles)
    # In powers of 2. Finite, so that 2^(-inf - top) is 0 before a number is seen.
    top = tl.full((tiles,), -3.4028234663852886e38, tl.float32)
    total = tl.zeros((tiles, tile), tl.float32)
    for start in range(0, width, tiles * tile):
        at = start + slots[:, None] * tile + lanes
        x = tl.load(logits + row * stride + at, mask=at < width, other=float("-inf"))
        z = x.to(tl.float32)
        peak = tl.max(z, 1)
        higher = tl.maximum(top, peak * per_nat)
        parts = tl.exp2(tl.fma(z, per_nat, -higher[:, None]))
        total = tl.fma(total, tl.exp2(top - higher)[:, None], parts)
        top = higher
        if start + tiles * tile > n_ids:
            peak = tl.max(tl.where(at < n_ids, z, float("-inf")), 1)
        number = start // tile + slots
        tl.store(peaks + row * n_tiles + number, peak, mask=number < n_tiles)
    best = tl.max(top, 0)
    whole = tl.sum(tl.sum(total, 1) * tl.exp2(top - best), 0)
    tl.store(norms + row, (best + tl.log2(whole)) / per_nat)


@triton.jit
@no_type_check
def _choose_row(
    logits,
    stride,
    n_ids,
    gold_ids,
    peaks,
    n_tiles,
    norms,
    ids,
    logprobs,
    golds,
    finite,
    k: tl.constexpr,
    wide: tl.constexpr,
    turns: tl.constexpr,
    slots: tl.constexpr,
    tile: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    norm = tl.load(norms + row)
    at_gold = tl.load(logits + row * stride + tl.load(gold_ids + row)).to(tl.float32)
    tl.store(golds + row, tl.minimum(at_gold - norm, 0.0))
    larger = tl.maximum(tl.abs(norm), tl.abs(at_gold), tl.PropagateNan.ALL)
    tl.store(finite + row, tl.where(larger < float("inf"), 1, 0))

    numbers, slot = tl.arange(0, wide), tl.arange(0, slots)
    left = tl.load(
        peaks + row * n_tiles + numbers, mask=numbers < n_tiles, other=float("-inf")
    )
    chosen = tl.full((slots,), n_tiles, tl.int32)  # behind all tiles: none
    for i in range(turns):
        best = tl.max(left, 0)
        first = tl.min(tl.where(left == best, numbers, n_tiles), 0)
        # At minus infinity nothing is left, and what was taken looks like the rest.
        kept = tl.where(best > float("-inf"), first, n_tiles)
        chosen = tl.where(slot == i, kept, chosen)
        left = tl.where(numbers == first, float("-inf"), left)

    places = chosen[:, None] * tile + tl.arange(0, tile)[None, :]
    near = tl.load(
        logits + row * stride + places, mask=places < n_ids, other=float("-inf")
    ).to(tl.float32)
    for i in range(k):
        # Over both axes at once: one after the other, Triton 3.1 ends in a fault.
        best = tl.max(near)
        first = tl.min(tl.where(near == best, places, 2147483647))
        found = best > float("-inf")
        near = tl.where(places == first, float("-inf"), near)
        logprob = tl.minimum(best - norm, 0.0)
        tl.store(ids + row * k + i, tl.where(found, first, -1))
        tl.store(logprobs + row * k + i, tl.where(found, logprob, float("-inf")))


def suits(dtype: torch.dtype, k: int) -> bool:
    """Says whether the kernels are made for logits of a type, and for so many kept."""
    return dtype in _DTYPES and 1 <= k <= _MOST


def reduce_logits(
    logits: Float[Tensor, "p v"], gold_ids: Int64[Tensor, " p"], n_ids: int, k: int
) -> tuple[
    Int32[Tensor, "p k"],
    Float32[Tensor, "p k"],
    Float32[Tensor, " p"],
    Float32[Tensor, " p"],
    Bool[Tensor, " p"],
]:
    """Does as `logits.reduce_logits`, but draws nothing and overwrites nothing.

    Args:
      logits: on CUDA, or anywhere in Triton's interpreter; see `suits`.
      gold_ids: the tokens that do come next.
      n_ids: ids that may be kept: those below it.
      k: entries to keep.
    """
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    p, v = logits.shape
    n_tiles = triton.cdiv(n_ids, TILE)
    new, whole = logits.new_empty, torch.int32
    ids, chosen = new((p, k), dtype=whole), new((p, k), dtype=torch.float32)
    norms, golds = (new(p, dtype=torch.float32) for _ in range(2))
    finite = new(p, dtype=torch.int8)
    peaks = new((p, n_tiles), dtype=torch.float32)
    if p:
        with _on(logits.device):
            row = (logits, logits.stride(0))
            _measure_row[(p,)](
                *row, v, n_ids, peaks, n_tiles, norms, TILE, _TILES, _LOG2E, num_warps=4
            )
            _choose_row[(p,)](
                *row,
                n_ids,
                gold_ids,
                peaks,
                n_tiles,
                norms,
                ids,
                chosen,
                golds,
                finite,
                k,
                triton.next_power_of_2(n_tiles),
                min(k, n_tiles),
                triton.next_power_of_2(min(k, n_tiles)),
                TILE,
                num_warps=4,
            )
    return ids, chosen, norms, golds, finite.view(torch.bool)


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Makes a GPU the current one: Triton starts kernels there, wherever data is."""
    if device.type == "cuda":
        return torch.cuda.device(device)
    return contextlib.nullcontext()
