"""How a model's logits are reduced to what is kept of them: by kernels or without.

Triton's kernels read logits once, and plain torch moves ten times as many bytes. They
are tried on a few positions first, on the very device and vocabulary, and used where
they find what plain torch finds.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from schemas.shapes import Float, Float64, Int64
from transforms import compilers, logits
from transforms.functional.nucleus import Nucleus
from transforms.logits import Reduced

logger = logging.getLogger(__name__)

KERNELS = "Triton's kernels"
"""Name of the reduction by them."""

_TRIAL = 48
"""Positions that the kernels are tried on."""

Reduce = Callable[[Tensor, Tensor, Tensor], Reduced]
"""Of logits (p, v), gold ids (p) and chances (p, r); see `logits.reduce_logits`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """A way to reduce logits.

    Attributes:
      name: what it is called in footers.
      reduce: what reduces a chunk, and may overwrite its logits.
      bytes_a_logit: what logits take while it works, a head's copy of them included.
    """

    name: str
    reduce: Reduce
    bytes_a_logit: int


def choose(
    device: torch.device,
    dtype: torch.dtype,
    width: int,
    *,
    n_ids: int,
    k: int,
    chosen: Nucleus | None = None,
    kernels: bool = True,
    compiled: bool = False,
) -> Reduction:
    """Chooses how logits are reduced.

    Args:
      device: where they are.
      dtype: their type; others may come, too, and are reduced by plain torch.
      width: logits of a position.
      n_ids: ids that may be kept: those below it.
      k: entries to keep.
      chosen: which of them to keep; None = all.
      kernels: whether Triton's kernels may be used, where they can.
      compiled: whether torch compiles what is done without them.
    """
    kept: dict[str, Any] = {"n_ids": n_ids, "k": k, "chosen": chosen}
    reduce = functools.partial(logits.reduce_logits, **kept)
    whole = torch.compile(logits.reduce_logits, dynamic=True) if compiled else None
    # A head may hold its logits twice, and they are widened to float32 once.
    plain = Reduction(
        name="compiled torch" if whole else "plain torch",
        reduce=functools.partial(whole, **kept) if whole else reduce,
        bytes_a_logit=8,
    )
    if not (kernels and compilers.has_triton(device)):
        return plain
    from transforms import kernels as written  # needs Triton

    if not written.suits(dtype, k):
        return plain
    fast = Reduction(
        name=KERNELS,
        reduce=functools.partial(_by_kernels, dtype, n_ids, k, chosen),
        bytes_a_logit=2 * dtype.itemsize,
    )
    try:
        agree = _agree(reduce, fast.reduce, _trial(device, dtype, width))
    except Exception as error:  # a compiler that lacks something has no class for it
        logger.warning(
            "Triton's kernels cannot run on %s (%s); plain torch is slower. They need a"
            " C compiler and its headers there (gcc, libc6-dev); --no-kernels leaves"
            " them out",
            device,
            str(error).strip().partition("\n")[0],
        )
        return plain
    if not agree:
        logger.warning("Triton's kernels err on %s; plain torch is slower", device)
    return fast if agree else plain


def _by_kernels(
    dtype: torch.dtype,
    n_ids: int,
    k: int,
    chosen: Nucleus | None,
    given: Float[Tensor, "p v"],
    gold_ids: Int64[Tensor, " p"],
    chances: Float64[Tensor, "p r"],
) -> Reduced:
    """Reduces by kernels what they were tried on, and all else by plain torch."""
    from transforms import kernels as written

    if chances.shape[1] or given.dtype != dtype:  # draws need the weights of all ids
        return logits.reduce_logits(given, gold_ids, chances, n_ids, k, chosen)
    drawn = gold_ids.new_empty(chances.shape, dtype=torch.int32)
    found = written.reduce_logits(given, gold_ids, n_ids, k)
    ids, logprobs, norms, golds, finite = found
    if chosen is not None:
        left_out = logits.outside(logprobs, chosen)
        ids = ids.masked_fill(left_out, -1)
        logprobs = logprobs.masked_fill(left_out, -torch.inf)
    return ids, logprobs, norms, golds, finite, drawn


def _trial(device: torch.device, dtype: torch.dtype, width: int) -> Tensor:
    """Makes logits with ties, masked ids, and rows of which nothing can be told."""
    make = torch.Generator(device=device).manual_seed(0)
    made = torch.randn(_TRIAL, width, generator=make, device=device).mul_(4)
    made[1, width // 2 :] = -torch.inf
    made[2, 1:] = -torch.inf
    made[3, width // 2] = torch.nan
    made[4, width // 2] = torch.inf
    made[5] = -torch.inf
    return made.to(dtype)


def _agree(plain: Reduce, fast: Reduce, given: Tensor) -> bool:
    """Says whether two ways keep the same ids, and numbers equal but for rounding.

    Where log-sum-exp is not finite, they need but say so.
    """
    gold = torch.arange(len(given), device=given.device) % given.shape[1]
    none = torch.empty(len(given), 0, dtype=torch.float64, device=given.device)
    found, wanted = fast(given, gold, none), plain(given.clone(), gold, none)
    known = wanted[2].isfinite()
    ours = [part[known] for part in found]
    ids, logprobs, norms, golds, *_ = (part[known] for part in wanted)
    return bool(
        torch.equal(found[4], wanted[4])
        and torch.equal(ours[0], ids)
        and torch.allclose(ours[1], logprobs, rtol=1e-5, atol=1e-4)
        and torch.allclose(ours[2], norms, rtol=1e-5, atol=1e-5)
        and torch.allclose(ours[3], golds, rtol=1e-5, atol=1e-4)
    )
