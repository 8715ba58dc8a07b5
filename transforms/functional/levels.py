"""Round probabilities to levels of nats below the likeliest entry of their row.

With y[i] = log p[1] - log p[i], entry i has the level u(y[i]), rounded::

    u(y) = (1 - exp(-y / 4)) / 0.0125                      step 0.05 exp(y / 4) nats
    u(y) = u(Y) + (y - Y) / 0.5 where y > Y = 9.21         step 0.5 nats

The tail has a level too, negative where it outweighs p[1]. Ratios survive rescaling:
a row is scaled to sum 1 after decoding, p[1] costs nothing, and to round a decoded row
changes nothing. To second order the error of a row is

    KL(stored || original) <= 1/2 sum_i p[i] e[i]^2,   |e[i]| <= step(y[i]) / 2 nats

so the step may grow as p falls. What lies more than 36 nats below p[1], or p[1] that
far below the tail, is stored as if at 36. Levels rise along a row, and are kept as
`rises`, the steps from entry to entry, one plane for each rank.
"""

from typing import no_type_check

import numba
import numpy as np

FINE, GROWTH, COARSE = 0.05, 0.25, 0.5  # nats, 1/nat, nats
TOP = 126  # the level of 36 nats
NO_TAIL = 128  # byte of a tail of zero mass; other bytes are signed levels


def _nats(levels: np.ndarray) -> np.ndarray:
    """Inverts u(y)."""
    knee = np.log(COARSE / FINE) / GROWTH
    at_knee = (1 - np.exp(-GROWTH * knee)) / (FINE * GROWTH)
    curved = -np.log1p(-np.minimum(levels, at_knee) * FINE * GROWTH) / GROWTH
    return np.where(levels < at_knee, curved, knee + (levels - at_knee) * COARSE)


WEIGHTS = np.exp(-_nats(np.arange(TOP + 1.0)))  # p / p[1] at each level
_BORDERS = np.exp(-_nats(np.arange(TOP) + 0.5))  # between level q and q + 1
_BORDERS = np.append(_BORDERS, -1.0)  # nothing is above the top


def _tail_weights() -> np.ndarray:
    """Returns tail / p[1] for each byte; NaN where a byte stands for nothing."""
    weights = np.full(256, np.nan)
    weights[: TOP + 1] = WEIGHTS
    weights[-TOP:] = 1 / WEIGHTS[:0:-1]
    weights[NO_TAIL] = 0
    return weights


TAIL_WEIGHTS = _tail_weights()


@numba.njit(cache=True, nogil=True)
@no_type_check
def round_rows(counts, probs, tail, starts, tails, rises):
    """Fills `tails` (m,) and `rises`, whose plane of rank i begins at `starts[i]`.

    m is the number of positions with a count; `starts` is spent as a cursor.
    """
    m = 0
    for t in range(counts.size):
        if counts[t] == 0:
            continue
        first, rest = np.float64(probs[t, 0]), np.float64(tail[t])
        level = 0
        for i in range(1, counts[t]):
            below = level
            level = _climb(level, probs[t, i] / first if first > 0 else 0.0)
            rises[starts[i]] = level - below
            starts[i] += 1
        if rest <= 0:
            tails[m] = NO_TAIL
        elif rest > first:
            tails[m] = -_climb(0, first / rest) & 255
        else:
            tails[m] = _climb(0, rest / first)
        m += 1


@numba.njit(cache=True, nogil=True)
@no_type_check
def _climb(level, ratio):
    """Returns the level of a ratio, known to be at or above `level`."""
    while ratio < _BORDERS[level]:
        level += 1
    return level


@numba.njit(cache=True, nogil=True)
@no_type_check
def restore_rows(counts, starts, tails, rises, probs, tail):
    """Fills `probs` (t, k) and `tail` (t,), all zero before, each row to sum 1.

    Returns whether all levels were in range.
    """
    m = 0
    for t in range(counts.size):
        if counts[t] == 0:
            continue
        weight = TAIL_WEIGHTS[tails[m]]
        m += 1
        total, level = 1 + weight, 0
        probs[t, 0] = 1
        for i in range(1, counts[t]):
            level += rises[starts[i]]
            starts[i] += 1
            if level > TOP:
                return False
            probs[t, i] = WEIGHTS[level]
            total += WEIGHTS[level]
        if not total >= 1:
            return False
        scale = 1 / total
        for i in range(counts[t]):
            probs[t, i] *= scale
        tail[t] = weight * scale
    return True
