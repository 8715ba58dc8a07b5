"""Says of every target position what a source's rows say there, or why nothing.

A row speaks in one of the four ways of `align`; where none does, for one of these
reasons::

    target  |▁|The| un|believ|able ones|EOS|
    source    |The| unbe|lievable| ones|
    class    e w   i    s       n        o       e empty, w whole, i inside,
                                                 s straddle, n inner, o eos
"""

import numpy as np
from jaxtyping import Bool, Int8, Int32

from transforms.functional import align
from transforms.functional.align import Alignment
from transforms.functional.project import SourceRows

WHOLE, INSIDE, CHAIN, STRADDLE = align.WHOLE, align.INSIDE, align.CHAIN, align.STRADDLE
INNER, EMPTY, EOS, IMPOSSIBLE, UNSOUND = range(STRADDLE + 1, STRADDLE + 6)

CLASSES = {
    WHOLE: "whole",
    INSIDE: "inside",
    CHAIN: "chain",
    STRADDLE: "straddle",
    INNER: "inner",
    EMPTY: "empty",
    EOS: "eos",
    IMPOSSIBLE: "impossible",
    UNSOUND: "unsound",
}
"""Names of the classes. The first four are those of positions that a row speaks about;
the others are why none does:

- inner: the token begins inside a source token, and no run of target tokens with bytes
  leads there from that token's start;
- empty: it has no bytes, as a dummy prefix that stands alone, and the source has no
  such token left at this border;
- eos: it is the target's EOS, and the source wrote none;
- impossible: the source gave what was passed of its token no probability at all;
- unsound: the rows hold NaN or +inf.
"""

SPEAKING = frozenset({WHOLE, INSIDE, CHAIN, STRADDLE})
"""Classes of the positions that a row speaks about."""


def classify_positions(
    alignment: Alignment,
    covered: Bool[np.ndarray, " t"],
    rows: SourceRows,
    target_byte_ends: Int32[np.ndarray, " n"],
    *,
    target_eos: bool,
) -> Int8[np.ndarray, " t"]:
    """Finds the class of every target position.

    Args:
      alignment: from `align_spans`, of this window.
      covered: `Projected.covered` of these rows.
      rows: the source's.
      target_byte_ends: end offsets of the target's tokens, start token included.
      target_eos: whether the target's last token is its EOS.

    Returns:
      One of the keys of `CLASSES` for each position.
    """
    classes = np.where(np.diff(target_byte_ends) > 0, INNER, EMPTY)
    if target_eos:
        classes[-1] = EOS
    aligned = alignment.row >= 0
    unsound = aligned & ~covered & _unsound(alignment, rows)
    classes[aligned] = np.where(covered, alignment.case, IMPOSSIBLE)[aligned]
    classes[unsound] = UNSOUND
    return classes.astype(np.int8)


def count_classes(classes: Int8[np.ndarray, " t"]) -> dict[str, int]:
    """Counts positions by the name of their class; all names are there.

    >>> count_classes(np.array([WHOLE, WHOLE, INNER], np.int8))["whole"]
    2
    """
    counts = np.bincount(classes, minlength=max(CLASSES) + 1)
    return {name: int(counts[code]) for code, name in CLASSES.items()}


def _unsound(alignment: Alignment, rows: SourceRows) -> Bool[np.ndarray, " t"]:
    """Says which positions are computed from NaN or from a mass that is no number."""
    with np.errstate(over="ignore"):
        tops = ~(np.exp(rows.top_logprobs) < np.inf).all(axis=1)
        golds = ~(np.exp(rows.gold_logprob.astype(np.float64)) < np.inf)
    spoilt = np.append(tops, False)  # row -1, none, is sound
    straddled = np.append(tops | golds, False)
    before = np.concatenate([[0], np.cumsum(golds)])
    chained = before[alignment.stop] > before[alignment.first]
    return spoilt[alignment.row] | chained | straddled[alignment.straddled]
