"""Lets a few drawn entries stand for all that a row does not keep, without bias.

Top-k rows say nothing of the mass outside their k entries. Here r ids are drawn from
it, with replacement and each with its probability, and share it evenly (random sampling
knowledge distillation: Anshumann et al. 2025, "Sparse Logit Sampling", ACL,
arXiv 2503.16870). With p the row, T its kept ids and the gold one::

    rest    = 1 - sum of p(v) over v in T
    v_d     ~ p(v) / rest over v not in T            d = 1..r, independent
    p'(v)   = p(v)                                   v in T
    p'(v)   = rest / r * #{d : v_d = v}              v not in T

so that p' sums to 1 and E[p'(v)] = r * rest / r * p(v) / rest = p(v): what is linear in
the row, as cross-entropy and its gradient are, has the dense row's expectation. It is
that of the row as stored: what rounding adds to kept entries (`rounding.py`) is taken
from the rest, all whose entries shrink or grow by one factor. The
variance of an entry is p(v) (rest - p(v)) / r. The paper draws from all of p; that the
likeliest entries stay exact is ours, and leaves variance to the rest alone.

Projection is linear in p' where a target position begins with a source token; inside
one it divides by the mass of the entries that agree, drawn ones among them, and such a
ratio has the dense row's expectation only up to O(1 / r). Mixing by weights is linear.
What is drawn of the mixture again (`thin_rows`) has the mixture's expectation, so
the dense one.

What decides a draw is a chance in [0, 1): see `chances.py`.
"""

import dataclasses
import math
from typing import no_type_check

import numba
import numpy as np
from jaxtyping import Float64

from schemas.arrays import Chances
from schemas.scores import Score
from transforms.functional import kernels
from transforms.functional.fuse import Fused

_compiled = numba.njit(cache=True, nogil=True)
_inlined = numba.njit(cache=True, nogil=True, forceinline=True)  # as in `kernels.py`


def rest_mass(score: Score) -> Float64[np.ndarray, " t"]:
    """Returns what the gold and the kept entries of each row leave of 1.

    It is taken from the stored values, so that they and the draws sum to 1 though the
    kept logprobs are rounded. Of a gold that is kept, its exact logprob counts.
    """
    rest = np.empty(len(score.gold_logprob))
    _leave(
        kernels.freeze(score.top_ids, np.int32),
        kernels.freeze(score.top_logprobs, np.float32),
        kernels.freeze(score.token_ids[1:], np.int32),
        kernels.freeze(score.gold_logprob, np.float32),
        rest,
    )
    return rest


def join_draws(score: Score) -> Score:
    """Returns the score as if its drawn ids had been kept, and no more drawn.

    An id that m of r draws gave has the probability m * rest / r; draws that gave none
    leave their share to the tail. So rows have k + r entries, still by falling logprob.
    """
    drawn = score.sampled_ids
    if drawn is None:
        return score
    shape = (len(drawn), score.top_ids.shape[1] + drawn.shape[1])
    ids = np.full(shape, -1, np.int32)
    logprobs = np.full(shape, -np.inf, np.float32)
    _join(
        kernels.freeze(score.top_ids, np.int32),
        kernels.freeze(score.top_logprobs, np.float32),
        kernels.freeze(drawn, np.int32),
        rest_mass(score) / drawn.shape[1],
        (ids, logprobs),
    )
    return dataclasses.replace(
        score, top_ids=ids, top_logprobs=logprobs, sampled_ids=None
    )


def thin_rows(rows: Fused, *, k: int, chances: Chances) -> Fused:
    """Keeps the k greatest entries of each row, and of the others as many as are drawn.

    A row of k + r entries or fewer stays as it is. Of a longer one the others hold
    rest = sum of p(v); r draws with replacement, each of v with p(v) / rest, have
    rest / r each, and draws of one id are added. So the expectation of every entry is
    p(v), the mass is what it was, and the tail holds only what no source tells of.

    Args:
      rows: with all their entries.
      k: entries to keep as they are, 1 or more.
      chances: in [0, 1), one a draw: r of them, 1 or more.

    Returns:
      Rows of k + r entries.

    Raises:
      ValueError: if shapes or `k` do not fit.
    """
    t, r = chances.shape
    if k < 1 or r < 1:
        raise ValueError(f"k and the draws must be positive, got {k} and {r}")
    if t != rows.covered.size:
        raise ValueError(f"chances must have {rows.covered.size} rows, got {t}")
    ids = np.full((t, k + r), -1, np.int32)
    probs = np.zeros((t, k + r), np.float32)
    _thin(
        kernels.freeze(rows.ids, np.int32),
        kernels.freeze(rows.probs, np.float32),
        k,
        kernels.freeze(chances, np.float64),
        (ids, probs),
    )
    return dataclasses.replace(rows, ids=ids, probs=probs)


