"""How long maps by edit distance take, beside measuring every pair by rapidfuzz."""

import time
from typing import Any

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

from tests import real_tokenizers
from tests.bench import rows
from transforms import tokenizer
from transforms.functional import counterparts, edit_distance, token_map
from transforms.functional.token_map import TokenMap
from transforms.tokenizer import Tokenizer

SOURCE, TARGET = "qwen2_5", "llama2"
AIM = 120.0
SAMPLE = 2_000
"""Source tokens of the brute force: all would take longer than the bench may."""

BLOCK = 250
"""Source tokens measured at once: their distances take 8 MB."""


def run() -> list[dict[str, Any]]:
    """Measures the CPU seconds of a map of 152k tokens onto 32k, one thread."""
    reasons = real_tokenizers.missing()
    for name in (SOURCE, TARGET):
        if name in reasons:
            raise SystemExit(f"bench_map needs {name}: {reasons[name]}")
    found = real_tokenizers.available()
    source, target = (tokenizer.load(str(found[name])) for name in (SOURCE, TARGET))
    edit_distance.nearest(["compiles"], ["first"])
    edit_distance.distances(["compiles"], ["first"])
    start = time.process_time()
    made = counterparts.build_mined(source, target)
    seconds = time.process_time() - start
    searched = int((made.how > token_map.ROLE).sum())
    brute = _brute_force(source, target, made) * searched / SAMPLE
    return [
        rows.at_most(
            AIM,
            f"mined map, {source.size:,} onto {target.size:,} tokens",
            seconds,
            "CPU s",
            against=f"rapidfuzz, all pairs, {SAMPLE:,} of {searched:,} tokens"
            f" taken as all: {brute:,.0f} CPU s",
            ratio=seconds / brute,
        )
    ]


def _brute_force(source: Tokenizer, target: Tokenizer, made: TokenMap) -> float:
    """Measures every pair of a sample, and compares; returns the CPU seconds."""
    rng = np.random.default_rng(0)
    edited = np.flatnonzero(made.how == token_map.EDIT)
    sample = np.sort(rng.choice(edited, SAMPLE, replace=False))
    queries = [counterparts.text_of(source.token_bytes[s] or b"") for s in sample]
    pieces = [counterparts.text_of(piece or b"") for piece in target.token_bytes]
    candidates = [piece for piece in pieces if piece]
    start = time.process_time()
    nearest = [
        process.cdist(
            queries[at : at + BLOCK],
            candidates,
            scorer=Levenshtein.distance,
            dtype=np.uint8,
            workers=1,
        ).min(axis=1)
        for at in range(0, SAMPLE, BLOCK)
    ]
    seconds = time.process_time() - start
    assert np.array_equal(np.concatenate(nearest), made.distances[sample])
    return seconds
