"""How fast `align_spans` is, beside the DTW that FuseLLM aligns with."""

import time
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein

from tests.bench import rows, spans_windows
from transforms.functional import align

AIM = 1_000_000.0
DTW_TOKENS = 512
PASSES = 15


def run() -> list[dict[str, Any]]:
    """Measures target tokens a second on one core."""
    data = spans_windows.load(k=1)
    pairs = [
        (target.byte_ends, said.byte_ends)
        for source in data.sources
        for target, said in zip(data.targets, source, strict=True)
    ]
    tokens = sum(target.size - 1 for target, _ in pairs)
    passes = [_align_all(pairs) for _ in range(PASSES + 1)]
    # the first compiles; a window's least time is the one nobody else disturbed
    seconds = float(np.min(passes[1:], axis=0).sum())
    dtw = _dtw_tokens_per_second()
    value = tokens / seconds
    return [
        rows.at_least(
            AIM,
            f"align spans, {data.label}",
            value,
            "tokens/s/core",
            against=f"DTW in plain Python, {DTW_TOKENS} tokens: {dtw:,.0f} tokens/s",
            ratio=value / dtw,
        )
    ]


def _align_all(pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    """Returns the seconds that each window took."""
    seconds = []
    for target, source in pairs:
        start = time.perf_counter()
        align.align_spans(target, source, eos=False)
        seconds.append(time.perf_counter() - start)
    return seconds


def _dtw_tokens_per_second() -> float:
    """Aligns one row of tokens as FuseLLM does, Levenshtein's distance as cost."""
    rng = np.random.default_rng(0)
    target, source = (
        ["".join(rng.choice(list("abcdefgh"), rng.integers(1, 8))) for _ in range(n)]
        for n in (DTW_TOKENS, DTW_TOKENS + DTW_TOKENS // 10)
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        _dtw(target, source)
        seconds.append(time.perf_counter() - start)
    return DTW_TOKENS / min(seconds)


def _dtw(target: list[str], source: list[str]) -> list[tuple[int, int]]:
    """Dynamic time warping: the cheapest monotone path through all pairs of tokens."""
    far = float("inf")
    total = [[far] * (len(source) + 1) for _ in range(len(target) + 1)]
    total[0][0] = 0.0
    for i, word in enumerate(target, 1):
        for j, other in enumerate(source, 1):
            before = min(total[i - 1][j - 1], total[i - 1][j], total[i][j - 1])
            total[i][j] = Levenshtein.distance(word, other) + before
    i, j, path = len(target), len(source), []
    while i and j:
        path.append((i - 1, j - 1))
        steps = ((i - 1, j - 1), (i - 1, j), (i, j - 1))
        i, j = min(steps, key=lambda step: total[step[0]][step[1]])
    return path[::-1]
