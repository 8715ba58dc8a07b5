"""Which tokens of a window count: those that hold bytes of its loss spans."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from schemas.arrays import ByteEnds


def counted_tokens(
    byte_ends: ByteEnds, loss_spans: Sequence[int] | None
) -> Bool[np.ndarray, " n"]:
    """Marks the tokens whose bytes count.

    A token that holds bytes of a loss span and others besides counts whole: without it
    a span could be had for less than it costs. A token without bytes, such as a
    dummy prefix that stands alone, counts where the next one with bytes does: what
    follows is conditioned on it. The start token and EOS never count.

    Args:
      byte_ends: end offset of each token; the first token begins at 0.
      loss_spans: [start, stop) byte spans, flat, in rising order; None = all bytes.

    Returns:
      One truth value for each token.

    Example:
      >>> counted_tokens(np.array([0, 3, 5, 9, 9], np.int32), [4, 5])
      array([False, False,  True, False, False])
    """
    starts = np.concatenate([[0], byte_ends[:-1]])
    held = np.flatnonzero(starts < byte_ends)
    counts = np.zeros(len(byte_ends) + 1, np.bool_)  # behind the last: nothing counts
    if loss_spans is None:
        counts[held] = True
    else:
        for start, stop in zip(loss_spans[::2], loss_spans[1::2], strict=True):
            counts[:-1] |= np.maximum(starts, start) < np.minimum(byte_ends, stop)
    following = np.append(held, len(byte_ends))
    counts = counts[following[np.searchsorted(held, np.arange(len(byte_ends)))]]
    counts[:1] = False
    return counts


def counted_bytes(n_bytes: int, loss_spans: Sequence[int] | None) -> int:
    """Returns how many bytes of a window count.

    Example:
      >>> counted_bytes(9, None), counted_bytes(9, [0, 2, 5, 6])
      (9, 3)
    """
    if loss_spans is None:
        return n_bytes
    return sum(loss_spans[1::2]) - sum(loss_spans[::2])
