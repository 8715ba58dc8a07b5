"""Keep at each position as few entries as hold most of the mass (adaptive k).

The nucleus of a row is its likeliest entries, as few as sum to `top_p` or more
(Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", ICLR,
arXiv 1904.09751). A position where the model is sure then takes one entry or two, and
an open one all k. What lies outside is dropped as what lies outside the k is: it counts
as tail.
"""

import dataclasses

import numpy as np

from schemas.shapes import Bool, Float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Nucleus:
    """How many entries of a row stay.

    Attributes:
      top_p: mass that they sum to, in (0, 1], where the row's k entries have as much.
      min_k: entries that stay in any case, 1 or more.
    """

    top_p: float
    min_k: int = 1


def of(top_p: float | None, min_k: int, *, k: int) -> Nucleus | None:
    """Checks the settings of a command; None where all k entries are to stay.

    Raises:
      ValueError: if they are out of range, or `min_k` is set without `top_p`.
    """
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}; leave it out for all")
    if not 1 <= min_k <= k:
        raise ValueError(f"min_k must be in [1, {k}], top_k, got {min_k}")
    if top_p is None and min_k != 1:
        raise ValueError(
            f"min_k must go with top_p, which it is the floor of, got {min_k} alone;"
            " pass --top_p too"
        )
    return None if top_p is None else Nucleus(top_p=top_p, min_k=min_k)


def outside(
    probs: Float[np.ndarray, "t k"], chosen: Nucleus
) -> Bool[np.ndarray, "t k"]:
    """Says which entries do not stay; its twin on tensors is in `logits`.

    Entry i stays if i < min_k, or those in front of it sum to less than top_p.

    Args:
      probs: in [0, 1], falling along a row; 0 behind the last.
      chosen: how many stay.
    """
    sums = probs.cumsum(axis=1, dtype=np.float64)
    before = np.concatenate([np.zeros((len(probs), 1)), sums[:, :-1]], axis=1)
    return (before >= chosen.top_p) & (np.arange(probs.shape[1]) >= chosen.min_k)
