"""Fuses the aligned rows of several sources into one distribution a position.

What a source costs is said in bits per byte, so that tokenizers of different fineness
compare fairly. A source with NaN or inf for its cost is out; the others stay.

Granularity: costs of a whole window give weights (s,); `position_costs` of every
source, stacked along the last axis, give weights (t, s). For document granularity the
caller sums nats and bytes over a document's windows first, and passes the same weights
for all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int16, Int32

from transforms.functional import kernels
from transforms.functional.project import Projected

Costs = Float64[np.ndarray, "*t s"]
"""Bits per byte of s sources, for one window or for each of t positions."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fused:
    """One distribution for each of t target positions.

    Attributes:
      ids: kept target ids by falling prob, ties by rising id; -1 behind the last.
      probs: their probabilities; 0 behind the last.
      tail: 1 - sum of probs; 0 where not covered.
      covered: whether any source with a weight speaks about the position.
      gold_logprob: natural log-probability of the actual next token, kept or not; NaN
        where not covered.
      chosen: the source with the greatest weight among those that speak, the first
        among equals; -1 where not covered.
    """

    ids: Int32[np.ndarray, "t k"]
    probs: Float32[np.ndarray, "t k"]
    tail: Float32[np.ndarray, " t"]
    covered: Bool[np.ndarray, " t"]
    gold_logprob: Float64[np.ndarray, " t"]
    chosen: Int16[np.ndarray, " t"]


def bits_per_byte(nll_nats: float, n_bytes: int) -> float:
    """Returns nll_nats / (n_bytes * ln 2); NaN where there are no bytes."""
    return nll_nats / (n_bytes * np.log(2.0)) if n_bytes else float("nan")


def position_costs(
    target_byte_ends: Int32[np.ndarray, " i"],
    source_byte_ends: Int32[np.ndarray, " j"],
    gold_logprob: Float[np.ndarray, " r"],
    *,
    eos: bool,
) -> Float64[np.ndarray, " t"]:
    """Attributes a source's cost to the target's tokens, in bits per byte.

    A source token's nats spread evenly over its bytes; those of an empty token go to
    the token behind it. EOS counts as one byte. A target position has NaN if it has no
    bytes, or if a source token that overlaps it has no finite cost.

    Args:
      target_byte_ends: end offsets, start token included.
      source_byte_ends: the same of the source; ends at the same byte.
      gold_logprob: the source's, natural log.
      eos: whether both token lists end with their EOS.
    """
    stop = source_byte_ends.size - int(eos)
    first = np.flatnonzero(np.diff(source_byte_ends[:stop], prepend=-1))
    finite = np.isfinite(gold_logprob)
    nats = np.where(finite, -gold_logprob.astype(np.float64), 0.0)
    width = np.diff(target_byte_ends).astype(np.float64)
    ends, costs = target_byte_ends, np.full(width.size, np.nan)
    spent, bad = (
        np.diff(np.interp(ends, source_byte_ends[first], _running(x)[first]))
        for x in (nats, ~finite)
    )
    known = (width > 0) & (bad == 0)
    costs[known] = spent[known] / width[known]
    if eos and finite[-1]:
        costs[-1] = nats[-1]
    costs /= np.log(2.0)
    return costs


def min_ce_weights(costs: Costs) -> Costs:
    """Gives all weight to the cheapest source (MinCE), the first among equals.

    Zeros where no source has a finite cost.
    """
    usable = np.where(np.isfinite(costs), costs, np.inf)
    weights = np.zeros(costs.shape)
    best = usable.argmin(axis=-1, keepdims=True)
    np.put_along_axis(weights, best, 1.0, axis=-1)
    weights[~np.isfinite(costs)] = 0.0
    return weights


def avg_ce_weights(costs: Costs, *, temperature: float = 1.0) -> Costs:
    """Returns softmax(-costs / temperature) over the sources (AvgCE).

    Temperature 0 is MinCE, inf the plain mean. Zeros where no source has a finite cost.

    Args:
      costs: bits per byte; NaN and inf are out.
      temperature: in bits per byte, 0 or more.

    Raises:
      ValueError: if `temperature` is negative or NaN.
    """
    if not temperature >= 0.0:
        raise ValueError(f"temperature must be 0 or more, got {temperature}")
    if temperature == 0.0:
        return min_ce_weights(costs)
    usable = np.isfinite(costs)
    best = np.min(costs, axis=-1, keepdims=True, where=usable, initial=np.inf)
    above = np.where(usable, np.where(usable, costs, 0.0) - best, 0.0)
    with np.errstate(over="ignore"):  # a quotient beyond float64 weighs nothing
        weights: Costs = np.where(usable, np.exp(-above / temperature), 0.0)
    weights /= np.maximum(weights.sum(axis=-1, keepdims=True), 1e-300)
    return weights


def fuse_rows(
    projected: Sequence[Projected], weights: Float64[np.ndarray, "*t s"], *, k: int
) -> Fused:
    """Mixes the rows of s sources, position by position.

    At each position the weights of the sources that speak about it are scaled to sum
    to 1; without any, the position is not covered. Of the mixture the `k` greatest
    entries are kept. So with MinCE's weights, what the chosen source does not cover
    stays empty.

    Args:
      projected: one for each source, with equal t; k may differ.
      weights: (s,) for all positions, or (t, s); NaN and less than 0 count as 0.
      k: entries to keep, 1 or more.

    Raises:
      ValueError: if there is no source, or if shapes or `k` do not fit.
    """
    if k < 1:
        raise ValueError(f"k must be positive, got {k}")
    lengths = {source.covered.size for source in projected}
    if len(lengths) != 1:
        raise ValueError(
            "fusing takes one source or more, all of the same window, got "
            f"{len(projected)} with {sorted(lengths)} positions"
        )
    t, s = lengths.pop(), len(projected)
    if weights.shape not in ((s,), (t, s)):
        raise ValueError(
            f"weights must have shape ({s},) or ({t}, {s}), got {weights.shape}"
        )
    widest = max(source.ids.shape[1] for source in projected)
    ids = np.empty((s, t, widest), np.int32)
    probs = np.empty((s, t, widest), np.float32)
    for i, source in enumerate(projected):
        width = source.ids.shape[1]
        ids[i, :, :width], ids[i, :, width:] = source.ids, -1
        probs[i, :, :width] = source.probs
    out = Fused(
        ids=np.full((t, k), -1, np.int32),
        probs=np.zeros((t, k), np.float32),
        tail=np.zeros(t, np.float32),
        covered=np.zeros(t, np.bool_),
        gold_logprob=np.full(t, np.nan),
        chosen=np.full(t, -1, np.int16),
    )
    kernels.fuse(
        kernels.freeze(
            np.atleast_2d(np.where(weights > 0.0, weights, 0.0)), np.float64
        ),
        ids,
        probs,
        np.stack([source.covered for source in projected]),
        np.stack([source.gold_logprob for source in projected]),
        (out.ids, out.probs, out.tail, out.covered, out.gold_logprob, out.chosen),
    )
    return out


def _running(costs: Float[np.ndarray, " r"] | Bool[np.ndarray, " r"]) -> np.ndarray:
    """Sums in front of every border: none in front of the first."""
    return np.concatenate([[0.0], np.cumsum(costs, dtype=np.float64)])
