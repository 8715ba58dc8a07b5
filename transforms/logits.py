"""Reduces logits to what is kept of them, on the device that made them."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from schemas.shapes import Bool, Float, Float32, Float64, Int32, Int64
from transforms import transfers
from transforms.functional.nucleus import Nucleus

_TILE = 64
"""Ids of which only the largest logit is looked at first."""
_EXTRA_BYTES = 600_000_000
"""What logits and all that is made of them may take at once."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kept:
    """What is kept of p positions; for its fields see `schemas.scores.Score`.

    In the order of `Reduced`.
    """

    top_ids: Int32[np.ndarray, "p k"]
    top_logprobs: Float32[np.ndarray, "p k"]
    logsumexp: Float32[np.ndarray, " p"] | None
    gold_logprob: Float32[np.ndarray, " p"]
    finite: Bool[np.ndarray, " p"]
    sampled_ids: Int32[np.ndarray, "p r"]


Reduced = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""The fields of `Kept`, on the device."""


def not_finite(kept: Kept) -> str:
    """Says where numbers are not finite, of which some must not be."""
    at = int(kept.finite.argmin())
    return (
        f"non-finite logits at position {at} of {len(kept.finite)}; if the model is"
        " sound in float32, score it with --dtype=float32"
    )


def reduce_logits(
    logits: Float[Tensor, "p v"],
    gold_ids: Int64[Tensor, " p"],
    chances: Float64[Tensor, "p r"],
    n_ids: int,
    k: int,
    chosen: Nucleus | None = None,
) -> Reduced:
    """Keeps the k likeliest ids, the log-sum-exp and the gold logprob of each position.

    log p(v) = z[p, v] - logsumexp(z[p, :]), over all logits, in float32. A logit of
    minus infinity is a probability of 0: it is never kept, and where the
    gold token has it the position is not finite. Of what is neither kept nor gold, r
    ids are drawn; see `draw_rest`.

    Args:
      logits: overwritten where they are float32. Each pass over them counts, so that
        other types are widened in the one pass that writes.
      gold_ids: the tokens that do come next.
      chances: uniform random numbers in [0, 1), one a draw; r may be 0.
      n_ids: ids that may be kept: those below it.
      k: entries to keep; where there are fewer, id -1 and logprob -inf follow.
      chosen: which of them to keep; None = all. Others may be drawn.

    Returns:
      The fields of `Kept`.
    """
    peaks = tile_peaks(logits[:, :n_ids])
    ids, kept = top_k(logits[:, :n_ids], peaks, min(k, n_ids))
    gold = logits.gather(1, gold_ids[:, None])[:, 0].float()
    peak = torch.cat([peaks, logits[:, n_ids:]], 1).amax(1, keepdim=True).float()
    if logits.dtype == torch.float32 or logits.device.type == "cpu":
        shifted = logits.float().sub_(peak)  # a CPU would widen them beside the result
    else:
        shifted = logits - peak
    weights = shifted.exp_()
    logsumexp = peak[:, 0] + weights.sum(1).log()
    logprobs = (kept - logsumexp[:, None]).clamp(max=0)
    missing = kept == -torch.inf
    if chosen is not None:
        missing |= outside(logprobs, chosen)
    taken = torch.where(missing, gold_ids[:, None], ids)
    behind = (0, k - kept.shape[1])
    return (
        F.pad(ids.int().masked_fill(missing, -1), behind, value=-1),
        F.pad(logprobs.masked_fill(missing, -torch.inf), behind, value=-torch.inf),
        logsumexp,
        (gold - logsumexp).clamp(max=0),
        logsumexp.isfinite() & gold.isfinite(),
        draw_rest(weights, torch.cat([taken, gold_ids[:, None]], 1), chances, n_ids),
    )


def fetch(parts: Sequence[Reduced]) -> Callable[[], Kept]:
    """Joins the positions of several parts and begins to bring them to the host.

    Returns:
      A function that waits until they are there.
    """
    joined = [torch.cat(field) for field in zip(*parts, strict=True)]
    wait = transfers.download(joined)
    names = [field.name for field in dataclasses.fields(Kept)]
    return lambda: Kept(**dict(zip(names, wait(), strict=True)))


def positions_that_fit(width: int, k: int, bytes_a_logit: int = 8) -> int:
    """Returns for how many positions logits take 0.6 GB at most; 1 at least.

    Tiles and the nearest candidates come on top of the logits.

    Args:
      width: logits at each position.
      k: entries that are kept.
      bytes_a_logit: what a logit takes in all its forms; see `Reduction`.
    """
    tiles = -(-width // _TILE)
    each = bytes_a_logit * width + 32 * tiles + 32 * _TILE * min(k, tiles)
    return max(1, _EXTRA_BYTES // each)


def positions_at_once(
    width: int, k: int, device: torch.device, bytes_a_logit: int = 8
) -> int:
    """Returns of how many positions the head makes logits at once.

    As many as fit, but no more than make its product any faster; whole tiles of it
    where there is room for one.

    Args:
      width: logits at each position.
      k: entries that are kept.
      device: where they are.
      bytes_a_logit: what a logit takes in all its forms.
    """
    most = 512 if device.type == "cpu" else 8192
    fit = min(positions_that_fit(width, k, bytes_a_logit), most)
    return fit - fit % 64 if fit > 64 else fit


def split(kept: Kept, ends: Int64[np.ndarray, " w"]) -> list[Kept]:
    """Cuts positions into those of each window; `ends` are its last ones' ends."""
    fields = [getattr(kept, field.name) for field in dataclasses.fields(Kept)]
    pieces = zip(*(np.split(field, ends[:-1]) for field in fields), strict=True)
    names = [field.name for field in dataclasses.fields(Kept)]
    return [Kept(**dict(zip(names, piece, strict=True))) for piece in pieces]


