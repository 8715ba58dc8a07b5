"""Next-token distributions of a real model that costs a minute: an n-gram model.

A 32k BPE and counts of up to four tokens of context, interpolated by absolute
discounting (Ney, Essen and Kneser, 1994), from the running Python's own sources; the
outputs are for sources it has not seen. They are kept in `.cache/bench`.
"""

import dataclasses
import hashlib
import sysconfig
from pathlib import Path
from typing import no_type_check

import numba
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CACHE = Path(".cache/bench/ngram-1.npz")
SIZE = 32_000
K = 10
WINDOW = 512
POSITIONS = 128 * 1024
_START = 0
_TRAIN_BYTES = 16 << 20
_ORDER = 4
_DISCOUNT = 0.75


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outputs:
    """Distributions of windows end to end; position p predicts token p + 1.

    The last position of each window keeps nothing.
    """

    lengths: np.ndarray  # (w,) tokens of each window
    token_ids: np.ndarray  # (t,) int32
    counts: np.ndarray  # (t,) int32
    ids: np.ndarray  # (t, k) int32, by falling probability
    probs: np.ndarray  # (t, k) float32
    tail: np.ndarray  # (t,) float32


def outputs() -> Outputs:
    """Returns the model's outputs, from the cache where they are there."""
    if not CACHE.exists():
        CACHE.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(CACHE, **dataclasses.asdict(_make()))
    with np.load(CACHE) as found:
        return Outputs(**found)


def _make() -> Outputs:
    train, held = read_texts()
    tokenizer = train_tokenizer(train, SIZE)
    ends = [_START]
    stream = np.array(
        [i for e in tokenizer.encode_batch(train) for i in ends + e.ids], np.int32
    )
    windows = []
    for encoding in tokenizer.encode_batch(held):
        ids = encoding.ids
        windows += [ends + ids[a : a + WINDOW] for a in range(0, len(ids), WINDOW)]
    lengths = np.array([len(window) for window in windows])
    lengths = lengths[: np.searchsorted(lengths.cumsum(), POSITIONS) + 1]
    token_ids = np.concatenate(windows[: len(lengths)]).astype(np.int32)
    last = np.cumsum(lengths) - 1
    counts = np.full(len(token_ids), K, np.int32)
    counts[last] = 0
    kept, probs = _predict(stream, token_ids, last)
    tail = np.maximum(0, 1 - probs.sum(axis=1, dtype=np.float64)).astype(np.float32)
    kept[last], probs[last], tail[last] = -1, 0, 0
    return Outputs(
        lengths=lengths,
        token_ids=token_ids,
        counts=counts,
        ids=kept,
        probs=probs,
        tail=tail,
    )


def read_texts() -> tuple[list[str], list[str]]:
    """Reads the standard library, in an order and split that names alone decide."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [f for f in root.rglob("*.py") if "site-packages" not in f.parts]
    files.sort(key=lambda f: _digest(f.relative_to(root)))
    texts, total = [], 0
    for file in files:
        text = file.read_bytes().decode("utf-8", "ignore")
        total += len(text)
        texts.append(text)
        if total > _TRAIN_BYTES:
            break
    cut = len(texts) // 12
    return texts[cut:], texts[:cut]


def _digest(path: Path) -> bytes:
    return hashlib.blake2b(path.as_posix().encode()).digest()


def train_tokenizer(texts: list[str], size: int) -> Tokenizer:
    """Trains a byte-level BPE; `<s>` is token 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _predict(
    stream: np.ndarray, token_ids: np.ndarray, last: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    uses = np.bincount(stream, minlength=SIZE) + 0.01
    unigram = uses / uses.sum()
    commonest = np.argsort(-unigram, kind="stable").astype(np.int32)
    starts = np.zeros(len(token_ids), np.int64)
    starts[last[:-1] + 1] = last[:-1] + 1
    starts = np.maximum.accumulate(starts)
    tables = [_count(stream, n) for n in range(1, _ORDER + 1)]
    keys = [_contexts(token_ids, n) for n in range(1, _ORDER + 1)]
    flat = [np.concatenate([table[i] for table in tables]) for i in range(4)]
    offsets = np.cumsum([0] + [len(t[0]) for t in tables])
    shifts = np.cumsum([0] + [len(t[2]) for t in tables])
    ids = np.empty((len(token_ids), K), np.int32)
    probs = np.empty((len(token_ids), K), np.float32)
    _interpolate(
        np.stack(keys), starts, *flat, offsets, shifts, unigram, commonest, ids, probs
    )
    return ids, probs


def _contexts(tokens: np.ndarray, n: int) -> np.ndarray:
    """Hashes the n tokens that end at each place."""
    keys = np.zeros(len(tokens), np.uint64)
    for back in range(n):
        shifted = np.concatenate([np.zeros(back, tokens.dtype), tokens])[: len(tokens)]
        keys = keys * np.uint64(0x9E3779B97F4A7C15) + shifted.astype(np.uint64) + 1
    return keys


def _count(stream: np.ndarray, n: int) -> tuple[np.ndarray, ...]:
    """Returns contexts, where their successors end, successors, and their counts."""
    keys, following = _contexts(stream, n)[n - 1 : -1], stream[n:]
    order = np.lexsort((following, keys))
    keys, following = keys[order], following[order]
    fresh = np.flatnonzero(
        np.append(True, (keys[1:] != keys[:-1]) | (following[1:] != following[:-1]))
    )
    counts = np.diff(np.append(fresh, len(keys)))
    keys, following = keys[fresh], following[fresh]
    contexts, firsts = np.unique(keys, return_index=True)
    return contexts, np.append(firsts[1:], len(keys)), following, counts


@numba.njit(cache=True)
@no_type_check
def _interpolate(
    keys,
    starts,
    contexts,
    stops,
    followers,
    uses,
    offsets,
    shifts,
    unigram,
    commonest,
    ids,
    probs,
):
    """Fills the k likeliest tokens of each position, and their probabilities."""
    mass = np.zeros(unigram.size)
    touched = np.empty(unigram.size, np.int32)
    k = ids.shape[1]
    for t in range(keys.shape[1]):
        n, rest = 0, 1.0
        for order in range(min(keys.shape[0], t - starts[t] + 1) - 1, -1, -1):
            block = contexts[offsets[order] : offsets[order + 1]]
            place = np.searchsorted(block, keys[order, t])
            if place == block.size or block[place] != keys[order, t]:
                continue
            place += offsets[order]
            first = stops[place - 1] if place > offsets[order] else 0
            first, stop = first + shifts[order], stops[place] + shifts[order]
            total = uses[first:stop].sum()
            for j in range(first, stop):
                token = followers[j]
                if mass[token] == 0:
                    touched[n] = token
                    n += 1
                mass[token] += rest * (uses[j] - _DISCOUNT) / total
            rest *= _DISCOUNT * (stop - first) / total
        for j in range(k):
            if mass[commonest[j]] == 0:
                touched[n] = commonest[j]
                n += 1
        probs[t] = 0
        for j in range(n):
            token = touched[j]
            share = mass[token] + rest * unigram[token]
            mass[token] = 0
            i = k
            while i > 0 and probs[t, i - 1] < share:
                if i < k:
                    probs[t, i], ids[t, i] = probs[t, i - 1], ids[t, i - 1]
                i -= 1
            if i < k:
                probs[t, i], ids[t, i] = share, token
