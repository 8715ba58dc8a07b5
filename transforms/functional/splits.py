"""Which documents train, which are kept apart, and which come too near to those.

A document's split depends on its text alone, so copies never end up on both sides.
Near copies are found by shingles, runs of 13 words (as in the contamination studies
of GPT-3, Brown et al. 2020, appendix C).
"""

import hashlib
import itertools
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64, UInt64

from schemas.errors import SchemaError

WORDS = 13
"""Words in a shingle."""

NEAR = 0.5
"""Share of shingles from which on two documents are near copies."""

_PART_CHARACTERS = 1 << 18
_PART_WORDS = 1 << 15
_SPACE = re.compile(r"\s+")
_NAME = re.compile(r"[a-z0-9_]+")
# scripts without spaces have a letter where others have a word: Thai to Lao, Burmese,
# Khmer, Chinese characters and Japanese syllables
_WORD = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
    "|[^\\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]+"
)
_ASCII_WORD = re.compile(r"\w+", re.ASCII)


def parse_splits(text: str) -> dict[str, float]:
    """Reads shares of splits from `name=share,name=share`.

    Args:
      text: names of letters a-z, digits and underscores; shares in (0, 1] that sum
        to 1.

    Returns:
      The shares, in the order written.

    Raises:
      ValueError: if `text` is anything else.

    Example:
      >>> parse_splits("base=.5,dev=.5")
      {'base': 0.5, 'dev': 0.5}
    """
    shares: dict[str, float] = {}
    for entry in text.split(","):
        name, equals, share = (part.strip() for part in entry.partition("="))
        if not equals or not _NAME.fullmatch(name):
            raise ValueError(
                "splits must read name=share,name=share with names of a-z, 0-9 and "
                f"_, got {entry!r} in {text!r}"
            )
        if name in shares:
            raise ValueError(f"a split must be named once, got {name!r} twice")
        shares[name] = _share(name, share)
    if not math.isclose(total := math.fsum(shares.values()), 1, abs_tol=1e-9):
        raise ValueError(f"shares of splits must sum to 1, got {total:g} from {text!r}")
    return shares


def normalize_text(text: str) -> str:
    r"""Makes texts equal that differ in letter case, white space or width alone.

    Applies NFKC, lower case, and one space for each run of white space, none at the
    ends.

    >>> normalize_text(" One\t ﬁne  Day\n")
    'one fine day'
    """
    normal = unicodedata.normalize("NFKC", text).lower()
    return " ".join(" ".join(part.split()) for part in _parts(normal))


def _parts(text: str) -> Iterator[str]:
    """Cuts text at white space, so that few of its words are strings at once.

    A long document's words, each a string of its own, are 18 times the document.
    """
    start = 0
    while found := _SPACE.search(text, start + _PART_CHARACTERS):
        if part := text[start : found.start()].strip():
            yield part
        start = found.end()
    if part := text[start:].strip():
        yield part


def assign_split(text: str, shares: Mapping[str, float]) -> str:
    """Assigns a document to a split by the hash of its normalized text.

    Args:
      text: the whole document.
      shares: from `parse_splits`; order counts.

    Returns:
      The name of its split.
    """
    digest = hashlib.blake2b(normalize_text(text).encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "little") / 2**64
    bound = 0.0
    for name, share in shares.items():
        bound += share
        if place < bound:
            return name
    return name  # shares sum to 1 up to rounding


