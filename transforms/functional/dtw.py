"""Pairs the tokens of two tokenizations by dynamic time warping over their spellings.

FuseLLM and FuseChat align this way (Wan et al. 2024, arXiv 2401.10491, appendix A;
arXiv 2408.07990). With c(i, j) the Levenshtein distance between source token i and
target token j, the cheapest monotone path from the first pair to the last costs

    D(i, j) = c(i, j) + min(D(i - 1, j - 1), D(i - 1, j), D(i, j - 1))

and every token of both sides lies on it::

    target   |The| un|believ|able|      source 1 is paired with targets 1, 2 and 3;
    source   |The| unbelievable|        each of these has one partner

The path is traced from the end. Where several predecessors are equally cheap the
diagonal goes first, then a step in the source (FuseLLM) or in the target (FuseChat).
One kernel serves both: swapping the two sides swaps the two kinds of step.

A text repeats its tokens, so distances are measured once for each pair of distinct
pieces. Costs need one row, steps one byte a cell; the path is the full one, no band.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, no_type_check

import numba
import numpy as np
from jaxtyping import Int32, Int64
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

from transforms.functional import kernels

Ties = Literal["source_first", "target_first"]
"""Which step goes before the other where both are as cheap: FuseLLM's, FuseChat's."""

_FAR = 2**30
_DIAGONAL, _ROW, _COLUMN = range(3)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairing:
    """Source positions paired with each target position, from the path.

    Attributes:
      offsets: partners of target position j are sources[offsets[j]:offsets[j + 1]], at
        least one if both sides have tokens.
      sources: source positions, rising by 1 within a target position.
      cost: sum of distances along the path, in edits.
    """

    offsets: Int64[np.ndarray, " n"]
    sources: Int32[np.ndarray, " p"]
    cost: int

    @property
    def partners(self) -> Int64[np.ndarray, " t"]:
        """Number of partners of each target position."""
        return np.diff(self.offsets)


def cut_pieces(text: bytes, byte_ends: Int32[np.ndarray, " n"]) -> list[str]:
    """Returns what each token spans of a text, a character a byte.

    A space in front is left out: it is what the marks of word beginnings stand for,
    which the authors delete. A dummy prefix spans nothing.
    """
    letters, ends = text.decode("latin-1"), byte_ends.tolist()
    spans = zip([0, *ends[:-1]], ends, strict=True)
    return [letters[start:stop].removeprefix(" ") for start, stop in spans]


def pair_pieces(source: Sequence[str], target: Sequence[str], *, ties: Ties) -> Pairing:
    """Pairs two tokenizations of one text by what their tokens spell.

    Args:
      source: piece of each source token.
      target: piece of each target token.
      ties: which step goes first where two are as cheap, after the diagonal.

    Example:
      >>> found = pair_pieces(["un", "ab", "le"], ["un", "able"], ties="source_first")
      >>> found.offsets.tolist(), found.sources.tolist(), found.cost
      ([0, 2, 3], [0, 1, 2], 4)
    """
    source_pieces, source_places = number_pieces(source)
    target_pieces, target_places = number_pieces(target)
    costs = edit_costs(source_pieces, target_pieces)
    return warp(source_places, target_places, costs, ties=ties)


def number_pieces(
    pieces: Sequence[str],
) -> tuple[list[str], Int32[np.ndarray, " n"]]:
    """Numbers distinct pieces in the order they first occur.

    Returns:
      distinct: the pieces.
      places: of each piece among them.
    """
    numbers: dict[str, int] = {}
    places = [numbers.setdefault(piece, len(numbers)) for piece in pieces]
    return list(numbers), np.array(places, np.int32)


def edit_costs(
    source_pieces: Sequence[str], target_pieces: Sequence[str]
) -> Int32[np.ndarray, "u v"]:
    """Measures Levenshtein's distance, in characters, between all pairs of pieces."""
    if not source_pieces or not target_pieces:
        return np.zeros((len(source_pieces), len(target_pieces)), np.int32)
    return process.cdist(
        source_pieces, target_pieces, scorer=Levenshtein.distance, dtype=np.int32
    )


def warp(
    source: Int32[np.ndarray, " i"],
    target: Int32[np.ndarray, " j"],
    costs: Int32[np.ndarray, "u v"],
    *,
    ties: Ties,
) -> Pairing:
    """Finds the cheapest monotone path; O(i j) time, i j bytes.

    Args:
      source: row of `costs` of each source token.
      target: column of `costs` of each target token.
      costs: edits between distinct pieces, 0 or more.
      ties: which step goes first where two are as cheap, after the diagonal.

    Raises:
      ValueError: if paths could cost 2^30 or more.
    """
    if not source.size or not target.size:
        return Pairing(
            offsets=np.zeros(target.size + 1, np.int64),
            sources=np.zeros(0, np.int32),
            cost=0,
        )
    if (source.size + target.size) * int(costs.max()) >= _FAR:
        raise ValueError(
            f"paths must cost less than 2^30 edits, got {source.size} and {target.size}"
            f" tokens up to {costs.max()} edits apart; cut the text into windows"
        )
    swap = ties == "target_first"
    rows, columns = (target, source) if swap else (source, target)
    table = np.ascontiguousarray(costs.T if swap else costs)
    steps = np.empty((rows.size, columns.size), np.uint8)
    cost = _accumulate(
        kernels.freeze(rows, np.int32),
        kernels.freeze(columns, np.int32),
        kernels.freeze(table, np.int32),
        steps,
    )
    path = np.empty((2, rows.size + columns.size), np.int32)
    first = _trace(steps, path)
    sources, targets = path[::-1, first:] if swap else path[:, first:]
    offsets = np.searchsorted(targets, np.arange(target.size + 1))
    return Pairing(offsets=offsets, sources=np.ascontiguousarray(sources), cost=cost)


@numba.njit(cache=True, nogil=True)
@no_type_check
def _accumulate(rows, columns, costs, steps):
    """Fills the step to each cell from its best predecessor; returns the path's cost.

    At column j, `best[j + 1]` goes over from D(i - 1, j) to D(i, j).
    """
    best = np.full(columns.size + 1, _FAR, np.int32)
    best[0] = 0
    for i in range(rows.size):
        row = rows[i]
        diagonal, left = best[0], np.int32(_FAR)
        best[0] = _FAR
        for j in range(columns.size):
            above = best[j + 1]
            least, step = diagonal, np.uint8(_DIAGONAL)
            if above < least:
                least, step = above, np.uint8(_ROW)
            if left < least:
                least, step = left, np.uint8(_COLUMN)
            left = np.int32(least + costs[row, columns[j]])
            best[j + 1] = left
            steps[i, j] = step
            diagonal = above
    return best[columns.size]


@numba.njit(cache=True, nogil=True)
@no_type_check
def _trace(steps, path):
    """Fills `path` (2, ...) from its end with rows and columns; returns its start."""
    i, j = steps.shape[0] - 1, steps.shape[1] - 1
    at = path.shape[1]
    while i >= 0 and j >= 0:
        at -= 1
        path[0, at], path[1, at] = i, j
        step = steps[i, j]
        i -= step != _COLUMN
        j -= step != _ROW
    return at
