"""Transfers source rows along a warped path: `exact`, `mined` and `statistics`, mended.

`dtw` pairs tokens by their spelling. Row j stands behind source token j, so it speaks
about target position t only if it stands at the same place of the text::

    speaks(j, t)   source token j ends where target token t does, and both rows predict
                   bytes, or both none (a dummy prefix that stands alone, the EOS)

Of tokens that end at one place the one is a suffix of the other, so this is FuseChat's
suffix relation without its accidents. The strategies use row j at position t if it
speaks and

    exact        t has the one partner j, which spans the same bytes
    mined        t has the one partner j, which spans the same bytes or whose partner
                 in the vocabulary is target token t
    statistics   j is one of the partners of t: 1-1, n-1, 1-n or n-n

and are one-hot on the target's next token g elsewhere. With p the row's probabilities,
s_j its actual next token, and partner(s) a target token or none,

    q(v) = sum of p(s) over the kept s, and s_j, with partner(s) = v

where s_j is g's partner if both span the same bytes. What has no partner is tail.

Mended against the authors' code (`reference_rows` has that): rows teach the next token,
not the current one again; masses that meet are added; what was not kept stays tail; a
row with NaN or inf is not used; rows at another place are not used; the vocabulary map
knows control tokens by role and tokens by their bytes.
"""

import itertools
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from transforms.functional import dtw, kernels, project
from transforms.functional.dtw import Pairing
from transforms.functional.project import Projected, SourceRows

Strategy = Literal["exact", "mined", "statistics"]


@runtime_checkable
class Tokens(Protocol):
    """A window's n tokens, start token in front, and where each ends in its bytes."""

    @property
    def token_ids(self) -> Int32[np.ndarray, " n"]: ...
    @property
    def byte_ends(self) -> Int32[np.ndarray, " n"]: ...


