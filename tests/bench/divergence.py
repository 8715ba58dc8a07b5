"""What rounding costs: the divergence of stored rows from those they were made of."""

import numpy as np

from transforms.functional.codec import Distributions

_LEAST = 1e-30


def of_logprobs(stored: np.ndarray, original: np.ndarray) -> np.ndarray:
    """KL(stored ‖ original) of each row over its entries and the tail, in nats.

    Args:
      stored: (t, k) natural logs; what lacks an entry, -inf there, has it in the tail.
      original: (t, k), falling.
    """
    kept = np.isfinite(stored)
    shares = []
    for logprobs in (stored, original):
        probs = np.where(kept, np.exp(logprobs.astype(np.float64)), 0.0)
        shares.append(np.column_stack([probs, 1 - probs.sum(axis=1)]))
    return of_shares(*shares)


def of_shares(stored: np.ndarray, original: np.ndarray) -> np.ndarray:
    """KL(stored ‖ original) of each row, in nats.

    Args:
      stored: (t, k + 1), the tail last; a tail below 0 counts as nothing.
      original: the same.
    """
    s, o = (np.maximum(a.astype(np.float64), _LEAST) for a in (stored, original))
    o /= o.sum(axis=1, keepdims=True)
    return (s * (np.log(s) - np.log(o))).sum(axis=1)


def of_rows(stored: Distributions, original: Distributions) -> np.ndarray:
    """KL(stored ‖ original) of the positions that keep anything, in nats."""
    used = original.counts > 0
    shares = (np.column_stack([d.probs, d.tail])[used] for d in (stored, original))
    return of_shares(*shares)
