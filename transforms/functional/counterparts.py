"""Chooses the one target token that stands for a source token; makes a `TokenMap`.

In this order:

    bytes       the target's token of the same bytes
    role        begin, end, padding, unknown; never by spelling
    then, by strategy
    first       the first token of the target's own tokenization of these bytes
    edit        mined: the target token at the least edit distance; ties: lowest id.
                What shares nothing with the nearest, as "桜" with any token of a target
                that spells it in bytes, goes as `first` does
    statistics  the target token that stood beside it most often in a corpus; ties: edit
                distance, then lowest id. What was never seen goes as `first` does
    none        nothing: a control token without a partner, an id without a token

Distances are Levenshtein's, in characters of what tokens stand for inside running text:
a space is a character, and so is each byte that is no UTF-8 by itself. Of several
target tokens with the same bytes only the one that the target writes is a candidate,
control tokens never.

Wan et al. 2024 (arXiv 2401.10491, "MinED") measure between spellings, where a byte and
a control token are strings like others; theirs maps a new line to "▁". FuseChat (arXiv
2402.16107, "MS") weighs edit distance by a rising function of the count; here the count
alone decides.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int32, UInt8

from schemas.errors import SchemaError
from transforms.functional import edit_distance, vocabulary
from transforms.functional.cooccurrence import Counts
from transforms.functional.token_map import (
    BYTES,
    EDIT,
    FIRST,
    NONE,
    ROLE,
    STATISTICS,
    TokenMap,
)
from transforms.functional.vocabulary import TokenizerLike, VocabularyMap


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Settled:
    """A pair of tokenizers, and what needs no strategy.

    Attributes:
      source: the source.
      target: the target.
      known: the target's token of some bytes, by these; no control token.
      usable: which target ids may be chosen: those that hold text and have a logit.
      target_ids: target ids so far, -1 = none.
      how: what was done so far.
      open_ids: source ids that hold text and have no target yet.
    """

    source: TokenizerLike
    target: TokenizerLike
    known: dict[bytes, int]
    usable: Bool[np.ndarray, " w"]
    target_ids: Int32[np.ndarray, " v"]
    how: UInt8[np.ndarray, " v"]
    open_ids: Int32[np.ndarray, " u"]


def build_first(
    source: TokenizerLike, target: TokenizerLike, *, target_width: int | None = None
) -> TokenMap:
    """Maps each token to the first that the target would write in its place.

    Args:
      source: the source's tokenizer.
      target: the target's.
      target_width: logits of the target model, where they may be fewer than its
        tokenizer has ids: what lies beyond is never chosen.
    """
    settled = _settle(source, target, target_width)
    return _complete(settled, "first", (_firsts(settled), FIRST))


def build_mined(
    source: TokenizerLike, target: TokenizerLike, *, target_width: int | None = None
) -> TokenMap:
    """Maps each token to the nearest of the target's by edit distance.

    Args:
      source: the source's tokenizer.
      target: the target's.
      target_width: as of `build_first`.
    """
    settled = _settle(source, target, target_width)
    pieces = sorted(settled.known, key=lambda piece: settled.known[piece])
    if not pieces:
        return _complete(settled, "mined")
    ids = np.array([settled.known[piece] for piece in pieces], np.int32)
    queries = _texts(source, settled.open_ids)
    places, apart = edit_distance.nearest(queries, [text_of(p) for p in pieces])
    kept = apart < np.array([len(text) for text in queries])
    found = np.where(kept, ids[places], np.int32(-1))
    return _complete(settled, "mined", (found, EDIT), (_firsts(settled), FIRST))


def build_statistics(
    source: TokenizerLike,
    target: TokenizerLike,
    counts: Counts,
    *,
    fingerprint: str | None,
    target_width: int | None = None,
) -> TokenMap:
    """Maps each token to the one that most often stood beside it in a corpus.

    Args:
      source: the source's tokenizer.
      target: the target's.
      counts: how often tokens stood beside each other; no control tokens.
      fingerprint: of these counts; None where nothing was counted.
      target_width: as of `build_first`.
    """
    settled = _settle(source, target, target_width)
    chosen = _most_frequent(settled, counts)
    return _complete(
        settled,
        "statistics",
        (chosen, STATISTICS),
        (_firsts(settled), FIRST),
        counts=fingerprint,
    )


def beginning(made: TokenMap, pairs: VocabularyMap) -> Int32[np.ndarray, " v"]:
    """Returns the counterpart of each source token that begins a window.

    It matters where exactly one of the two puts a space in front of a window: "▁The"
    stands for "The" then. Where the target has a token of just these bytes it is taken,
    else that of inside running text. If tokenizers begin texts alike in general, there
    is no table of what a token stands for where they do not, and no counterpart.

    Args:
      made: one target token for each source token.
      pairs: sequences of target tokens, of the same pair.

    Raises:
      SchemaError: if the two maps are of different tokenizers.
    """
    ours, theirs = (
        (one.source_fingerprint, one.target_fingerprint) for one in (made, pairs)
    )
    if ours != theirs:
        raise SchemaError(
            f"token map and vocabulary map must be of the same tokenizers, got {ours}"
            f" and {theirs}; make both again"
        )
    if pairs.start_offsets is None:
        return np.full(made.source_size, -1, np.int32)
    offsets, _, firsts = pairs.start
    return np.where(np.diff(offsets) == 1, firsts, made.target_ids)


def text_of(piece: bytes) -> str:
    """Returns the text of a token; a byte that is no UTF-8 as a lone surrogate."""
    return piece.decode("utf-8", "surrogateescape")


def _settle(
    source: TokenizerLike, target: TokenizerLike, target_width: int | None
) -> _Settled:
    """Maps what has the same bytes, or the same role; all where the pair is one."""
    width = target.size if target_width is None else min(target_width, target.size)
    ids = np.full(source.size, -1, np.int32)
    how = np.full(source.size, NONE, np.uint8)
    pieces = source.token_bytes
    holds_text = np.array([bool(piece) for piece in pieces], np.bool_)
    usable = np.array([bool(piece) for piece in target.token_bytes], np.bool_)
    usable[width:] = False
    known = {p: i for p, i in vocabulary.ids_by_bytes(target).items() if usable[i]}
    if source.fingerprint == target.fingerprint:
        ids[:] = np.arange(source.size)
        how[:] = np.where(holds_text, BYTES, ROLE)
    else:
        for s, piece in enumerate(pieces):
            if piece in known:
                ids[s], how[s] = known[piece], BYTES
        for s, partners in vocabulary.pair_roles(source, target).items():
            ids[s], how[s] = (partners[0], ROLE) if partners else (-1, NONE)
            holds_text[s] = False
    beyond = ids >= width
    ids[beyond], how[beyond] = -1, NONE
    open_ids = np.flatnonzero(holds_text & (ids < 0)).astype(np.int32)
    return _Settled(
        source=source,
        target=target,
        known=known,
        usable=usable,
        target_ids=ids,
        how=how,
        open_ids=open_ids,
    )


def _firsts(settled: _Settled) -> Int32[np.ndarray, " u"]:
    """Returns the first token of the target's tokenization of each open one, or -1."""
    pieces = [settled.source.token_bytes[s] or b"" for s in settled.open_ids]
    seqs = vocabulary.spell(pieces, {}, settled.known, settled.target)
    firsts = np.array([seq[0] if seq else -1 for seq in seqs], np.int32)
    return np.where(settled.usable[firsts] & (firsts >= 0), firsts, np.int32(-1))


