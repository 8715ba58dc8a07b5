"""Tiny tokenizers, made-up rows, and the alignment written from its definitions.

A toy's pieces are strings over "a" and "b". It tokenizes running text by the longest
match, but a window may be cut any way its pieces allow, as real tokenizers do when the
context differs.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

BOS, EOS = 0, 1


@dataclass(kw_only=True)
class Toy:
    """A tokenizer of a few pieces; ids 0 and 1 are BOS and EOS."""

    token_bytes: list[bytes | None]
    fingerprint: str = "toy"
    has_dummy_prefix: bool = False
    bos_id: int | None = BOS
    eos_id: int | None = EOS
    pad_id: int | None = None
    unk_id: int | None = None
    encoded: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        return len(self.token_bytes)

    def encode_middle_batch(self, texts: Sequence[str]) -> list[list[int]]:
        self.encoded += texts
        return [self._longest_match(text.encode()) for text in texts]

    def _longest_match(self, text: bytes) -> list[int]:
        ids = []
        while text:
            fits = [
                s for s, p in enumerate(self.token_bytes) if p and text.startswith(p)
            ]
            ids.append(max(fits, key=lambda s: (len(self.token_bytes[s]), -s)))
            text = text[len(self.token_bytes[ids[-1]]) :]
        return ids


def toy(*pieces: str | bytes, fingerprint: str = "toy", **roles) -> Toy:
    """Makes a toy of the pieces, from id 2 on."""
    found = [p.encode() if isinstance(p, str) else p for p in pieces]
    return Toy(token_bytes=[None, None, *found], fingerprint=fingerprint, **roles)


def random_toy(rng: np.random.Generator, fingerprint: str, longest: int = 4) -> Toy:
    """Makes a toy of "a", "b" and some longer pieces, in any order."""
    pieces = {"a", "b"}
    for _ in range(rng.integers(0, 10)):
        pieces.add("".join(rng.choice(["a", "b"], rng.integers(2, longest + 1))))
    return toy(*rng.permutation(sorted(pieces)).tolist(), fingerprint=fingerprint)


def random_text(rng: np.random.Generator, shortest: int, longest: int) -> bytes:
    """Makes a text of "a" and "b"."""
    return (
        rng.choice([97, 98], rng.integers(shortest, longest + 1)).astype("u1").tobytes()
    )


def cut_anyhow(rng: np.random.Generator, tokenizer: Toy, text: bytes) -> list[int]:
    """Cuts a text into pieces at random."""
    ids = []
    while text:
        fits = [
            s for s, p in enumerate(tokenizer.token_bytes) if p and text.startswith(p)
        ]
        ids.append(int(rng.choice(fits)))
        text = text[len(tokenizer.token_bytes[ids[-1]]) :]
    return ids


@dataclass(kw_only=True)
class Rows:
    """A window as one model scored it."""

    token_ids: np.ndarray
    byte_ends: np.ndarray
    top_ids: np.ndarray
    top_logprobs: np.ndarray
    gold_logprob: np.ndarray


def frame(
    tokenizer: Toy, ids: Sequence[int], *, eos: bool, lone: Sequence[int] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Puts the start token and `lone` ones without bytes in front, and EOS behind."""
    behind = [EOS] if eos else []
    lengths = [len(tokenizer.token_bytes[s]) for s in ids]
    ends = np.cumsum([0, *(0 for _ in lone), *lengths, *(0 for _ in behind)])
    return np.array([BOS, *lone, *ids, *behind], np.int32), ends.astype(np.int32)


def random_rows(
    rng: np.random.Generator,
    token_ids: np.ndarray,
    byte_ends: np.ndarray,
    *,
    logits_width: int,
    k: int,
) -> Rows:
    """Makes up a distribution for each position and keeps its k greatest entries."""
    probs = rng.dirichlet(np.full(logits_width, 0.3), token_ids.size - 1)
    logprobs = np.log(np.maximum(probs, 1e-12)).astype(np.float32)
    order = np.argsort(-logprobs, axis=1, kind="stable")[:, :k]
    return Rows(
        token_ids=token_ids,
        byte_ends=byte_ends,
        top_ids=order.astype(np.int32),
        top_logprobs=np.take_along_axis(logprobs, order, axis=1),
        gold_logprob=np.take_along_axis(logprobs, token_ids[1:, None], axis=1)[:, 0],
    )


