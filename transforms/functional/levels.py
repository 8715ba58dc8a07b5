"""Round probabilities to levels of nats below the likeliest entry of their row.

With y[i] = log p[1] - log p[i], entry i has the level u(y[i]), rounded::

    u(y) = (1 - exp(-y / 4)) / (fine / 4)          step fine exp(y / 4) nats
    u(y) = u(Y) + (y - Y) / coarse where y > Y     step coarse nats, which the other
                                                   has reached at Y
              fine     coarse    Y        last level
    `FINE`    0.034    2         16.30    37.0 nats
    `FIRST`   0.05     0.5        9.21    36.2 nats     only read any more

The tail has a level too, negative where it outweighs p[1]. Ratios survive rescaling:
a row is scaled to sum 1 after decoding, p[1] costs nothing, and to round a decoded row
changes nothing. To second order the error of a row is

    KL(stored || original) <= 1/2 sum_i p[i] e[i]^2,   |e[i]| <= step(y[i]) / 2 nats

so the step may grow as p falls. What lies below the last level is stored as if at it,
and p[1] below the tail likewise. Levels rise along a row, and are kept as `rises`, the
steps from entry to entry, one plane for each rank.
"""

import dataclasses
from typing import no_type_check

import numba
import numpy as np

_GROWTH = 0.25  # 1/nat
NO_TAIL = 128  # byte of a tail of zero mass; other bytes are signed levels


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Levels:
    """Levels 0 to n - 1; n is at most 128, so that a signed byte counts them.

    Attributes:
      weights: (n,) p / p[1] at each level, falling from 1.
      borders: (n,) between each level and the next; -1 above the last.
      tail_weights: (256,) tail / p[1] for each byte; NaN where it stands for nothing.
    """

    weights: np.ndarray
    borders: np.ndarray
    tail_weights: np.ndarray


def _levels(fine: float, coarse: float, top: int) -> Levels:
    knee = np.log(coarse / fine) / _GROWTH
    at_knee = (1 - fine / coarse) / (fine * _GROWTH)

    def nats(level: np.ndarray) -> np.ndarray:
        """Inverts u(y)."""
        curved = -np.log1p(-np.minimum(level, at_knee) * fine * _GROWTH) / _GROWTH
        return np.where(level < at_knee, curved, knee + (level - at_knee) * coarse)

    weights = np.exp(-nats(np.arange(top + 1.0)))
    tails = np.full(256, np.nan)
    tails[: top + 1] = weights
    tails[-top:] = 1 / weights[:0:-1]
    tails[NO_TAIL] = 0
    return Levels(
        weights=weights,
        borders=np.append(np.exp(-nats(np.arange(top) + 0.5)), -1.0),
        tail_weights=tails,
    )


FIRST = _levels(0.05, 0.5, top=126)
FINE = _levels(0.034, 2.0, top=126)


@numba.njit(cache=True, nogil=True)
@no_type_check
def round_rows(borders, counts, probs, tail, starts, tails, rises):
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
            level = _climb(borders, level, probs[t, i] / first if first > 0 else 0.0)
            rises[starts[i]] = level - below
            starts[i] += 1
        if rest <= 0:
            tails[m] = NO_TAIL
        elif rest > first:
            tails[m] = -_climb(borders, 0, first / rest) & 255
        else:
            tails[m] = _climb(borders, 0, rest / first)
        m += 1


@numba.njit(cache=True, nogil=True)
@no_type_check
def _climb(borders, level, ratio):
    """Returns the level of a ratio, known to be at or above `level`."""
    while ratio < borders[level]:
        level += 1
    return level


@numba.njit(cache=True, nogil=True)
@no_type_check
def restore_rows(weights, tail_weights, counts, starts, tails, rises, probs, tail):
    """Fills `probs` (t, k) and `tail` (t,), all zero before, each row to sum 1.

    Returns whether all levels were in range.
    """
    m = 0
    for t in range(counts.size):
        if counts[t] == 0:
            continue
        weight = tail_weights[tails[m]]
        m += 1
        total, level = 1 + weight, 0
        probs[t, 0] = 1
        for i in range(1, counts[t]):
            level += rises[starts[i]]
            starts[i] += 1
            if level >= weights.size:
                return False
            probs[t, i] = weights[level]
            total += weights[level]
        if not total >= 1:
            return False
        scale = 1 / total
        for i in range(counts[t]):
            probs[t, i] *= scale
        tail[t] = weight * scale
    return True