def shingles(text: str, n_words: int = WORDS) -> UInt64[np.ndarray, " s"]:
    """Hashes every run of `n_words` words of a document.

    Words are runs of letters and digits of the normalized text, and single
    characters in scripts that put no space between words. A document with fewer
    words has one shingle, its whole normalized text.

    Args:
      text: the whole document.
      n_words: words in a shingle, from 1.

    Returns:
      The distinct hashes, rising.
    """
    normal = normalize_text(text)
    found = (_ASCII_WORD if normal.isascii() else _WORD).finditer(normal)
    words = (match.group() for match in found)
    parts = [np.zeros(0, np.uint64)]
    while part := list(itertools.islice(words, _PART_WORDS)):
        known = {word: _hash(word) for word in set(part)}
        parts.append(np.fromiter(map(known.__getitem__, part), np.uint64, len(part)))
    codes = np.concatenate(parts)
    if len(codes) < n_words:
        return np.array([_hash(normal)], np.uint64)
    runs = len(codes) - n_words + 1
    hashes = np.zeros(runs, np.uint64)
    for offset in range(n_words):
        # a polynomial in an odd constant keeps the order of the words
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + runs]
    return np.unique(_mix(hashes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """How near a document comes to the protected ones.

    Attributes:
      own_share: share of its shingles that stand in any protected document, in
        [0, 1].
      protected_share: the largest share of one protected document's shingles that
        it holds, in [0, 1].
    """

    own_share: float
    protected_share: float

    @property
    def is_near_copy(self) -> bool:
        """Whether either share reaches one half."""
        return max(self.own_share, self.protected_share) >= NEAR


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProtectedIndex:
    """Shingles of the documents that training must not see.

    Attributes:
      hashes: shingles of all documents, rising, one entry for each document that
        has it.
      documents: number of the document that each entry belongs to.
      sizes: distinct shingles of each document.

    Raises:
      SchemaError: if the arrays contradict each other.
    """

    hashes: UInt64[np.ndarray, " e"]
    documents: Int32[np.ndarray, " e"]
    sizes: Int64[np.ndarray, " d"]

    def __post_init__(self) -> None:
        if (self.hashes[1:] < self.hashes[:-1]).any():
            raise SchemaError("hashes of a protected index must rise")
        counted = np.bincount(self.documents, minlength=len(self.sizes))
        if not np.array_equal(counted, self.sizes):
            raise SchemaError("sizes of a protected index must count its entries")

    @classmethod
    def build(cls, documents: Iterable[UInt64[np.ndarray, " _"]]) -> "ProtectedIndex":
        """Builds the index from the `shingles` of each document, numbered from 0."""
        rows = list(documents)
        sizes = np.array([len(row) for row in rows], np.int64)
        hashes = np.concatenate([np.zeros(0, np.uint64), *rows])
        numbers = np.repeat(np.arange(len(rows), dtype=np.int32), sizes)
        order = np.argsort(hashes, kind="stable")
        return cls(hashes=hashes[order], documents=numbers[order], sizes=sizes)

    def overlap(self, own: UInt64[np.ndarray, " s"]) -> Overlap:
        """Measures a document, given as `shingles` returns it, against the index."""
        first = np.searchsorted(self.hashes, own, side="left")
        stop = np.searchsorted(self.hashes, own, side="right")
        counts = stop - first
        if not counts.any():
            return Overlap(own_share=0.0, protected_share=0.0)
        # entries first[i] .. stop[i] - 1 of every shingle i, one behind the other
        before = np.cumsum(counts) - counts
        entries = np.arange(counts.sum()) + np.repeat(first - before, counts)
        shared = np.bincount(self.documents[entries], minlength=len(self.sizes))
        # every document with an entry has a size of 1 or more
        shares = shared / np.maximum(self.sizes, 1)
        return Overlap(
            own_share=float((counts > 0).mean()), protected_share=float(shares.max())
        )


def _share(name: str, text: str) -> float:
    try:
        share = float(text)
    except ValueError as error:
        raise ValueError(
            f"the share of split {name!r} must be a number, got {text!r}"
        ) from error
    if not 0 < share <= 1:
        raise ValueError(f"the share of split {name!r} must be in (0, 1], got {text}")
    return share


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _mix(hashes: UInt64[np.ndarray, " s"]) -> UInt64[np.ndarray, " s"]:
    """Spreads every bit over all others (the finalizer of SplitMix64)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))
