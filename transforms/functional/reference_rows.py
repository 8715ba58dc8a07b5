"""The rows of FuseLLM and FuseChat as their authors' code makes them.

To the index, value and order: pairs of tokens from warped spellings, the usable ones of
them, and the source's kept entries in the target's vocabulary. Of entries that map to
one token the first stays. Where no row is usable stands one entry of logit 1, on the
current token (FuseLLM) or the next (FuseChat).

    exact        FuseLLM "hard": one partner of the same spelling
    mined        FuseLLM "soft": ... or whose mapped token is the target's
    statistics   FuseChat "default" with its matrix: the first partner that ends with
                 the target's piece, or that the target's piece ends with

Under GPT-2-like sources FuseLLM lends the first token the dummy prefix that the target
has. FuseChat compares tokens decoded one by one. `transfer` mends what is wrong here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from transforms.functional import cooccurrence, dtw, project
from transforms.functional.dtw import Pairing
from transforms.functional.project import Projected, SourceRows
from transforms.functional.reference_maps import Marks, Vocabulary
from transforms.functional.transfer import Strategy, Transferred

_DUMMY_PREFIX = "▁"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReferenceRows:
    """Entries of m target positions, end to end.

    Attributes:
      offsets: row t is entries offsets[t]:offsets[t + 1], perhaps none.
      ids: target ids, in the order of the source's row.
      logits: of each.
      used: whether a source row was used.
    """

    offsets: Int64[np.ndarray, " n"]
    ids: Int32[np.ndarray, " e"]
    logits: Float32[np.ndarray, " e"]
    used: Bool[np.ndarray, " m"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lexicon:
    """What the authors look up of a source's and a target's vocabulary.

    Attributes:
      marks: of both.
      source_tokens: vocabulary string of each source id.
      target_tokens: vocabulary string of each target id.
      source_decoded: each source id, decoded alone.
      target_decoded: each target id, decoded alone.
      mapped: target id of each source id: `reference_maps.exact_ids` for "exact",
        `mined_ids` for "mined", `fill_ids` of both for "statistics".
    """

    marks: Marks
    source_tokens: Vocabulary
    target_tokens: Vocabulary
    source_decoded: Sequence[str]
    target_decoded: Sequence[str]
    mapped: Int32[np.ndarray, " v"]
    mined: Mapping[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Writes the map with strings, as "mined" asks for it."""
        mined = {
            self.marks.spell(token): self.target_tokens[target_id]
            for token, target_id in zip(
                self.source_tokens, self.mapped.tolist(), strict=True
            )
            if token is not None and target_id >= 0
        }
        object.__setattr__(self, "mined", mined)


def transfer_window(
    source: SourceRows,
    target: SourceRows,
    lexicon: Lexicon,
    *,
    strategy: Strategy,
    k: int,
) -> Transferred:
    """Transfers a window's rows as the authors would, and spreads all mass over them.

    Their rows have no start token in front: position 0, which it stands at, is neither
    covered nor used. Theirs have a row behind the last token, scores do not: a position
    whose partner is that token is one-hot. Where a row of "exact" is used and keeps
    nothing stands the target's own.

    Args:
      source: the source's tokens and rows.
      target: the target's.
      lexicon: of the two vocabularies.
      strategy: whose way.
      k: entries to keep, no less than either has.
    """
    source_ids, target_ids = source.token_ids[1:], target.token_ids[1:]
    row = _find(source_ids, target_ids, lexicon, strategy)
    current, following = target_ids[:-1], target_ids[1:]
    rows = translate_rows(
        row[:-1],
        source.top_ids[1:],
        source.top_logprobs[1:],
        lexicon.mapped,
        following if strategy == "statistics" else current,
    )
    found = normalize_rows(rows, following, k=k)
    own = normalize_rows(_own_rows(target), following, k=k)
    out = project.project_nothing(max(0, target.token_ids.size - 1), k=k)
    for name in ("ids", "probs", "covered", "gold_logprob"):
        kept, spare = getattr(found, name), getattr(own, name)
        covered = found.covered[:, None] if kept.ndim == 2 else found.covered
        getattr(out, name)[1:] = np.where(covered, kept, spare)
    used = np.zeros(out.covered.size, np.bool_)
    used[1:] = rows.used & found.covered
    return Transferred(projected=out, used=used)


