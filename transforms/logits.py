"""Reduces logits to what is kept of them, on the device that made them."""

import dataclasses

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int32, Int64
from torch import Tensor
from torch.nn import functional as F

_TILE = 64
"""Ids of which only the largest logit is looked at first."""
_LOWEST = -65504.0
"""The most negative float16."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kept:
    """What is kept of p positions; for its fields see `schemas.scores.Score`."""

    top_ids: Int32[np.ndarray, "p k"]
    top_logprobs: Float32[np.ndarray, "p k"]
    logsumexp: Float32[np.ndarray, " p"]
    gold_logprob: Float32[np.ndarray, " p"]
    finite: Bool[np.ndarray, " p"]


Reduced = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""The fields of `Kept`, on the device."""


def reduce_logits(
    logits: Float32[Tensor, "p v"], gold_ids: Int64[Tensor, " p"], n_ids: int, k: int
) -> Reduced:
    """Keeps the k likeliest ids, the log-sum-exp and the gold logprob of each position.

    log p(v) = z[p, v] - logsumexp(z[p, :]), over all logits. The kept logprobs are
    rounded to float16's 11 significant bits, after they have been ordered.

    Args:
      logits: overwritten.
      gold_ids: the tokens that do come next.
      n_ids: ids that may be kept: those below it.
      k: entries to keep; where it is more than `n_ids`, id -1 and logprob -inf follow.

    Returns:
      The fields of `Kept`.
    """
    k_found = min(k, n_ids)
    ids, kept = top_k(logits[:, :n_ids], k_found)
    gold = logits.gather(1, gold_ids[:, None])[:, 0]
    peak, lowest = logits.amax(1), logits.amin(1)
    total = logits.sub_(peak[:, None]).exp_().sum(1)
    logsumexp = peak + total.log()
    logprobs = (kept - logsumexp[:, None]).clamp(_LOWEST, 0).half().float()
    behind = (0, k - k_found)
    return (
        F.pad(ids.int(), behind, value=-1),
        F.pad(logprobs, behind, value=-torch.inf),
        logsumexp,
        (gold - logsumexp).clamp(max=0),
        peak.isfinite() & lowest.isfinite(),
    )


def to_arrays(parts: list[Reduced]) -> Kept:
    """Joins the positions of several parts and brings them to the host."""
    joined = [torch.cat(field).cpu().numpy() for field in zip(*parts, strict=True)]
    ids, logprobs, logsumexp, gold, finite = joined
    return Kept(
        top_ids=ids,
        top_logprobs=logprobs,
        logsumexp=logsumexp,
        gold_logprob=gold,
        finite=finite,
    )


def split(kept: Kept, ends: Int64[np.ndarray, " w"]) -> list[Kept]:
    """Cuts positions into those of each window; `ends` are its last ones' ends."""
    fields = [getattr(kept, field.name) for field in dataclasses.fields(Kept)]
    pieces = zip(*(np.split(field, ends[:-1]) for field in fields), strict=True)
    names = [field.name for field in dataclasses.fields(Kept)]
    return [Kept(**dict(zip(names, piece, strict=True))) for piece in pieces]


def top_k(
    logits: Float32[Tensor, "p v"], k: int
) -> tuple[Int64[Tensor, "p k"], Float32[Tensor, "p k"]]:
    """Finds the k largest logits of each position: ids, logits; ties by rising id.

    The vocabulary is cut into tiles. An entry among the first k lies in one of the
    first k tiles by largest logit, ties by place: each tile in front of its own holds
    an entry in front of it. So the whole is read once, for its tiles' maxima, and only
    k tiles are searched.

    Args:
      logits: finite; a position where they are not gets some ids or other.
      k: in [0, v].
    """
    v = logits.shape[1]
    edge = v - v % _TILE
    peaks = logits[:, :edge].view(len(logits), -1, _TILE).amax(2)
    if edge < v:
        peaks = torch.cat([peaks, logits[:, edge:].amax(1, keepdim=True)], 1)
    tiles = _first(peaks, min(k, peaks.shape[1])).sort(1).values
    within = torch.arange(_TILE, device=logits.device)
    ids = (tiles[:, :, None] * _TILE + within).flatten(1)  # rising in each row
    near = logits.gather(1, ids.clamp(max=v - 1)).masked_fill(ids >= v, -torch.inf)
    places = _first(near, k)
    return ids.gather(1, places), near.gather(1, places)


def _first(values: Float32[Tensor, "p n"], k: int) -> Int64[Tensor, "p k"]:
    """Returns the places of the k largest values; ties by rising place.

    torch.topk leaves the order of ties open. Here value and place make one integer, so
    that there are none.
    """
    bits = (values + 0.0).view(torch.int32).long()  # -0.0 becomes 0.0
    rank = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # integers in float order
    n = values.shape[1]
    places = torch.arange(n, device=values.device)
    return (rank * 2**32 + (n - places)).topk(k, 1).indices