def _most_frequent(settled: _Settled, counts: Counts) -> Int32[np.ndarray, " u"]:
    """Returns the most frequent neighbor of each open token, or -1."""
    known = settled.usable[counts.target_ids]
    fresh = known & np.isin(counts.source_ids, settled.open_ids)
    sources, targets = counts.source_ids[fresh], counts.target_ids[fresh]
    often = counts.counts[fresh]
    most = np.zeros(settled.source.size, np.int64)
    np.maximum.at(most, sources, often)
    best = often == most[sources]
    sources, targets = sources[best], targets[best]
    apart = edit_distance.distances(
        _texts(settled.source, sources), _texts(settled.target, targets)
    )
    order = np.lexsort((targets, apart, sources))
    tied, first = np.unique(sources[order], return_index=True)
    chosen = np.full(settled.source.size, -1, np.int32)
    chosen[tied] = targets[order[first]]
    return chosen[settled.open_ids]


def _texts(own: TokenizerLike, ids: Int32[np.ndarray, " n"]) -> list[str]:
    return [text_of(own.token_bytes[i] or b"") for i in ids]


def _complete(
    settled: _Settled,
    strategy: str,
    *choices: tuple[Int32[np.ndarray, " u"], int],
    counts: str | None = None,
) -> TokenMap:
    """Gives each open token the first target that a choice has for it."""
    ids, how = settled.target_ids.copy(), settled.how.copy()
    chosen = np.full(settled.open_ids.size, -1, np.int32)
    ways = np.full(settled.open_ids.size, NONE, np.uint8)
    for choice, way in choices:
        fresh = (chosen < 0) & (choice >= 0)
        chosen[fresh], ways[fresh] = choice[fresh], way
    ids[settled.open_ids], how[settled.open_ids] = chosen, ways
    apart = np.full(ids.size, -1, np.int32)
    apart[how == BYTES] = 0
    guessed = np.flatnonzero(how > ROLE).astype(np.int32)
    apart[guessed] = edit_distance.distances(
        _texts(settled.source, guessed), _texts(settled.target, ids[guessed])
    )
    return TokenMap(
        source_fingerprint=settled.source.fingerprint,
        target_fingerprint=settled.target.fingerprint,
        target_size=settled.target.size,
        strategy=strategy,
        counts=counts,
        target_ids=ids,
        distances=apart,
        how=how,
    )