def tile_peaks(logits: Float[Tensor, "p v"]) -> Float[Tensor, "p w"]:
    """Finds the largest logit of each tile: 64 ids, or what is left of them."""
    edge = logits.shape[1] - logits.shape[1] % _TILE
    peaks = logits[:, :edge].view(len(logits), -1, _TILE).amax(2)
    if edge == logits.shape[1]:
        return peaks
    return torch.cat([peaks, logits[:, edge:].amax(1, keepdim=True)], 1)


def top_k(
    logits: Float[Tensor, "p v"], peaks: Float[Tensor, "p w"], k: int
) -> tuple[Int64[Tensor, "p k"], Float32[Tensor, "p k"]]:
    """Finds the k largest logits of each position: ids, logits; ties by rising id.

    An entry among the first k lies in one of the first k tiles by largest logit, ties
    by place: each tile in front of its own holds an entry in front of it. So the
    vocabulary is read once, for the peaks, and only k tiles are searched.

    Args:
      logits: without NaN; a position where there is one gets some ids or other.
      peaks: their `tile_peaks`.
      k: in [0, v].
    """
    v = logits.shape[1]
    tiles = _first(peaks.float(), min(k, peaks.shape[1])).sort(1).values
    within = torch.arange(_TILE, device=logits.device)
    ids = (tiles[:, :, None] * _TILE + within).flatten(1)  # rising in each row
    near = logits.gather(1, ids.clamp(max=v - 1)).float()
    places = _first(near.masked_fill(ids >= v, -torch.inf), k)
    return ids.gather(1, places), near.gather(1, places)


def outside(logprobs: Float32[Tensor, "p k"], chosen: Nucleus) -> Bool[Tensor, "p k"]:
    """Says which entries do not stay; the twin of `nucleus.outside` on tensors."""
    probs = logprobs.double().exp()
    before = F.pad(probs.cumsum(1)[:, :-1], (1, 0))
    ranks = torch.arange(probs.shape[1], device=probs.device)
    return (before >= chosen.top_p) & (ranks >= chosen.min_k)


def draw_rest(
    weights: Float32[Tensor, "p v"],
    taken: Int64[Tensor, "p k"],
    chances: Float64[Tensor, "p r"],
    n_ids: int,
) -> Int32[Tensor, "p r"]:
    """Draws ids in proportion to their weights, with replacement, but none taken.

    A draw is the id at which the cumulated weights of the others pass its chance times
    their sum. As in `top_k` the vocabulary is read once, for the tiles' sums; then one
    tile is searched for each draw. So nothing as large as the weights is made, and what
    is summed in float32 are 64 numbers at most.

    Args:
      weights: 0 or more; those of taken ids are overwritten with 0. A position where
        one is not finite gets some ids or other.
      taken: ids that are not to be drawn, maybe twice.
      chances: in [0, 1), one a draw.
      n_ids: ids that may be told: a draw from n_ids on is -1.

    Returns:
      The ids; -1 too where no other has weight.
    """
    if chances.shape[1] == 0:
        return taken.new_empty(chances.shape, dtype=torch.int32)
    v = weights.shape[1]
    weights.scatter_(1, taken, 0.0)
    sums = tile_sums(weights).double()
    ends = sums.cumsum(1)
    aims = chances * ends[:, -1:]
    tiles = _passing(ends, aims)  # (p, r)
    aims = aims - (ends - sums).gather(1, tiles)
    ids = tiles[:, :, None] * _TILE + torch.arange(_TILE, device=weights.device)
    near = weights.gather(1, ids.clamp(max=v - 1).flatten(1)).view(ids.shape)
    ends = near.masked_fill_(ids >= v, 0.0).double().cumsum(2)  # (p, r, 64)
    places = _passing(ends, aims[:, :, None])
    drawn = (tiles * _TILE + places[:, :, 0]).clamp(max=v - 1)
    told = (drawn < n_ids) & (weights.gather(1, drawn) > 0)
    return drawn.masked_fill(~told, -1).int()


def tile_sums(weights: Float32[Tensor, "p v"]) -> Float32[Tensor, "p w"]:
    """Sums each tile: 64 ids, or what is left of them."""
    edge = weights.shape[1] - weights.shape[1] % _TILE
    sums = weights[:, :edge].view(len(weights), -1, _TILE).sum(2)
    return torch.cat([sums, weights[:, edge:].sum(1, keepdim=True)], 1)


def _passing(
    ends: Float64[Tensor, "*p n"], aims: Float64[Tensor, "*p m"]
) -> Int64[Tensor, "*p m"]:
    """Returns the first place whose end is above the aim.

    Where rounding puts an aim at the last end or above, it is the last place that has
    weight; so no place without weight is returned while there is one with it.
    """
    last = torch.searchsorted(ends, ends[..., -1:].contiguous())
    found = torch.searchsorted(ends, aims.contiguous(), right=True)
    return torch.minimum(found, last).clamp(max=ends.shape[-1] - 1)


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
