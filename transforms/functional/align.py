"""Aligns two tokenizations of one window by the bytes their tokens span.

Row t of a model predicts the token behind its t-th border. A target row that predicts
bytes [a, b) can learn from the source row whose border lies at a; what that row says
depends on where its own token [a, e) ends::

    target  |The| un|believ|able| one|
    source  |The| unbeliev |able one |
    case      W   I    W      I    W      W whole, I inside
    passed    0   0    1      0    1

    target  | unbelievable| ones|     case C chain: two source tokens make up the first
    source  | unbe|lievable| one|s|   the second is a chain again

    target  | unbeliev|able ones|     case S straddle: [a, b) ends inside `lievable`;
    source  | unbe|lievable| ones|    `able ones` starts inside it and is not covered
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int32

from schemas.errors import AlignmentError
from transforms.functional import kernels

ABSENT, WHOLE, INSIDE, CHAIN, STRADDLE = range(5)
"""Cases: no source row; the source token ends at b; behind b; several source tokens end
at b; b lies inside a later source token."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Alignment:
    """What the source rows say about each of t target positions.

    Attributes:
      row: source row that speaks, -1 where none does.
      case: one of ABSENT, WHOLE, INSIDE, CHAIN, STRADDLE.
      passed: target tokens that lie between the start of row's own token and a; with
        one or more passed, the row's distribution is conditioned on them.
      first: rows first..row-1 predict the empty tokens at border a that the target
        lacks, such as a dummy prefix; their gold probabilities multiply in.
      stop: rows row+1..stop-1 predict the gold tokens that follow row's own up to b, or
        up to the straddled one; their gold probabilities multiply in.
      straddled: row whose gold token [c, ...) has b inside, -1 where there is none.
      prefix_bytes: b - c there, else 0.
    """

    row: Int32[np.ndarray, " t"]
    case: Int32[np.ndarray, " t"]
    passed: Int32[np.ndarray, " t"]
    first: Int32[np.ndarray, " t"]
    stop: Int32[np.ndarray, " t"]
    straddled: Int32[np.ndarray, " t"]
    prefix_bytes: Int32[np.ndarray, " t"]

    @property
    def covered(self) -> Bool[np.ndarray, " t"]:
        """Whether any source row speaks."""
        return self.row >= 0


def align_spans(
    target_byte_ends: Int32[np.ndarray, " i"],
    source_byte_ends: Int32[np.ndarray, " j"],
    *,
    eos: bool,
) -> Alignment:
    """Finds the source row for every target position; linear in both lengths.

    A target position is covered if a source border lies at a, or if a lies inside a
    source token whose start is a target border. Target tokens with no bytes, such as a
    dummy prefix that stands alone, are covered by the source's own ones at the same
    border, in order; the EOS by the EOS.

    Args:
      target_byte_ends: end offsets of the target's tokens, start token included.
      source_byte_ends: the same of the source's.
      eos: whether both token lists end with their EOS. If only one does, or none, there
        is nothing to say about it.

    Raises:
      AlignmentError: if either does not start at byte 0 and never fall, or if the two
        end at different bytes.

    Example:
      >>> ends = [np.array(e, np.int32) for e in ([0, 3, 6, 12], [0, 3, 12])]
      >>> align_spans(*ends, eos=False).row.tolist()
      [0, 1, 1]
    """
    for name, ends in (("target", target_byte_ends), ("source", source_byte_ends)):
        shortest = 2 if eos else 1
        if ends.size < shortest or ends[0] != 0 or (ends[1:] < ends[:-1]).any():
            raise AlignmentError(
                f"{name} byte ends must start at 0 and never fall, with {shortest} "
                f"tokens or more, got {ends.size} tokens"
            )
    if target_byte_ends[-1] != source_byte_ends[-1]:
        raise AlignmentError(
            "both tokenizations must cover the same bytes, got "
            f"{target_byte_ends[-1]} for the target and {source_byte_ends[-1]} for the "
            "source; score the same windows with both"
        )
    out = np.zeros((7, target_byte_ends.size - 1), np.int32)
    out[0] = out[5] = -1
    kernels.sweep(
        kernels.freeze(target_byte_ends, np.int32),
        kernels.freeze(source_byte_ends, np.int32),
        int(eos),
        out,
    )
    row, case, passed, first, stop, straddled, prefix_bytes = out
    return Alignment(
        row=row,
        case=case,
        passed=passed,
        first=first,
        stop=stop,
        straddled=straddled,
        prefix_bytes=prefix_bytes,
    )
