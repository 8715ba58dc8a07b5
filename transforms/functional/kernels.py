"""Compiled inner loops of `align`, `project` and `fuse`.

They live in one file because numba's cache is keyed by the file of the outer function
alone: a kernel that called into another file would go stale when that file changes.
What they compute is said in the modules that call them; here stands only how.

One row's masses are gathered in a sparse set (Briggs and Torczon, 1993): `slots[v]`
says where token v may lie in `ids[:count]`, and `ids` confirms it, so `slots` is never
cleared and may start as garbage.
"""

import math
from typing import no_type_check

import numba
import numpy as np
from numpy.typing import DTypeLike

ABSENT, WHOLE, INSIDE, CHAIN, STRADDLE = range(5)  # align.py says what they are

Ragged = tuple[np.ndarray, np.ndarray]
"""Offsets (int64, one more than rows) and the rows laid end to end."""


def freeze(array: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """Returns a contiguous, read-only view: one array type, so one compilation."""
    view = np.ascontiguousarray(array, dtype).view()
    view.flags.writeable = False
    return view


@numba.njit(cache=True, nogil=True)
@no_type_check
def sweep(target_ends, source_ends, eos, out):
    """Walks both tokenizations once; `out` (7, t) holds Alignment's fields in order."""
    opened, passed, j = -1, 0, 0
    for t in range(target_ends.size - 1 - eos):
        a, b = target_ends[t], target_ends[t + 1]
        if a == b:
            opened = -1
            continue
        while source_ends[j + 1] <= a:
            j += 1
        if source_ends[j] == a:
            opened, passed = j, 0
        elif opened == j:
            passed += 1
        else:
            continue  # inside a token whose start no target token shares
        out[0, t], out[2, t] = j, passed
        _speak(a, b, j, passed, source_ends, out[:, t])
    if eos:
        t, j = target_ends.size - 2, source_ends.size - 2
        out[0, t], out[1, t], out[2, t] = j, WHOLE, 0
        out[3, t], out[4, t] = _first_at_border(source_ends, j), j + 1


@numba.njit(cache=True, nogil=True)
@no_type_check
def _speak(a, b, j, passed, source_ends, out):
    """Fills case, first, stop, straddled and prefix_bytes for target bytes [a, b)."""
    out[3] = _first_at_border(source_ends, j) if passed == 0 else j
    out[4] = j + 1
    if b < source_ends[j + 1]:
        out[1] = INSIDE
    elif b == source_ends[j + 1]:
        out[1] = WHOLE
    else:
        i = j + 1
        while source_ends[i] < b:
            i += 1
        if source_ends[i] == b:
            out[1], out[4] = CHAIN, i
        else:
            out[1], out[4] = STRADDLE, i - 1
            out[5], out[6] = i - 1, b - source_ends[i - 1]


@numba.njit(cache=True, nogil=True)
@no_type_check
def _first_at_border(source_ends, j):
    """The first row at row j's border: those before j predict empty tokens."""
    while j > 0 and source_ends[j - 1] == source_ends[j]:
        j -= 1
    return j


@numba.njit(cache=True, nogil=True)
@no_type_check
def project(alignment, rows, mid, start, text, target_ids, slots, out):
    """Projects every covered position; the arguments are tuples of arrays.

    Args:
      alignment: row, case, passed, first, stop, straddled, prefix_bytes.
      rows: token_ids, top_ids, top_probs, gold_logprob of the source.
      mid: offsets, ids of seq(s) in running text.
      start: the same for a token that begins the window.
      text: byte offsets, bytes of the source's tokens.
      target_ids: the target's tokens.
      slots: int32, one entry a target id.
      out: ids, probs, tail, covered, gold_logprob.
    """
    row, case, passed = alignment[:3]
    token_ids, top_ids, _, gold_logprob = rows
    out_ids, out_probs, tail, covered, out_gold = out
    ids = np.empty(top_ids.shape[1] + 1, np.int32)
    masses = np.empty(ids.size, np.float64)
    probs = np.empty(ids.size, np.float32)
    for t in range(row.size):
        j, n = row[t], passed[t]
        if j < 0:
            continue
        before, behind = _chain(t, alignment, rows, text)
        seqs = start if j == 0 and t == n else mid
        wanted = target_ids[t - n + 1 : t + 2]
        count, agreeing, same_next = _gather(
            j, wanted, token_ids[j + 1], rows, seqs, ids, masses, slots
        )
        own = math.exp(gold_logprob[j])
        # at n = 0 nothing is conditioned on, so what was never kept counts too
        given = agreeing + own if n > 0 else 1.0
        gold = before + behind - _log(given)
        gold += _log(same_next + own) if case[t] == INSIDE else gold_logprob[j]
        # silent: NaN in the rows, or a prefix that no kept token agrees with
        if count < 0 or not given > 0.0 or not gold < np.inf:
            continue
        for i in range(count):
            masses[i] *= math.exp(before) / given
        count = add(ids, masses, count, slots, wanted[n], math.exp(gold))
        tail[t] = keep(ids, masses, probs, count, out_ids[t], out_probs[t])
        covered[t] = True
        out_gold[t] = gold


@numba.njit(cache=True, nogil=True)
@no_type_check
def _chain(t, alignment, rows, text):
    """Log-probabilities of the empty tokens before row j's gold, and of the rest."""
    row, case, _, first, stop, straddled, prefix_bytes = alignment
    gold_logprob = rows[3]
    before, behind = 0.0, 0.0
    for i in range(first[t], row[t]):
        before += gold_logprob[i]
    for i in range(row[t] + 1, stop[t]):
        behind += gold_logprob[i]
    if case[t] == STRADDLE:
        behind += _log_prefix_mass(straddled[t], prefix_bytes[t], rows, text)
    return before, behind


@numba.njit(cache=True, nogil=True)
@no_type_check
def _gather(j, wanted, gold_id, rows, seqs, ids, masses, slots):
    """Gathers row j's kept entries but its gold, given the target tokens passed.

    Args:
      j: row of the source.
      wanted: the n target tokens passed inside row j's gold token, and the next one.
      gold_id: row j's gold token.
      rows: as in `project`.
      seqs: offsets and ids of seq(s).
      ids: filled with the next tokens of the entries that agree, but wanted[n].
      masses: filled with theirs.
      slots: as in `project`.

    Returns:
      Count of entries filled, -1 if the row has NaN or inf; mass of the entries that
      agree with the n tokens passed; mass of those that agree with the next one too.
    """
    top_ids, top_probs = rows[1], rows[2]
    offsets, flat = seqs
    n = wanted.size - 1
    count, agreeing, same_next = 0, 0.0, 0.0
    for i in range(top_ids.shape[1]):
        s, mass = top_ids[j, i], np.float64(top_probs[j, i])
        if s < 0:
            break
        if not mass < np.inf:
            return -1, 0.0, 0.0
        if s == gold_id:
            continue
        begin, length = np.int64(0), np.int64(0)  # ids beyond the tokenizer
        if s + 1 < offsets.size:
            begin, length = offsets[s], offsets[s + 1] - offsets[s]
        agrees = length >= n
        for m in range(min(n, length)):
            agrees = agrees and flat[begin + m] == wanted[m]
        if agrees:
            agreeing += mass
        if not agrees or length == n:
            continue
        if flat[begin + n] == wanted[n]:
            same_next += mass
        else:
            count = add(ids, masses, count, slots, flat[begin + n], mass)
    return count, agreeing, same_next


@numba.njit(cache=True, nogil=True)
@no_type_check
def _log_prefix_mass(m, prefix_bytes, rows, text):
    """Log of the mass in row m of the tokens that share the gold's first bytes."""
    token_ids, top_ids, top_probs, gold_logprob = rows
    offsets, flat = text
    gold_id = token_ids[m + 1]
    mass = math.exp(gold_logprob[m])
    known = gold_id < offsets.size - 1
    if known:
        begin = offsets[gold_id]
        known = offsets[gold_id + 1] - begin >= prefix_bytes
    for i in range(top_ids.shape[1]):
        s = top_ids[m, i]
        if s < 0:
            break
        if not top_probs[m, i] < np.inf:
            return np.nan
        if s == gold_id or not known or s >= offsets.size - 1:
            continue
        agrees = offsets[s + 1] - offsets[s] >= prefix_bytes
        for b in range(prefix_bytes):
            agrees = agrees and flat[offsets[s] + b] == flat[begin + b]
        if agrees:
            mass += top_probs[m, i]
    return _log(mass)


@numba.njit(cache=True, nogil=True)
@no_type_check
def fuse(weights, ids, probs, covered, gold_logprob, slots, out):
    """Mixes the rows of s sources; see `fuse.fuse_rows`.

    Args:
      weights: float64 (t, s) or (1, s), not NaN.
      ids: (s, t, k).
      probs: (s, t, k).
      covered: (s, t).
      gold_logprob: (s, t).
      slots: int32, one entry a target id.
      out: ids, probs, tail, covered, gold_logprob, chosen.
    """
    out_ids, out_probs, tail, out_covered, out_gold, chosen = out
    gathered = np.empty(ids.shape[0] * ids.shape[2], np.int32)
    masses = np.empty(gathered.size, np.float64)
    rounded = np.empty(gathered.size, np.float32)
    for t in range(ids.shape[1]):
        row = weights[t if weights.shape[0] > 1 else 0]
        total, greatest, likeliest = 0.0, 0.0, -np.inf
        for s in range(row.size):
            if covered[s, t] and row[s] > 0.0:
                total += row[s]
                likeliest = max(likeliest, gold_logprob[s, t])
                if row[s] > greatest:
                    greatest, chosen[t] = row[s], s
        if total == 0.0:
            continue
        count, gold = 0, 0.0
        for s in range(row.size):
            share = row[s] / total
            if not covered[s, t] or not share > 0.0:
                continue
            if likeliest > -np.inf:
                gold += share * math.exp(gold_logprob[s, t] - likeliest)
            for i in range(ids.shape[2]):
                v = ids[s, t, i]
                if v < 0:
                    break
                count = add(gathered, masses, count, slots, v, share * probs[s, t, i])
        tail[t] = keep(gathered, masses, rounded, count, out_ids[t], out_probs[t])
        out_covered[t] = True
        out_gold[t] = likeliest + _log(gold)


@numba.njit(cache=True, nogil=True)
@no_type_check
def add(ids, masses, count, slots, token, mass):
    """Adds mass to a token of the sparse set; returns the new count."""
    at = slots[token]
    if 0 <= at < count and ids[at] == token:
        masses[at] += mass
        return count
    slots[token] = count
    ids[count] = token
    masses[count] = mass
    return count + 1


@numba.njit(cache=True, nogil=True)
@no_type_check
def keep(ids, masses, probs, count, out_ids, out_probs):
    """Writes the greatest masses by falling prob, ties by rising id; returns the tail.

    `ids` and `probs` are used as scratch. Masses are rounded to float32 before they are
    sorted, so that ties are those a reader sees.
    """
    total = 0.0
    for i in range(count):
        total += masses[i]
    live = 0
    for i in range(count):
        prob = np.float32(masses[i] / max(total, 1.0))  # rounding alone takes it over 1
        if prob > 0.0:
            ids[live], probs[live] = ids[i], prob
            live += 1
    _sort(ids, probs, live)
    tail = 1.0
    for i in range(min(live, out_ids.size)):
        out_ids[i], out_probs[i] = ids[i], probs[i]
        tail -= probs[i]
    return np.float32(max(0.0, tail))


@numba.njit(cache=True, nogil=True)
@no_type_check
def _sort(ids, probs, count):
    """Sorts in place by falling prob, then rising id: Shell's sort, gaps 3^i.

    The entries come nearly sorted, and there are few; no allocation is worth it.
    """
    gap = 1
    while 3 * gap < count // 4:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(gap, count):
            token, prob = ids[i], probs[i]
            j = i
            while j >= gap and (
                probs[j - gap] < prob
                or (probs[j - gap] == prob and ids[j - gap] > token)
            ):
                ids[j], probs[j] = ids[j - gap], probs[j - gap]
                j -= gap
            ids[j], probs[j] = token, prob
        gap //= 3


@numba.njit(cache=True, nogil=True)
@no_type_check
def _log(x):
    """Natural log; -inf at 0, where Python's own raises."""
    return math.log(x) if x > 0.0 else (-np.inf if x == 0.0 else np.nan)