@runtime_checkable
class TokenRows(SourceRows, Tokens, Protocol):
    """A window's tokens and what the model says of them; a `Score` is one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Partners:
    """The target token that stands for each source token.

    Attributes:
      ids: target id of each source id, -1 for none.
      start_ids: the same for a token that begins a window; `ids` again unless exactly
        one of the two tokenizers put a space in front of that window.
    """

    ids: Int32[np.ndarray, " v"]
    start_ids: Int32[np.ndarray, " v"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Transferred:
    """What a strategy says about t target positions.

    Attributes:
      projected: rows over the target's vocabulary; all are covered. `gold_logprob` is
        NaN where nothing that is known of the source's row falls to the next token.
      used: where a source row was used; one-hot elsewhere.
    """

    projected: Projected
    used: Bool[np.ndarray, " t"]


def pair_tokens(
    text: bytes, source: Tokens, target: Tokens, *, strategy: Strategy
) -> Pairing:
    """Pairs a window's tokens, with the order of ties of the strategy's authors.

    Tokens without bytes spell nothing that could be warped. Those in front of the text
    (start token, a dummy prefix that stands alone) are paired one to one, the last with
    the last, behind which the text begins; others (the EOS) have no partner.

    Returns:
      The pairing of all tokens; its cost is that of those with bytes.
    """
    rows, columns = _with_bytes(source), _with_bytes(target)
    pieces, wanted = (
        list(itertools.compress(dtw.cut_pieces(text, one.byte_ends), mask))
        for one, mask in ((source, rows), (target, columns))
    )
    ties: dtw.Ties = "target_first" if strategy == "statistics" else "source_first"
    inner = dtw.pair_pieces(pieces, wanted, ties=ties)
    ahead, before = (np.count_nonzero(one.byte_ends == 0) for one in (source, target))
    shared = min(ahead, before)
    counts = np.zeros(target.token_ids.size, np.int64)
    counts[before - shared : before] = 1
    counts[columns] = inner.partners
    first = np.arange(ahead - shared, ahead)
    sources = np.concatenate([first, np.flatnonzero(rows)[inner.sources]])
    return Pairing(
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        sources=sources.astype(np.int32),
        cost=inner.cost,
    )


def find_rows(
    pairing: Pairing,
    source: Tokens,
    target: Tokens,
    partners: Partners,
    *,
    strategy: Strategy,
) -> Int32[np.ndarray, " t"]:
    """Finds the source row that each target position may use, -1 where there is none.

    Args:
      pairing: of all tokens of both sides, from `pair_tokens`.
      source: tokens of the window.
      target: tokens of the window.
      partners: from the source's vocabulary to the target's.
      strategy: which pairs count.

    Raises:
      ValueError: if the pairing is of other tokens.
    """
    sizes = (source.token_ids.size, target.token_ids.size)
    paired = (int(pairing.sources.max(initial=-1)) + 1, pairing.offsets.size - 1)
    if paired[0] > sizes[0] or paired[1] != sizes[1]:
        raise ValueError(
            f"the pairing must be of {sizes} source and target tokens, got {paired}"
        )
    position = np.repeat(np.arange(sizes[1]), pairing.partners)
    row = pairing.sources.astype(np.int64)
    with_row = (row < sizes[0] - 1) & (position < sizes[1] - 1)
    position, row = position[with_row], row[with_row]
    fits = _speaks(row, position, source.byte_ends, target.byte_ends)
    if strategy != "statistics":
        alike = _starts(source.byte_ends)[row] == _starts(target.byte_ends)[position]
        if strategy == "mined":
            mapped = _look_up(partners.ids, source.token_ids[row])
            alike |= mapped == target.token_ids[position]
        fits &= alike & (pairing.partners[position] == 1)
    found = np.full(max(0, sizes[1] - 1), -1, np.int32)
    found[position[fits][::-1]] = row[fits][::-1]  # of several the first stays
    return found


def transfer_rows(
    row: Int32[np.ndarray, " t"],
    source: TokenRows,
    target: Tokens,
    partners: Partners,
    *,
    k: int,
) -> Transferred:
    """Translates the rows found and keeps the `k` greatest entries of each.

    Args:
      row: from `find_rows`, -1 for none.
      source: the source's tokens and rows.
      target: the target's tokens.
      partners: from the source's vocabulary to the target's.
      k: entries to keep, 1 or more.

    Raises:
      ValueError: if `k` is not positive, or if there is not one row a position.
    """
    positions = max(0, target.token_ids.size - 1)
    if k < 1:
        raise ValueError(f"k must be positive, got {k}")
    if row.size != positions:
        raise ValueError(
            f"there must be {positions} rows, one a position, got {row.size}"
        )
    position = np.flatnonzero(row >= 0)
    known, masses = _known_entries(source, row[position])
    sound = (masses < np.inf).all(axis=1)
    position, known, masses = position[sound], known[sound], masses[sound]
    used = np.zeros(positions, np.bool_)
    used[position] = True
    following = target.token_ids[1:]
    ids = np.full((positions, known.shape[1]), -1, np.int32)
    probs = np.zeros(ids.shape)
    ids[~used, -1], probs[~used, -1] = following[~used], 1.0
    ids[position] = _translate(known, row[position], position, source, target, partners)
    probs[position] = masses
    return Transferred(projected=_add_up(ids, probs, following, k), used=used)


def _speaks(
    row: Int64[np.ndarray, " p"],
    position: Int64[np.ndarray, " p"],
    source_ends: Int32[np.ndarray, " i"],
    target_ends: Int32[np.ndarray, " j"],
) -> Bool[np.ndarray, " p"]:
    """Says whether row and position stand at one place and predict something alike."""
    same_place = source_ends[row] == target_ends[position]
    predicts = source_ends[row + 1] > source_ends[row]
    wanted = target_ends[position + 1] > target_ends[position]
    return same_place & (predicts == wanted)


def _with_bytes(tokens: Tokens) -> Bool[np.ndarray, " n"]:
    return _starts(tokens.byte_ends) < tokens.byte_ends


def _starts(byte_ends: Int32[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
    return np.concatenate([np.zeros(1, np.int32), byte_ends[:-1]])


def _look_up(
    table: Int32[np.ndarray, " v"], ids: Int32[np.ndarray, "*r"]
) -> Int32[np.ndarray, "*r"]:
    """Returns the entries of a table; -1 for ids that are none or lie beyond it."""
    inside = (ids >= 0) & (ids < table.size)
    found = np.full(ids.shape, -1, np.int32)
    found[inside] = table[ids[inside]]
    return found


def _known_entries(
    source: SourceRows, row: Int32[np.ndarray, " r"]
) -> tuple[Int32[np.ndarray, "r e"], Float64[np.ndarray, "r e"]]:
    """Returns ids and probabilities of all that is known of some rows.

    The gold token is last; a kept one is left out, as its logprob was rounded.
    """
    gold_ids = source.token_ids[row + 1][:, None]
    top_ids = source.top_ids[row]
    top_ids = np.where(top_ids == gold_ids, np.int32(-1), top_ids)
    ids = np.concatenate([top_ids, gold_ids], axis=1)
    gold_logprob = source.gold_logprob[row].astype(np.float64)[:, None]
    with np.errstate(over="ignore"):  # inf is dealt with row by row
        masses = [np.exp(source.top_logprobs[row]), np.exp(gold_logprob)]
    return ids, np.concatenate(masses, axis=1)


def _translate(
    ids: Int32[np.ndarray, "r e"],
    row: Int32[np.ndarray, " r"],
    position: Int64[np.ndarray, " r"],
    source: Tokens,
    target: Tokens,
    partners: Partners,
) -> Int32[np.ndarray, "r e"]:
    """Returns each entry's partner; the gold's is the next token if it spans the same.

    Rows that speak stand where the position does, so both next tokens start there.
    """
    stop = source.byte_ends[row + 1]
    found = _look_up(partners.ids, ids)
    begins = (source.byte_ends[row] == 0) & (stop > 0)
    found[begins] = _look_up(partners.start_ids, ids[begins])
    same = stop == target.byte_ends[position + 1]
    found[same, -1] = target.token_ids[position + 1][same]
    return found


def _add_up(
    ids: Int32[np.ndarray, "t e"],
    masses: Float64[np.ndarray, "t e"],
    following: Int32[np.ndarray, " t"],
    k: int,
) -> Projected:
    """Adds masses that meet on one token, and keeps the `k` greatest sums."""
    out = project.project_nothing(ids.shape[0], k=k)
    covered = np.ones(ids.shape[0], np.bool_)
    gold = np.where(ids == following[:, None], masses, 0.0).sum(axis=1)
    with np.errstate(divide="ignore"):
        gold_logprob = np.where(gold > 0.0, np.log(gold), np.nan)
    # a mixture of one source
    kernels.fuse(
        kernels.freeze(np.ones((1, 1)), np.float64),
        ids[None],
        masses[None].astype(np.float32),
        covered[None],
        gold_logprob[None],
        (
            out.ids,
            out.probs,
            out.tail,
            out.covered,
            out.gold_logprob,
            np.empty(ids.shape[0], np.int16),
        ),
    )
    out.gold_logprob[:] = np.minimum(gold_logprob, 0.0)  # rounding takes it over
    return out
