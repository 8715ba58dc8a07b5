"""Round what a model says of a position to as few bits as its use needs.

Kept logprobs go to levels, the coarser the less probable::

    -log p in       step, nats, for k up to 12; up to 64 half of it, beyond a quarter
    [0, 1/2)        1/16 of the power of two below it, down to 2^-24
    [1/2, 1)        1/64
    [1, 2)          1/32
    [2, 4)          1/16
    [4, 5)          1/8
    [5, 8)          1/4
    [8, 32)         1/2
    [32, 2^16]      1/64 of the power of two below it, for every k

With p the row, q the rounded one, and r and s what they leave to the tail, the error is

    KL(q || p) = sum_i q[i] log(q[i] / p[i]) + s log(s / r)
               ~ 1/2 sum_i p[i] e[i]^2 + 1/2 (sum_i p[i] e[i])^2 / r,   e in nats

so the step may grow as p falls, as about p^-1/2, which gives each entry the same share;
and near p = 1, where all that is left is the tail's, it must shrink. The second term is
the greater one wherever two likely entries leave little: were each to go to its nearest
level, their errors would add up in a small tail. So, the likeliest first, an entry goes
to the level beside its nearest where that makes the row's KL smaller: half of the error
in all, and not a bit more.

Of float32's four bytes, a level has two that are not zero.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Float32, Float64

from schemas.arrays import TopLogprobs
from schemas.scores import Score

FORMAT = "levels.1"
"""Name of this table and these bits: scores that are rounded otherwise are others."""

_LOGSUMEXP_BITS = 11
_GOLD_BITS = 16

_TUNED = 8
"""Entries that may take another level than their nearest: those behind are too small
to matter to the tail."""
_LEAST = 1e-7
"""Tails below are float32's noise."""
_AT_ONCE = 8192
"""Rows whose numbers a processor's cache holds, with all that is made of them."""
_WORTH = 1e-12
"""Nats that another level must save: less is noise, and a rounded row should stay."""


@functools.cache
def levels_of(k: int) -> Float64[np.ndarray, " n"]:
    """Returns the levels of rows of k entries, falling from 0."""
    finer = 1 if k <= 12 else 2 if k <= 64 else 4
    near = [np.arange(16, 32, 1 / finer) * 2.0**e for e in range(-28, -5)]
    middle = [
        np.arange(start, stop, step / finer)
        for start, stop, step in (
            (0.5, 1, 1 / 64),
            (1, 2, 1 / 32),
            (2, 4, 1 / 16),
            (4, 5, 1 / 8),
            (5, 8, 1 / 4),
            (8, 32, 1 / 2),
        )
    ]
    far = [np.arange(64, 128) * 2.0**e for e in range(-1, 10)]
    return -np.concatenate([[-0.0], *near, *middle, *far, [2.0**16]])


def round_scores(scores: Sequence[Score]) -> list[Score]:
    """Rounds what a file keeps of windows' positions, all of them together.

    The log-sum-exp keeps 11 significant bits, an error like the likeliest levels'. The
    logprob of the token that does come next keeps 16, so that of a window's sum five
    digits and more are right; `nll_nats` is the exact sum and stays.
    """
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "top_logprobs": round_rows,
        "logsumexp": functools.partial(round_bits, bits=_LOGSUMEXP_BITS),
        "gold_logprob": functools.partial(round_bits, bits=_GOLD_BITS),
    }
    rounded = [
        _together([getattr(score, name) for score in scores], way)
        for name, way in ways.items()
    ]
    return [
        dataclasses.replace(score, **dict(zip(ways, made, strict=True)))
        for score, *made in zip(scores, *rounded, strict=True)
    ]


def _together(
    arrays: Sequence[np.ndarray | None], way: Callable[[np.ndarray], np.ndarray]
) -> list[np.ndarray | None]:
    """Rounds arrays end to end; None stays."""
    there = [array for array in arrays if array is not None]
    if not there:
        return list(arrays)
    ends = np.cumsum([len(array) for array in there])[:-1]
    made = iter(np.split(way(np.concatenate(there)), ends))
    return [None if array is None else next(made) for array in arrays]


def round_rows(logprobs: TopLogprobs) -> TopLogprobs:
    """Rounds the kept logprobs of each position to levels.

    Their order stays, though equal ones may arise; none is above 0; each is one of the
    two levels around it or the next one beyond its nearest; and to round a rounded row
    changes nothing.

    Args:
      logprobs: natural logs, falling, at most 0; -inf behind the last. What is not
        finite stays as it is.
    """
    rounded = np.empty(logprobs.shape, np.float32)
    for start in range(0, len(logprobs), _AT_ONCE):
        block = slice(start, start + _AT_ONCE)
        rounded[block] = _round_block(logprobs[block])
    return rounded


def _round_block(logprobs: TopLogprobs) -> TopLogprobs:
    kept = np.isfinite(logprobs)
    levels = levels_of(logprobs.shape[1])
    exact = np.where(kept, logprobs, levels[-1]).astype(np.float64)
    places = np.searchsorted(-(levels[1:] + levels[:-1]) / 2, -exact)
    tail = 1 - np.exp(exact).sum(axis=1)
    probs = np.exp(levels)
    for i in range(min(_TUNED, places.shape[1])):
        others = probs[places].sum(axis=1) - probs[places[:, i]]
        likelier = places[:, i - 1] if i else 0
        rarer = places[:, i + 1] if i + 1 < places.shape[1] else len(levels) - 1
        best, least = places[:, i], np.full(len(tail), np.inf)
        for move in (0, -1, 1):
            moved = np.clip(places[:, i] + move, likelier, rarer)
            nats = _cost(probs[moved], levels[moved] - exact[:, i], others, tail)
            better = nats < least - _WORTH
            best, least = np.where(better, moved, best), np.where(better, nats, least)
        places[:, i] = best
    return np.where(kept, levels[places], logprobs).astype(np.float32)


def _cost(
    prob: Float64[np.ndarray, " t"],
    error: Float64[np.ndarray, " t"],
    others: Float64[np.ndarray, " t"],
    tail: Float64[np.ndarray, " t"],
) -> Float64[np.ndarray, " t"]:
    """Returns what of the KL depends on one entry and the tail, but for a constant.

    A divergence of masses that need not sum to 1, sum of q log(q / p) - q + p, where
    a tail is held at the least; and what falls short of that, of which no tail can be
    made, and of what the row itself lacks, is added.
    """
    rest = 1 - others - prob
    short = np.maximum(np.minimum(tail, _LEAST) - rest, 0)
    rest, tail = np.maximum(rest, _LEAST), np.maximum(tail, _LEAST)
    return prob * (error - 1) + rest * (np.log(rest / tail) - 1) + short


def round_bits(
    values: Float[np.ndarray, "*shape"], bits: int
) -> Float32[np.ndarray, "*shape"]:
    """Rounds to so many significant bits, ties to even.

    Args:
      values: any; what is not finite stays as it is.
      bits: 1 to 24.

    Example:
      >>> round_bits(np.array([-1.2345678, -np.inf, np.nan]), 11)
      array([-1.234375,      -inf,       nan], dtype=float32)
    """
    mantissas, exponents = np.frexp(values.astype(np.float64))
    rounded = np.ldexp(np.rint(np.ldexp(mantissas, bits)), exponents - bits)
    greatest = np.finfo(np.float32).max  # what is finite stays so
    rounded = rounded.clip(-greatest, greatest)
    return np.where(np.isfinite(values), rounded, values).astype(np.float32)
