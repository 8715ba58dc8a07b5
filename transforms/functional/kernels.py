"""Compiled inner loops of `align`, `project` and `fuse`.

They live in one file because numba's cache is keyed by the file of the outer function
alone: a kernel that called into another file would go stale when that file changes.
What they compute is said in the modules that call them; here stands only how.

Whatever takes arrays inside a loop is inlined and has loops without `break`: then numba
drops the atomic reference counts of these arrays, dearer than all the arithmetic.

One row's masses are gathered in a small hash table that is never cleared: `slots[h]`
says where a token hashed to h may lie in `ids[:count]`, and `homes` confirms that it
was put there in this row (the sparse set of Briggs and Torczon, 1993).
"""

import math
from typing import no_type_check

import numba
import numpy as np
from numpy.typing import DTypeLike

_compiled = numba.njit(cache=True, nogil=True)
_inlined = numba.njit(cache=True, nogil=True, forceinline=True)

ABSENT, WHOLE, INSIDE, CHAIN, STRADDLE = range(5)  # align.py says what they are

Seqs = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Offsets of rows laid end to end, these, and the first of each row or -1."""

Text = tuple[np.ndarray, np.ndarray]
"""Offsets of tokens' bytes laid end to end, and these."""


def freeze(array: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """Returns a contiguous, read-only view: one array type, so one compilation."""
    view = np.ascontiguousarray(array, dtype).view()
    view.flags.writeable = False
    return view


@_compiled
@no_type_check
def sweep(target_ends, source_ends, eos, out):
    """Walks both tokenizations once; `out` (7, t) holds Alignment's fields in order."""
    opened, passed, j = -1, 0, 0
    paired = 0  # empty target tokens at this border that have a source row
    for t in range(target_ends.size - 1 - eos):
        a, b = target_ends[t], target_ends[t + 1]
        if t > 0 and a > target_ends[t - 1]:
            paired = 0
        if a == b:
            opened = -1
            i = _empty_at_border(source_ends, eos, j, a, paired)
            if i >= 0:
                out[0, t], out[1, t], out[3, t], out[4, t] = i, WHOLE, i, i + 1
                paired += 1
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
        out[3, t] += paired if passed == 0 else 0
    if eos:
        t, j = target_ends.size - 2, source_ends.size - 2
        paired = paired if t > 0 and target_ends[t] == target_ends[t - 1] else 0
        out[0, t], out[1, t], out[2, t] = j, WHOLE, 0
        out[3, t], out[4, t] = _first_at_border(source_ends, j) + paired, j + 1


@_inlined
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


@_inlined
@no_type_check
def _empty_at_border(source_ends, eos, j, a, paired):
    """The row behind `paired` others that predicts an empty token at border a, or -1.

    It lies at row j or behind it; the EOS is no empty token.
    """
    rows = source_ends.size - 1 - eos
    while j < rows and source_ends[j] < a:
        j += 1
    j += paired
    empty = j < rows and source_ends[j] == a and source_ends[j + 1] == a
    return j if empty else -1


@_inlined
@no_type_check
def _first_at_border(source_ends, j):
    """The first row at row j's border: those before j predict empty tokens."""
    while j > 0 and source_ends[j - 1] == source_ends[j]:
        j -= 1
    return j


@_compiled
@no_type_check
def project(alignment, rows, mid, start, text, target_ids, out):
    """Projects every covered position; the arguments are tuples of arrays.

    Args:
      alignment: row, case, passed, first, stop, straddled, prefix_bytes.
      rows: token_ids, top_ids, top_probs, gold_logprob of the source.
      mid: offsets and ids of seq(s) in running text, and the first id of each or -1.
      start: the same for the token that begins this window.
      text: byte offsets, bytes of the source's tokens.
      target_ids: the target's tokens.
      out: ids, probs, tail, covered, gold_logprob.
    """
    row, case, passed = alignment[:3]
    top_ids, gold_logprob = rows[1], rows[3]
    out_ids, out_probs, tail, covered, out_gold = out
    table = _make_table(top_ids.shape[1] + 1)
    masses = table[1]
    before, behind = _chain(alignment, rows, text)
    for t in range(row.size):
        j, n = row[t], passed[t]
        if j < 0:
            continue
        _add(table, 0, target_ids[t + 1], 0.0)
        if j == 0 and t == n:
            count, given = _gather(j, t, n, rows, start, target_ids, table)
        else:
            count, given = _gather(j, t, n, rows, mid, target_ids, table)
        own = math.exp(gold_logprob[j])
        # at n = 0 nothing is conditioned on, so what was never kept counts too
        given = given + own if n > 0 else 1.0
        gold = before[t] + behind[t] + gold_logprob[j]
        if case[t] == INSIDE:
            masses[0] += own
            gold = before[t] + _log(masses[0])
        else:
            masses[0] = own * _exp(behind[t])
        if n > 0:
            gold -= _log(given)
        # silent: NaN in the rows, or a prefix that no kept token agrees with
        if count < 0 or not given > 0.0 or not gold < np.inf:
            continue
        tail[t] = _keep(table, count, _exp(before[t]) / given, t, out_ids, out_probs)
        covered[t] = True
        out_gold[t] = gold


@_inlined
@no_type_check
def _chain(alignment, rows, text):
    """Log-probabilities of the empty tokens before each row's gold, and of the rest."""
    row, case, _, first, stop, straddled, prefix_bytes = alignment
    gold_logprob = rows[3]
    before, behind = np.zeros(row.size), np.zeros(row.size)
    for t in range(row.size):
        for i in range(first[t], row[t]):
            before[t] += gold_logprob[i]
        for i in range(row[t] + 1, stop[t]):
            behind[t] += gold_logprob[i]
        if case[t] == STRADDLE:
            behind[t] += _log_prefix_mass(straddled[t], prefix_bytes[t], rows, text)
    return before, behind


@_inlined
@no_type_check
def _gather(j, t, n, rows, seqs, target_ids, table):
    """Gathers what row j's kept entries but its gold say of target position t.

    Of the entries whose seqs begin with the n target tokens passed inside row j's gold
    token, it gathers the tokens that follow there.

    Returns:
      Count of tokens in the table, -1 if the row has NaN or inf; mass of the entries
      that agree with the n tokens (0 for n = 0, where all do).
    """
    token_ids, top_ids, top_probs, _ = rows
    offsets, flat, firsts = seqs
    gold_id = token_ids[j + 1]
    count, agreeing, sound = 1, 0.0, True
    for i in range(top_ids.shape[1]):
        s, mass = top_ids[j, i], np.float64(top_probs[j, i])
        sound = sound and mass < np.inf
        # no id, the gold token, or an id beyond the tokenizer
        if s < 0 or s == gold_id or s >= firsts.size:
            continue
        follower = firsts[s]
        if n > 0:
            begin, length = offsets[s], offsets[s + 1] - offsets[s]
            agrees = length >= n
            for m in range(min(n, length)):
                agrees = agrees and flat[begin + m] == target_ids[t - n + 1 + m]
            agreeing += mass if agrees else 0.0
            follower = flat[begin + n] if agrees and length > n else -1
        if follower >= 0:
            count = _add(table, count, follower, mass)
    count = count if sound else -1
    return count, agreeing


@_inlined
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
        agrees = known and s >= 0 and s != gold_id and s + 1 < offsets.size
        if agrees:
            agrees = offsets[s + 1] - offsets[s] >= prefix_bytes
        if agrees:
            for b in range(prefix_bytes):
                agrees = agrees and flat[offsets[s] + b] == flat[begin + b]
        if agrees or not top_probs[m, i] < np.inf:
            mass += top_probs[m, i]
    return _log(mass)


@_compiled
@no_type_check
def fuse(weights, ids, probs, covered, gold_logprob, out):
    """Mixes the rows of s sources; see `fuse.fuse_rows`.

    Args:
      weights: float64 (t, s) or (1, s), not NaN.
      ids: (s, t, k).
      probs: (s, t, k).
      covered: (s, t).
      gold_logprob: (s, t).
      out: ids, probs, tail, covered, gold_logprob, chosen.
    """
    out_ids, out_probs, tail, out_covered, out_gold, chosen = out
    table = _make_table(ids.shape[0] * ids.shape[2])
    for t in range(ids.shape[1]):
        w = t if weights.shape[0] > 1 else 0
        total, greatest, likeliest, known = 0.0, 0.0, -np.inf, True
        for s in range(ids.shape[0]):
            if covered[s, t] and weights[w, s] > 0.0:
                total += weights[w, s]
                known = known and not math.isnan(gold_logprob[s, t])
                likeliest = max(likeliest, gold_logprob[s, t])
                if weights[w, s] > greatest:
                    greatest, chosen[t] = weights[w, s], s
        if total == 0.0:
            continue
        count, gold = 0, 0.0
        for s in range(ids.shape[0]):
            share = weights[w, s] / total if covered[s, t] else 0.0
            if not share > 0.0:
                continue
            if likeliest > -np.inf:
                gold += share * _exp(gold_logprob[s, t] - likeliest)
            for i in range(ids.shape[2]):
                if ids[s, t, i] >= 0:
                    count = _add(table, count, ids[s, t, i], share * probs[s, t, i])
        tail[t] = _keep(table, count, 1.0, t, out_ids, out_probs)
        out_covered[t] = True
        out_gold[t] = likeliest + _log(gold) if known else np.nan


@_inlined
@no_type_check
def _make_table(capacity):
    """Returns ids, masses, homes (of each token) and slots (a power of two of them)."""
    n_slots = 4
    while n_slots < 2 * capacity:
        n_slots *= 2
    return (
        np.empty(capacity, np.int32),
        np.empty(capacity, np.float64),
        np.empty(capacity, np.int32),
        np.zeros(n_slots, np.int32),
    )


@_inlined
@no_type_check
def _add(table, count, token, mass):
    """Adds mass to a token; returns the new count of tokens."""
    ids, masses, homes, slots = table
    # Knuth's multiplicative hash; the low bits of a product are its poorest
    h = ((token * 2654435761) >> 12) & (slots.size - 1)
    at = slots[h]
    while at < count and homes[at] == h and ids[at] != token:
        h = (h + 1) & (slots.size - 1)
        at = slots[h]
    if at < count and homes[at] == h:
        masses[at] += mass
    else:
        slots[h], homes[count] = count, h
        ids[count], masses[count] = token, mass
        count += 1
    return count


@_inlined
@no_type_check
def _keep(table, count, scale, t, out_ids, out_probs):
    """Writes the greatest masses by falling prob, ties by rising id; returns the tail.

    Masses are scaled and rounded to float32 before they are compared, so that ties are
    those a reader sees. The entries come nearly sorted: insertion is the fastest.
    """
    ids, masses = table[:2]
    total = 0.0
    for i in range(count):
        total += masses[i]
    scale /= max(total * scale, 1.0)  # rounding alone takes it over 1
    kept, k, tail = 0, out_ids.shape[1], 1.0
    for i in range(count):
        token, prob = ids[i], np.float32(masses[i] * scale)
        j = kept
        while j > 0 and (
            out_probs[t, j - 1] < prob
            or (out_probs[t, j - 1] == prob and out_ids[t, j - 1] > token)
        ):
            if j < k:
                out_ids[t, j], out_probs[t, j] = out_ids[t, j - 1], out_probs[t, j - 1]
            j -= 1
        if j < k and prob > 0.0:
            out_ids[t, j], out_probs[t, j] = token, prob
            kept = min(kept + 1, k)
    for i in range(kept):
        tail -= out_probs[t, i]
    return np.float32(max(0.0, tail))


@_inlined
@no_type_check
def _log(x):
    """Natural log; -inf at 0, where Python's own raises."""
    return math.log(x) if x > 0.0 else (-np.inf if x == 0.0 else np.nan)


@_inlined
@no_type_check
def _exp(x):
    """Returns e to the x; x is 0 nearly always, and then it costs nothing."""
    return math.exp(x) if x != 0.0 else 1.0
