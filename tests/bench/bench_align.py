"""How fast `align_spans` is, beside the DTW that FuseLLM aligns with."""

import time
from typing import Any

import numpy as np

from tests.bench import plain_dtw, rows, spans_windows
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
    # the first pass compiles
    seconds = float(np.median(np.sum(passes[1:], axis=1)))
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
        plain_dtw.warp(source, target)
        seconds.append(time.perf_counter() - start)
    return DTW_TOKENS / float(np.median(seconds))
