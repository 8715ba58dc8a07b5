"""Projects a source's next-token rows onto the target's positions and vocabulary.

For a target position with bytes [a, b), source row j at border a, s_j its gold token
with bytes [a, e), and n target tokens passed between the start of s_j and a::

    agrees(s, n)  seq(s) begins with the n target tokens passed; s_j always agrees
    M(n)          mass of the kept entries and s_j that agree; M(0) = 1, all that is
    q(v)          sum of p(s) / M(n) over kept s != s_j with agrees(s, n), seq(s)[n] = v

The target's actual next token g gets exactly::

    b < e   M(n + 1) / M(n)
    b = e   p(s_j) / M(n)
    b > e   p(s_j) / M(n) * product of the gold conditionals from e to b, or to the
            start c of the token that straddles b; then times the mass, in that token's
            row, of the gold and the kept entries whose bytes begin with the text's
            [c, b)

every other v gets q(v), and what remains is tail: entries that end after n tokens, that
have no partner in the target, that would land on g without being s_j (b >= e), and the
part of s_j's mass that g did not get. So the gold probabilities of the target positions
multiply to the source's own probability of the text, wherever all are covered and no
token is straddled. Rows at a border with empty source tokens (a dummy prefix) are
scaled by the probability of these.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32

from transforms.functional import kernels
from transforms.functional.align import Alignment
from transforms.functional.vocabulary import VocabularyMap


@runtime_checkable
class SourceRows(Protocol):
    """What one model says about one window of n tokens; a `Score` is one.

    `token_ids` (n,) with the start token in front, `top_ids` and `top_logprobs`
    (n - 1, k), `gold_logprob` (n - 1,): natural logs over the full vocabulary.
    """

    @property
    def token_ids(self) -> Int32[np.ndarray, " n"]: ...
    @property
    def top_ids(self) -> Int32[np.ndarray, "i k"]: ...
    @property
    def top_logprobs(self) -> Float32[np.ndarray, "i k"]: ...
    @property
    def gold_logprob(self) -> Float32[np.ndarray, " i"]: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Projected:
    """One source's rows about t target positions, over the target's vocabulary.

    Attributes:
      ids: kept target ids by falling prob, ties by rising id; -1 behind the last.
      probs: their probabilities; 0 behind the last.
      tail: 1 - sum of probs; 0 where not covered.
      covered: whether the source speaks about the position.
      gold_logprob: natural log-probability of the target's actual next token, kept or
        not; NaN where not covered.
    """

    ids: Int32[np.ndarray, "t k"]
    probs: Float32[np.ndarray, "t k"]
    tail: Float32[np.ndarray, " t"]
    covered: Bool[np.ndarray, " t"]
    gold_logprob: Float64[np.ndarray, " t"]


def project_rows(
    alignment: Alignment,
    rows: SourceRows,
    vocabulary: VocabularyMap,
    target_token_ids: Int32[np.ndarray, " n"],
    *,
    begins_alike: bool,
    k: int,
) -> Projected:
    """Projects every aligned position and keeps its `k` greatest entries.

    A position whose rows hold NaN or +inf is not covered.

    Args:
      alignment: from `align_spans`, of this window.
      rows: the source's.
      vocabulary: from the source's vocabulary to the target's.
      target_token_ids: with the start token in front.
      begins_alike: whether both tokenizers, or neither, put a space of their own in
        front of the window: `VocabularyMap.puts_space`.
      k: entries to keep, 1 or more.

    Raises:
      ValueError: if `k` is not positive, or if lengths or ids do not fit.
    """
    t = target_token_ids.size - 1
    if k < 1:
        raise ValueError(f"k must be positive, got {k}")
    if alignment.row.size != t:
        raise ValueError(
            f"alignment must have {t} positions, one fewer than the target's tokens, "
            f"got {alignment.row.size}"
        )
    if alignment.stop.max(initial=0) >= rows.token_ids.size:
        raise ValueError(
            f"alignment must be that of the rows, got one with "
            f"{alignment.stop.max()} rows or more and {rows.token_ids.size - 1} rows"
        )
    with np.errstate(over="ignore"):  # inf is dealt with row by row
        top_probs = np.exp(rows.top_logprobs)
    out = project_nothing(t, k=k)
    kernels.project(
        (
            alignment.row,
            alignment.case,
            alignment.passed,
            alignment.first,
            alignment.stop,
            alignment.straddled,
            alignment.prefix_bytes,
        ),
        (
            kernels.freeze(rows.token_ids, np.int32),
            kernels.freeze(rows.top_ids, np.int32),
            top_probs,
            kernels.freeze(rows.gold_logprob, np.float64),
        ),
        vocabulary.mid,
        vocabulary.beginning(begins_alike),
        vocabulary.text,
        kernels.freeze(target_token_ids, np.int32),
        (out.ids, out.probs, out.tail, out.covered, out.gold_logprob),
    )
    return out


def project_nothing(positions: int, *, k: int) -> Projected:
    """Returns the rows of a source that has nothing to say, such as a failed window."""
    return Projected(
        ids=np.full((positions, k), -1, np.int32),
        probs=np.zeros((positions, k), np.float32),
        tail=np.zeros(positions, np.float32),
        covered=np.zeros(positions, np.bool_),
        gold_logprob=np.full(positions, np.nan),
    )