@_compiled
@no_type_check
def _leave(top_ids, top_logprobs, gold_ids, gold_logprob, rest):
    """Fills `rest` (t,) with what is neither kept nor gold; see `rest_mass`."""
    for t in range(rest.size):
        known = math.exp(np.float64(gold_logprob[t]))
        for i in range(top_ids.shape[1]):
            if top_ids[t, i] != gold_ids[t]:
                known += math.exp(np.float64(top_logprobs[t, i]))
        rest[t] = max(1.0 - known, 0.0)


@_compiled
@no_type_check
def _join(top_ids, top_logprobs, drawn, share, out):
    """Puts the drawn ids of each row among the kept ones; see `join_draws`.

    Args:
      top_ids: (t, k), -1 behind the last.
      top_logprobs: (t, k), falling.
      drawn: (t, r).
      share: (t,), what one draw weighs.
      out: ids and logprobs (t, k + r), -1 and -inf before.
    """
    out_ids, out_logprobs = out
    for t in range(drawn.shape[0]):
        kept = 0
        for i in range(top_ids.shape[1]):
            if top_ids[t, i] >= 0:
                out_ids[t, i], out_logprobs[t, i] = top_ids[t, i], top_logprobs[t, i]
                kept += 1
        for d in range(drawn.shape[1]):
            times, before = 0, 0
            for e in range(drawn.shape[1]):
                times += drawn[t, e] == drawn[t, d]
                before += drawn[t, e] == drawn[t, d] and e < d
            if drawn[t, d] >= 0 and before == 0 and share[t] > 0.0:
                logprob = np.float32(math.log(share[t] * times))
                _insert(t, kept, drawn[t, d], logprob, out_ids, out_logprobs)
                kept += 1


@_compiled
@no_type_check
def _thin(ids, probs, k, chances, out):
    """Keeps k entries of each row and draws of the others; see `thin_rows`.

    Args:
      ids: (t, m), -1 behind the last.
      probs: (t, m), falling.
      k: entries to keep.
      chances: float64 (t, r).
      out: ids and probs (t, k + r), -1 and 0 before.
    """
    out_ids, out_probs = out
    for t in range(ids.shape[0]):
        count = 0
        for i in range(ids.shape[1]):
            count += ids[t, i] >= 0
        kept = count if count <= out_ids.shape[1] else k
        for i in range(kept):
            out_ids[t, i], out_probs[t, i] = ids[t, i], probs[t, i]
        if kept < count:
            _draw(t, ids, probs, kept, count, chances, out_ids, out_probs)


@_inlined
@no_type_check
def _draw(t, ids, probs, k, count, chances, out_ids, out_probs):
    """Draws of the entries from k to count, and puts them among the k in front."""
    rest, draws, kept = 0.0, chances.shape[1], k
    for i in range(k, count):
        rest += probs[t, i]
    for d in range(draws):
        aim, i, passed = chances[t, d] * rest, k, np.float64(probs[t, k])
        while passed <= aim and i < count - 1:
            i += 1
            passed += probs[t, i]
        j = k
        while j < kept and out_ids[t, j] != ids[t, i]:
            j += 1
        out_ids[t, j] = ids[t, i]
        out_probs[t, j] += np.float32(rest / draws)
        kept = max(kept, j + 1)
    for i in range(k, kept):
        _insert(t, i, out_ids[t, i], out_probs[t, i], out_ids, out_probs)


@_inlined
@no_type_check
def _insert(t, j, token, value, ids, values):
    """Puts an entry among the j in front: by falling value, ties by rising id."""
    while j > 0 and (
        values[t, j - 1] < value
        or (values[t, j - 1] == value and ids[t, j - 1] > token)
    ):
        ids[t, j], values[t, j] = ids[t, j - 1], values[t, j - 1]
        j -= 1
    ids[t, j], values[t, j] = token, value