def pair_window(
    source_token_ids: Int32[np.ndarray, " n"],
    target_token_ids: Int32[np.ndarray, " m"],
    lexicon: Lexicon,
) -> Int64[np.ndarray, " c"]:
    """Lists what FuseChat counts of a window; see `cooccurrence.list_pairs`.

    EOS and control tokens are counted, but no padding, which windows do not have: all
    the authors' rows are as long as the longest may be.

    Args:
      source_token_ids: start token in front, which does not count.
      target_token_ids: the same.
      lexicon: of the two vocabularies.
    """
    source, target = source_token_ids[1:], target_token_ids[1:]
    pairing = pair_decoded(
        [lexicon.source_decoded[i] for i in source.tolist()],
        [lexicon.target_decoded[i] for i in target.tolist()],
        lexicon.marks,
    )
    return cooccurrence.list_pairs(pairing, source, target)


def _own_rows(target: SourceRows) -> ReferenceRows:
    """Returns the target's own rows, as they are."""
    row = np.arange(max(0, target.token_ids.size - 2), dtype=np.int32)
    top_ids, logprobs = target.top_ids[1:], target.top_logprobs[1:]
    same = np.arange(1 + top_ids.max(initial=-1), dtype=np.int32)
    return translate_rows(row, top_ids, logprobs, same, target.token_ids[2:])


def pair_spelled(source: Sequence[str], target: Sequence[str], marks: Marks) -> Pairing:
    """Pairs strings of the vocabularies, marks deleted, as FuseLLM does."""
    stripped = [marks.strip(token, "")[0] for token in source]
    wanted = [marks.strip("", token)[1] for token in target]
    return dtw.pair_pieces(stripped, wanted, ties="source_first")


def pair_decoded(source: Sequence[str], target: Sequence[str], marks: Marks) -> Pairing:
    """Pairs tokens decoded one by one, as FuseChat does.

    Marks that decoding left are deleted; where nothing else is in one of the two, they
    are exchanged in the other.
    """
    pieces, places = dtw.number_pieces(source)
    wanted, target_places = dtw.number_pieces(target)
    stripped = [marks.strip(piece, "")[0] for piece in pieces]
    bare = [marks.strip("", piece)[1] for piece in wanted]
    costs = dtw.edit_costs(stripped, bare)
    spelled = dtw.edit_costs([marks.spell(piece) for piece in pieces], wanted)
    empty = np.logical_or.outer([not p for p in stripped], [not p for p in bare])
    costs = np.where(empty, spelled, costs)
    return dtw.warp(places, target_places, costs, ties="target_first")


def find_exact(
    pairing: Pairing, source: Sequence[str], target: Sequence[str], marks: Marks
) -> Int32[np.ndarray, " m"]:
    """Finds the usable source position of each target position, or -1: FuseLLM "hard".

    Args:
      pairing: from `pair_spelled`.
      source: vocabulary string of each source token.
      target: vocabulary string of each target token.
      marks: of the two.
    """
    return find_mined(pairing, source, target, marks, {})


def find_mined(
    pairing: Pairing,
    source: Sequence[str],
    target: Sequence[str],
    marks: Marks,
    mined: Mapping[str, str],
) -> Int32[np.ndarray, " m"]:
    """Finds usable source positions as `find_exact`, and by the map: FuseLLM "soft".

    Args:
      pairing: from `pair_spelled`.
      source: vocabulary string of each source token.
      target: vocabulary string of each target token.
      marks: of the two.
      mined: target string for each source string in the target's spelling.
    """
    only = _only_partner(pairing)
    spelled = _spell_partners(only, source, target, marks)
    alike = [
        s is not None and (s == t or mined.get(s) == t)
        for s, t in zip(spelled, target, strict=True)
    ]
    return np.where(np.array(alike, np.bool_), only, np.int32(-1))


def find_suffixes(
    pairing: Pairing, source: Sequence[str], target: Sequence[str], marks: Marks
) -> Int32[np.ndarray, " m"]:
    """Finds the usable source position of each target position, or -1: FuseChat.

    Args:
      pairing: from `pair_decoded`.
      source: each source token, decoded.
      target: each target token, decoded.
      marks: of the two.
    """
    found = np.full(len(target), -1, np.int32)
    for t, piece in enumerate(target):
        partners = pairing.sources[pairing.offsets[t] : pairing.offsets[t + 1]].tolist()
        for j in partners:
            one, other = marks.spell(source[j]), piece
            if len(partners) > 1:
                one, other = marks.strip(source[j], piece)
            if one.endswith(other) or other.endswith(one):
                found[t] = j
                break
    return found


