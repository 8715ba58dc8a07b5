"""Levenshtein distances between strings: of pairs, and to the nearest of many.

    d(a, b) = the least number of characters inserted, deleted or replaced

`nearest` is exact, yet looks at few pairs. Of two strings a and b with sets A and B of
characters,

    d(a, b) >= max(| |a| - |b| |, |A - B|, |B - A|)

as one edit changes the length by 1 at most, takes away one character at most, and
brings one. Candidates are sorted by length, lengths tried from the nearest on until the
first bound alone exceeds the best distance found; sets are 64 bits, in which several
rare characters share a bit, which can only lower the bound. What is left is measured by
Myers' bit-parallel algorithm (Myers 1999, JACM 46:395; Hyyrö 2003 for whole strings).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import no_type_check

import numba
import numpy as np
from jaxtyping import Int32, Int64, UInt64

_compiled = numba.njit(cache=True, nogil=True)
_inlined = numba.njit(cache=True, nogil=True, forceinline=True)

_WORD = 64
_ZERO, _ONE, _ALL = np.uint64(0), np.uint64(1), np.uint64(2**64 - 1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Strings:
    """Strings as numbers; string r is codes[offsets[r]:offsets[r + 1]].

    Attributes:
      offsets: int64, strings + 1.
      codes: characters, numbered alike in what is compared, the most frequent first.
      sets: bit c % 64 is set where a string has character c.
    """

    offsets: Int64[np.ndarray, " r"]
    codes: Int32[np.ndarray, " c"]
    sets: UInt64[np.ndarray, " s"]


def nearest(
    queries: Sequence[str], candidates: Sequence[str]
) -> tuple[Int32[np.ndarray, " q"], Int32[np.ndarray, " q"]]:
    """Finds the candidate nearest to each query; the first of several.

    Lone surrogates are characters like any other.

    Args:
      queries: strings.
      candidates: strings, at least one.

    Returns:
      places: of the nearest among the candidates.
      distances: to it, in characters.

    Raises:
      ValueError: if there is no candidate.
    """
    if not candidates:
        raise ValueError("candidates must hold at least one string, got none")
    lengths = np.array([len(text) for text in candidates])
    order = np.argsort(lengths, kind="stable")
    asked, given = _encode(queries, [candidates[place] for place in order])
    starts = np.searchsorted(lengths[order], np.arange(lengths.max() + 2))
    places = np.zeros(len(queries), np.int32)
    distances = np.zeros(len(queries), np.int32)
    n_codes = 1 + max(int(s.codes.max(initial=-1)) for s in (asked, given))
    _search(
        (asked.offsets, asked.codes, asked.sets),
        (given.offsets, given.codes, given.sets),
        order,
        starts,
        np.zeros(n_codes, np.uint64),
        places,
        distances,
    )
    return places, distances


def distances(ones: Sequence[str], others: Sequence[str]) -> Int32[np.ndarray, " q"]:
    """Measures the distance, in characters, between strings side by side.

    Raises:
      ValueError: if there are more of one than of the other.
    """
    if len(ones) != len(others):
        raise ValueError(
            f"strings must come in pairs, got {len(ones)} and {len(others)}"
        )
    one, other = _encode(ones, others)
    out = np.zeros(len(ones), np.int32)
    _measure((one.offsets, one.codes), (other.offsets, other.codes), out)
    return out


def _encode(ones: Sequence[str], others: Sequence[str]) -> tuple[_Strings, _Strings]:
    """Numbers the characters of two lists of strings alike, the most frequent first."""
    joined = "".join([*ones, *others]).encode("utf-32-le", "surrogatepass")
    chars, inverse, counts = np.unique(
        np.frombuffer(joined, np.uint32), return_inverse=True, return_counts=True
    )
    ranks = np.empty(chars.size, np.int32)
    ranks[np.argsort(-counts, kind="stable")] = np.arange(chars.size, dtype=np.int32)
    codes = ranks[inverse]
    size = sum(map(len, ones))
    return _lay(ones, codes[:size]), _lay(others, codes[size:])


def _lay(strings: Sequence[str], codes: Int32[np.ndarray, " c"]) -> _Strings:
    offsets = np.zeros(len(strings) + 1, np.int64)
    np.cumsum([len(text) for text in strings], out=offsets[1:])
    rows = np.repeat(np.arange(len(strings)), np.diff(offsets))
    sets = np.zeros(len(strings), np.uint64)
    np.bitwise_or.at(sets, rows, _ONE << (codes % _WORD).astype(np.uint64))
    return _Strings(offsets=offsets, codes=codes, sets=sets)


@_compiled
@no_type_check
def _search(queries, candidates, order, starts, table, places, distances):
    """Fills places and distances; `table` is zeros, one for each character.

    `candidates` stand by length, then by place; `order` has their places, and those of
    length l are starts[l]:starts[l + 1].
    """
    offsets, codes, sets = queries
    given_offsets, given_codes, given_sets = candidates
    longest = starts.size - 2
    row = np.zeros(longest + 1, np.int32)
    for q in range(places.size):
        start, stop = offsets[q], offsets[q + 1]
        m = stop - start
        if m <= _WORD:
            for i in range(m):
                table[codes[start + i]] |= _ONE << np.uint64(i)
        own = sets[q]
        best, place = m + longest + 1, order.size
        for step in range(2 * max(m, longest) + 1):
            gap = (step + 1) // 2
            length = m - gap if step % 2 else m + gap
            if gap > best:
                break
            if length < 0 or length > longest:
                continue
            for c in range(starts[length], starts[length + 1]):
                other = given_sets[c]
                bound = max(gap, _ones(own & ~other), _ones(other & ~own))
                if bound > best or (bound == best and order[c] > place):
                    continue
                a, b = given_offsets[c], given_offsets[c + 1]
                if m <= _WORD:
                    found = _myers(m, table, given_codes, a, b)
                else:
                    found = _dynamic(codes, start, stop, given_codes, a, b, row)
                if found < best or (found == best and order[c] < place):
                    best, place = found, order[c]
        for i in range(start, stop):
            table[codes[i]] = _ZERO
        places[q], distances[q] = place, best


@_compiled
@no_type_check
def _measure(ones, others, out):
    """Fills the distances of strings side by side."""
    (offsets, codes), (other_offsets, other_codes) = ones, others
    longest = 0
    for r in range(out.size):
        longest = max(longest, other_offsets[r + 1] - other_offsets[r])
    row = np.zeros(longest + 1, np.int32)
    for r in range(out.size):
        out[r] = _dynamic(
            codes,
            offsets[r],
            offsets[r + 1],
            other_codes,
            other_offsets[r],
            other_offsets[r + 1],
            row,
        )


@_inlined
@no_type_check
def _ones(word):
    """Counts the bits that are set (in the form that compilers know as one)."""
    word = word - ((word >> _ONE) & np.uint64(0x5555555555555555))
    pairs = np.uint64(0x3333333333333333)
    word = (word & pairs) + ((word >> np.uint64(2)) & pairs)
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@_inlined
@no_type_check
def _myers(m, table, codes, start, stop):
    """Measures a pattern of m <= 64 characters against codes[start:stop].

    `table` says for each character where the pattern has it; `up` and `down` are the
    places where the column of the distance matrix rises and falls by 1.
    """
    if m == 0:
        return stop - start
    up, down, distance = _ALL, _ZERO, m
    last = np.uint64(m - 1)
    for i in range(start, stop):
        equal = table[codes[i]]
        vertical = equal | down
        horizontal = (((equal & up) + up) ^ up) | equal
        right = down | ~(horizontal | up)
        left = up & horizontal
        distance += np.int64((right >> last) & _ONE)
        distance -= np.int64((left >> last) & _ONE)
        right = (right << _ONE) | _ONE
        left = left << _ONE
        up = left | ~(vertical | right)
        down = right & vertical
    return distance


@_inlined
@no_type_check
def _dynamic(ones, start, stop, others, other_start, other_stop, row):
    """Measures by the textbook's recurrence, one row at a time."""
    n = other_stop - other_start
    for j in range(n + 1):
        row[j] = j
    for i in range(stop - start):
        diagonal, row[0] = row[0], i + 1
        for j in range(n):
            replaced = diagonal + (ones[start + i] != others[other_start + j])
            diagonal = row[j + 1]
            row[j + 1] = min(replaced, diagonal + 1, row[j] + 1)
    return np.int64(row[n])
