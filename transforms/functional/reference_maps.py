"""The token maps of FuseLLM and FuseChat as their authors' code makes them.

They compare spellings: strings of the vocabularies, with the mark of a word's beginning
("Ġ", "▁") exchanged or deleted. So a single byte or a control token is a string like
any other, and maps to whatever is spelled nearest. `token_map` has the mended maps;
these are for `reference` alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64
from rapidfuzz.distance import Levenshtein

from transforms.functional import edit_distance

Vocabulary = Sequence[str | None]
"""String of each id; None for an id without a token."""

_CONTAINED = 0.1
"""What FuseChat multiplies a distance by where one string contains the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """What a source and a target write for a space at the beginning of a word.

    Attributes:
      source: such as "Ġ".
      target: such as "▁".
      lends_prefix: whether FuseLLM lends the source's first token the dummy prefix that
        the target's has: if the source is GPT-2's or GPT-NeoX's, which have none.
    """

    source: str
    target: str
    lends_prefix: bool

    def spell(self, token: str) -> str:
        """Writes a source token with the target's mark."""
        return token.replace(self.source, self.target)

    def strip(self, source: str, target: str) -> tuple[str, str]:
        """Deletes the marks of a source and a target token."""
        return source.replace(self.source, ""), target.replace(self.target, "")

    def strip_words(self, source: str, target: str) -> tuple[str, str]:
        """Deletes the marks, but exchanges them where one token is nothing but marks.

        As FuseChat does.
        """
        one, other = self.strip(source, target)
        return (one, other) if one and other else (self.spell(source), target)


def exact_ids(
    source: Vocabulary, target: Vocabulary, marks: Marks
) -> Int32[np.ndarray, " v"]:
    """Maps every source token to the target token of the same spelling, or to -1."""
    known = number_tokens(target)
    found = [-1 if t is None else known.get(marks.spell(t), -1) for t in source]
    return np.array(found, np.int32)


def mined_ids(
    source: Vocabulary, target: Vocabulary, marks: Marks
) -> Int32[np.ndarray, " v"]:
    """Maps every source token to the target token at the least edit distance (MinED).

    FuseLLM's `vocab_mapping`: between strings in the target's spelling, an equal one at
    once; ties go to the lowest id. An id without a token maps to -1.
    """
    known = number_tokens(target)
    ids = list(known.values())
    spelled = [None if token is None else marks.spell(token) for token in source]
    unknown = sorted({s for s in spelled if s is not None and s not in known})
    places, _ = edit_distance.nearest(unknown, list(known))  # the first of equals
    nearest = {s: ids[place] for s, place in zip(unknown, places.tolist(), strict=True)}
    found = {**nearest, **known}
    return np.array([-1 if s is None else found[s] for s in spelled], np.int32)


def statistical_ids(
    source: Vocabulary,
    target: Vocabulary,
    marks: Marks,
    *,
    source_ids: Int32[np.ndarray, " c"],
    target_ids: Int32[np.ndarray, " c"],
    counts: Int64[np.ndarray, " c"],
    unseen: int,
    roles: Mapping[int, int],
) -> Int32[np.ndarray, " v"]:
    """Maps every source token by how often it was paired with target tokens (MS).

    FuseChat's `token_align_mapping`. Of the target tokens p that a source token s was
    paired with, the one with the least

        sigmoid(count(s, p)) * d(s, p) * (0.1 if one contains the other, else 1)

    with d Levenshtein's distance; ties go to the lowest id. So a pair is held off, by
    up to a half, for being frequent.

    Args:
      source: strings of the source's ids.
      target: strings of the target's ids.
      marks: of the two.
      source_ids: of each pair that was seen.
      target_ids: of each pair.
      counts: target positions at which the pair was seen.
      unseen: what source tokens without a pair map to: the target's unk, or its EOS.
      roles: what control tokens map to whatever was seen: begin and end.
    """
    weighted = np.array(
        [
            _distance(*marks.strip_words(source[s] or "", target[p] or ""))
            for s, p in zip(source_ids.tolist(), target_ids.tolist(), strict=True)
        ]
    )
    weighted *= 1.0 / (1.0 + np.exp(-counts.astype(np.float64)))
    order = np.lexsort((target_ids, weighted, source_ids))
    seen, first = np.unique(source_ids[order], return_index=True)
    found = np.full(len(source), unseen, np.int32)
    found[seen] = target_ids[order][first]
    for source_id, target_id in roles.items():
        found[source_id] = target_id
    return found


def fill_ids(
    exact: Int32[np.ndarray, " v"], statistical: Int32[np.ndarray, " v"]
) -> Int32[np.ndarray, " v"]:
    """Takes the map by statistics where there is no token of the same spelling."""
    return np.where(exact >= 0, exact, statistical)


def number_tokens(vocabulary: Vocabulary) -> dict[str, int]:
    """Returns the id of every string."""
    return {token: i for i, token in enumerate(vocabulary) if token is not None}


def _distance(one: str, other: str) -> float:
    contained = one in other or other in one
    return Levenshtein.distance(one, other) * (_CONTAINED if contained else 1.0)