def translate_rows(
    row: Int32[np.ndarray, " m"],
    top_ids: Int32[np.ndarray, "i k"],
    logits: Float32[np.ndarray, "i k"],
    mapped: Int32[np.ndarray, " v"],
    one_hot: Int32[np.ndarray, " m"],
) -> ReferenceRows:
    """Writes the rows found in the target's vocabulary.

    Args:
      row: source row of each target position, -1 or beyond the last for none.
      top_ids: kept ids of each source row; -1 for none.
      logits: of these, in the order that decides which of equals stays.
      mapped: target id of each source id; -1 leaves an entry out.
      one_hot: the target token that other positions are certain of.
    """
    used = (row >= 0) & (row < len(top_ids))
    ids = np.full((row.size, max(1, top_ids.shape[1])), -1, np.int32)
    values = np.ones(ids.shape, np.float32)
    ids[~used, 0] = one_hot[~used]
    kept = top_ids[row[used]]
    inside = (kept >= 0) & (kept < mapped.size)
    ids[used, : kept.shape[1]] = np.where(inside, mapped[np.where(inside, kept, 0)], -1)
    values[used, : kept.shape[1]] = logits[row[used]]
    stays = (ids >= 0) & ~_repeats(ids)
    offsets = np.concatenate([[0], np.cumsum(stays.sum(axis=1))]).astype(np.int64)
    return ReferenceRows(
        offsets=offsets, ids=ids[stays], logits=values[stays], used=used
    )


def normalize_rows(
    rows: ReferenceRows, next_ids: Int32[np.ndarray, " m"], *, k: int
) -> Projected:
    """Spreads all mass over the kept entries, p = softmax(logits), as the authors do.

    Nothing is tail. A row without entries, of which "hard" makes some, is not covered:
    the authors put the target's own row there.

    Args:
      rows: of m target positions.
      next_ids: the target's actual next tokens.
      k: width of the result, no less than the entries of any row.
    """
    out = project.project_nothing(rows.used.size, k=k)
    count = np.diff(rows.offsets)
    at = np.repeat(np.arange(count.size), count)
    rank = np.arange(at.size) - rows.offsets[:-1][at]
    logits = np.full((count.size, k), -np.inf)
    logits[at, rank] = rows.logits
    greatest = logits.max(axis=1, initial=-np.inf, keepdims=True)
    masses = np.exp(logits - np.where(np.isfinite(greatest), greatest, 0.0))
    masses /= np.maximum(masses.sum(axis=1, keepdims=True), 1e-300)
    out.ids[at, rank] = rows.ids
    out.probs[:] = masses
    out.covered[:] = count > 0
    gold = (out.ids == next_ids[:, None]) & (masses > 0.0)
    out.gold_logprob[gold.any(axis=1)] = np.log(masses[gold])
    return out


def _find(
    source_ids: Int32[np.ndarray, " n"],
    target_ids: Int32[np.ndarray, " m"],
    lexicon: Lexicon,
    strategy: Strategy,
) -> Int32[np.ndarray, " m"]:
    """Pairs two lists of ids and finds the usable source position of each target's."""
    marks = lexicon.marks
    if strategy == "statistics":
        source = [lexicon.source_decoded[i] for i in source_ids.tolist()]
        target = [lexicon.target_decoded[i] for i in target_ids.tolist()]
        return find_suffixes(pair_decoded(source, target, marks), source, target, marks)
    source = [lexicon.source_tokens[i] or "" for i in source_ids.tolist()]
    target = [lexicon.target_tokens[i] or "" for i in target_ids.tolist()]
    pairing = pair_spelled(source, target, marks)
    if strategy == "mined":
        return find_mined(pairing, source, target, marks, lexicon.mined)
    return find_exact(pairing, source, target, marks)


def _only_partner(pairing: Pairing) -> Int32[np.ndarray, " m"]:
    """Returns the partner of each target position that has one alone, else -1."""
    if not pairing.sources.size:
        return np.full(pairing.offsets.size - 1, -1, np.int32)
    first = pairing.sources[pairing.offsets[:-1]]
    return np.where(pairing.partners == 1, first, np.int32(-1))


def _spell_partners(
    only: Int32[np.ndarray, " m"],
    source: Sequence[str],
    target: Sequence[str],
    marks: Marks,
) -> list[str | None]:
    """Writes each only partner with the target's mark, the first with its prefix."""
    spelled = [marks.spell(source[j]) if j >= 0 else None for j in only.tolist()]
    if spelled and spelled[0] is not None and marks.lends_prefix:
        lacks = not spelled[0].startswith(_DUMMY_PREFIX)
        if lacks and target[0].startswith(_DUMMY_PREFIX):
            spelled[0] = _DUMMY_PREFIX + spelled[0]
    return spelled


def _repeats(ids: Int32[np.ndarray, "m k"]) -> Bool[np.ndarray, "m k"]:
    """Says which entries stand in their row before."""
    order = np.argsort(ids, axis=1, kind="stable")
    ranked = np.take_along_axis(ids, order, axis=1)
    again = np.zeros(ids.shape, np.bool_)
    np.put_along_axis(again, order[:, 1:], ranked[:, 1:] == ranked[:, :-1], axis=1)
    return again
