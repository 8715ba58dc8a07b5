"""Fuses the aligned rows of several sources into one distribution a position.

What each source weighs, for a window or at each position, `weigh` says.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int16, Int32

from transforms.functional import kernels, nucleus
from transforms.functional.nucleus import Nucleus
from transforms.functional.project import Projected


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fused:
    """One distribution for each of t target positions.

    Attributes:
      ids: kept target ids by falling prob, ties by rising id; -1 behind the last.
      probs: their probabilities; 0 behind the last.
      tail: 1 - sum of probs; 0 where not covered.
      covered: whether any source with a weight speaks about the position.
      gold_logprob: natural log-probability of the actual next token, kept or not; NaN
        where not covered, and where a source that has a share does not know it.
      chosen: the source with the greatest weight among those that speak, the first
        among equals; -1 where not covered.
    """

    ids: Int32[np.ndarray, "t k"]
    probs: Float32[np.ndarray, "t k"]
    tail: Float32[np.ndarray, " t"]
    covered: Bool[np.ndarray, " t"]
    gold_logprob: Float64[np.ndarray, " t"]
    chosen: Int16[np.ndarray, " t"]


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


def keep_nucleus(rows: Fused, chosen: Nucleus) -> Fused:
    """Keeps of each row its nucleus alone; the mass of the others goes to the tail."""
    drop = nucleus.outside(rows.probs, chosen)
    probs = np.where(drop, np.float32(0), rows.probs)
    dropped = np.where(drop, rows.probs, np.float32(0)).sum(axis=1, dtype=np.float64)
    return replace(
        rows,
        ids=np.where(drop, np.int32(-1), rows.ids),
        probs=probs,
        tail=np.minimum(rows.tail + dropped, 1).astype(np.float32),
    )