@dataclass(kw_only=True)
class Spoken:
    """What the definitions give for one target position."""

    masses: dict[int, float]
    gold: float


def oracle(
    target_ids: Sequence[int],
    target_ends: Sequence[int],
    rows: Rows,
    seqs: Sequence[Sequence[int]],
    pieces: Sequence[bytes | None],
    *,
    eos: bool,
    start_seqs: Sequence[Sequence[int]] | None = None,
) -> list[Spoken | None]:
    """Aligns and projects one window slowly, straight from the definitions.

    `start_seqs` are those of a token that begins the window, where they differ.
    """
    source = list(itertools.pairwise(rows.byte_ends.tolist()))
    target = list(itertools.pairwise(target_ends))
    tables = (seqs, seqs if start_seqs is None else start_seqs)
    return [
        _speak(t, list(target_ids), target, source, rows, tables, pieces, eos)
        for t in range(len(target))
    ]


def _speak(t, target_ids, target, source, rows, tables, pieces, eos) -> Spoken | None:
    a, b = target[t]
    last = eos and t == len(target) - 1
    # empty tokens at this border: the source's, and those of the target in front of t
    theirs = [j for j in range(len(source) - eos) if source[j] == (a, a)]
    ours = [i for i in range(t) if target[i] == (a, a)]
    if a == b and not last:
        if len(ours) >= len(theirs):
            return None
        row, target = theirs[len(ours)], target[: t + 1]
    elif last:
        row = len(source) - 1
    else:
        row = next(j for j, (start, end) in enumerate(source) if start <= a < end)
    start, end = source[row]
    begins = [
        i for i, (x, y) in enumerate(target) if x == start and (y > x or last or i == t)
    ]
    if not begins or any(x == y for x, y in target[begins[-1] : t]):
        return None
    seqs = tables[row == 0 and begins[-1] == 0]
    passed = target_ids[begins[-1] + 1 : t + 1]
    gold_id, p = int(rows.token_ids[row + 1]), _kept(rows, row)
    wanted = target_ids[t + 1]
    # the source's own gold stands for the target tokens that are really there
    seq = {s: list(seqs[s]) if s < len(seqs) else [] for s in p}
    seq[gold_id] = target_ids[begins[-1] + 1 :]

    def mass(prefix: list[int]) -> float:
        return sum(p[s] for s in p if seq[s][: len(prefix)] == prefix)

    given = mass(passed) if passed else 1.0
    n = len(passed)
    masses: dict[int, float] = defaultdict(float)
    for s in p:
        if s != gold_id and seq[s][:n] == passed and len(seq[s]) > n:
            masses[seq[s][n]] += p[s] / given
    if b < end:
        gold = mass([*passed, wanted]) / given
    else:
        gold = p[gold_id] / given * _onward(end, b, source, rows, pieces)
    masses[wanted] = gold
    empties = [j for j in theirs[len(ours) :] if j < row and not passed]
    before = math.prod(math.exp(rows.gold_logprob[j]) for j in empties)
    return Spoken(masses={v: m * before for v, m in masses.items()}, gold=gold * before)


def _onward(e: int, b: int, source, rows, pieces) -> float:
    """The source's probability of the bytes [e, b), given all before e."""
    product = 1.0
    for j, (start, end) in enumerate(source):
        if start < e or start >= b:
            continue
        if end <= b:
            product *= math.exp(rows.gold_logprob[j])
            continue
        gold_id = int(rows.token_ids[j + 1])
        piece = pieces[gold_id] or b"" if gold_id < len(pieces) else b""
        prefix, spells = piece[: b - start], len(piece) >= b - start
        product *= sum(
            mass
            for s, mass in _kept(rows, j).items()
            # a gold token that does not spell the text is known to itself alone
            if s == gold_id
            or (spells and s < len(pieces) and (pieces[s] or b"").startswith(prefix))
        )
    return product


def _kept(rows: Rows, row: int) -> dict[int, float]:
    """A row's kept entries and its gold, which may not be among them."""
    ids, logprobs = rows.top_ids[row].tolist(), rows.top_logprobs[row].tolist()
    masses = {s: math.exp(x) for s, x in zip(ids, logprobs, strict=True)}
    return masses | {int(rows.token_ids[row + 1]): math.exp(rows.gold_logprob[row])}
