"""The k likeliest of logprobs that are listed: some for each position, unordered."""

import numpy as np

from schemas.arrays import TopIds, TopLogprobs
from schemas.shapes import Bool, Float32, Int32, Int64


def keep_top_k(
    positions: Int64[np.ndarray, " m"],
    ids: Int64[np.ndarray, " m"],
    logprobs: Float32[np.ndarray, " m"],
    n_positions: int,
    *,
    complete: int,
    n_ids: int,
    k: int,
) -> tuple[TopIds, TopLogprobs]:
    """Keeps the k likeliest entries of each position.

    Args:
      positions: whose entry it is, in [0, n_positions).
      ids: vocabulary ids; an entry may be listed twice.
      logprobs: natural-log probabilities, over the full vocabulary.
      n_positions: positions, each of which may have any number of entries.
      complete: so many of the likeliest are listed at each position; what is less
        likely may be, while others of its like are not, and so is not kept.
      n_ids: ids that may be kept: those below it.
      k: entries to keep.

    Returns:
      ids: by falling logprob, ties by rising id; -1 behind the last.
      logprobs: theirs, at most 0; -inf behind the last. What is -inf or NaN is not
        kept.

    Example:
      >>> ids, logprobs = keep_top_k(
      ...     np.array([0, 0, 0, 1, 1]),
      ...     np.array([7, 5, 3, 4, 9]),
      ...     np.array([-1, -1, -0.5, -2, -1], np.float32),
      ...     2, complete=2, n_ids=8, k=2
      ... )
      >>> ids.tolist(), logprobs.tolist()
      ([[3, 5], [4, -1]], [[-0.5, -1.0], [-2.0, -inf]])
    """
    order = np.lexsort((ids, -logprobs, positions))
    positions, ids, logprobs = (a[order] for a in (positions, ids, logprobs))
    new = np.ones(len(ids), bool)  # what is listed twice lies side by side now
    new[1:] = (positions[1:] != positions[:-1]) | (ids[1:] != ids[:-1])
    positions, ids, logprobs = (a[new] for a in (positions, ids, logprobs))
    usable = np.isfinite(logprobs) & (ids < n_ids) & (_ranks(positions) < complete)
    positions, ids, logprobs = (a[usable] for a in (positions, ids, logprobs))
    rank = _ranks(positions)
    top = rank < k
    top_ids = np.full((n_positions, k), -1, np.int32)
    top_logprobs = np.full((n_positions, k), -np.inf, np.float32)
    at = positions[top], rank[top]
    top_ids[at] = ids[top]
    top_logprobs[at] = np.minimum(logprobs[top], 0)
    return top_ids, top_logprobs


def _ranks(positions: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, " m"]:
    """Numbers the entries of each position from 0; they lie position by position."""
    return np.arange(len(positions)) - np.searchsorted(positions, positions)


def gold_of(
    positions: Int64[np.ndarray, " m"],
    ids: Int64[np.ndarray, " m"],
    logprobs: Float32[np.ndarray, " m"],
    gold_ids: Int32[np.ndarray, " t"],
) -> tuple[Float32[np.ndarray, " t"], Bool[np.ndarray, " t"]]:
    """Finds the logprob of the token that does come next, at each position.

    Returns:
      Its natural-log probability, at most 0, and whether it is listed at all.
    """
    found = np.zeros(len(gold_ids), np.float32)
    listed = np.zeros(len(gold_ids), bool)
    golden = ids == gold_ids[positions]
    found[positions[golden]] = np.minimum(logprobs[golden], 0)
    listed[positions[golden]] = True
    return found, listed
