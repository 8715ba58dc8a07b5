"""Tell kept ids by what a row of tokens has shown before.

What may come after a token is much the same each time: the recall list of a token
holds the ids kept when it was last read, newest first. So a position p tells its kept
ids in three ways::

    the token that does come next    by its rank, once a position (`places`)
    an entry of the recall list      by its place there, and it is taken out (`names`)
    any other                        by its id (`spelt`), marked in `flags`

After each position its ids go to the front of the list of `token_ids[p]`, whose oldest
fall out. Lists are shared by tokens with equal low bits, which costs little and bounds
the memory.
"""

from typing import no_type_check

import numba
import numpy as np

DEPTH = 32  # entries of a recall list: 48 gain 0.2 % and cost time
SLOTS = 1024  # recall lists, a power of two
NOWHERE = 255  # place of a next token that is not kept


@numba.njit(cache=True, nogil=True)
@no_type_check
def name_ids(token_ids, counts, ids, places, flags, names, spelt):
    """Fills `places` (m,), `flags` (k / 8, m), zero before, `names` and `spelt`.

    m is the number of positions with a count. Returns how many names and how many
    spelt ids there are.
    """
    lists = np.full((SLOTS, DEPTH), -1, np.int32)
    m, n_names, n_spelt = 0, 0, 0
    for t in range(counts.size):
        if counts[t] == 0:
            continue
        recall = lists[token_ids[t] & (SLOTS - 1)]
        following = token_ids[t + 1] if t + 1 < token_ids.size else -1
        places[m] = NOWHERE
        for i in range(counts[t]):
            place = _find(recall, ids[t, i])
            if place >= 0:
                _take(recall, place)
            if ids[t, i] == following and places[m] == NOWHERE:
                places[m] = i
            elif place >= 0:
                names[n_names] = place
                n_names += 1
            else:
                flags[i >> 3, m] |= 1 << (i & 7)
                spelt[n_spelt] = ids[t, i]
                n_spelt += 1
        _remember(recall, ids[t], counts[t])
        m += 1
    return n_names, n_spelt


@numba.njit(cache=True, nogil=True)
@no_type_check
def recall_ids(token_ids, counts, places, flags, names, spelt, ids):
    """Fills `ids` (t, k), all -1 before, from what `name_ids` filled.

    Returns whether names and spelt ids were used up and could be followed.
    """
    lists = np.full((SLOTS, DEPTH), -1, np.int32)
    m, n_names, n_spelt = 0, 0, 0
    for t in range(counts.size):
        if counts[t] == 0:
            continue
        recall = lists[token_ids[t] & (SLOTS - 1)]
        for i in range(counts[t]):
            if places[m] == i:
                if t + 1 == token_ids.size:
                    return False
                ids[t, i] = token_ids[t + 1]
                place = _find(recall, ids[t, i])
                if place >= 0:
                    _take(recall, place)
            elif flags[i >> 3, m] >> (i & 7) & 1:
                if n_spelt == spelt.size:
                    return False
                ids[t, i] = spelt[n_spelt]
                n_spelt += 1
            else:
                if n_names == names.size or names[n_names] >= DEPTH:
                    return False
                place = names[n_names]
                ids[t, i] = recall[place]
                _take(recall, place)
                n_names += 1
                if ids[t, i] < 0:
                    return False
        _remember(recall, ids[t], counts[t])
        m += 1
    return n_names == names.size and n_spelt == spelt.size


@numba.njit(cache=True, nogil=True)
@no_type_check
def _find(recall, token):
    for j in range(DEPTH):
        if recall[j] == token:
            return j
    return -1


@numba.njit(cache=True, nogil=True)
@no_type_check
def _take(recall, place):
    for j in range(place, DEPTH - 1):
        recall[j] = recall[j + 1]
    recall[DEPTH - 1] = -1


@numba.njit(cache=True, nogil=True)
@no_type_check
def _remember(recall, ids, count):
    kept = min(count, DEPTH)
    for j in range(DEPTH - 1, kept - 1, -1):
        recall[j] = recall[j - kept]
    for j in range(kept):
        recall[j] = ids[j]
