"""How fast the strategies that warp token strings are, beside DTW in plain Python.

Both run in one process on the same tokens, and must find the same pairs. What the
authors' code reaches was measured on a core like this one.
"""

import itertools
import time
from typing import Any

import numpy as np

from tests.bench import plain_dtw, rows, spans_windows
from tests.bench.spans_windows import Rows
from transforms.functional import dtw, reference_maps, transfer
from transforms.functional.reference_maps import Marks
from transforms.functional.transfer import Partners, Strategy
from transforms.tokenizer import Encoding, Tokenizer

AUTHORS = {512: 2_000.0, 2_048: 500.0}
TIMES_AUTHORS = 100
K = 10
WINDOWS = 6
PASSES = 7
PLAIN_PASSES = 3
STRATEGIES: tuple[Strategy, ...] = ("exact", "mined", "statistics")


def run() -> list[dict[str, Any]]:
    """Measures target tokens a second on one core, from spans to transferred rows."""
    label, (target, source, *_) = spans_windows.load_tokenizers()
    partners = _partners(source, target)
    table = []
    for length, authors in AUTHORS.items():
        texts = _texts_of(target, length)
        windows = [target.encode_window(text, False) for text in texts]
        said = spans_windows.make_rows(source, texts, K)
        plain = _plain_tokens_per_second(texts[0], said[0], windows[0])
        for strategy in STRATEGIES:
            value = _tokens_per_second(texts, said, windows, partners, strategy)
            table.append(
                rows.at_least(
                    TIMES_AUTHORS * authors,
                    f"{strategy}, rows of {length} tokens, {label}",
                    value,
                    "target tokens/s/core",
                    against=f"DTW in plain Python on the same row: {plain:,.0f}"
                    f" tokens/s; the authors' code: {authors:,.0f}",
                    ratio=value / plain,
                )
            )
    return table


def _texts_of(target: Tokenizer, length: int) -> list[str]:
    """Cuts texts that the target writes in about so many tokens."""
    manual = spans_windows.read_manual()
    tokens = target.encode(manual)
    raw = manual.encode()
    cuts = tokens.byte_ends[: (WINDOWS + 1) * length : length]
    return [raw[a:b].decode(errors="ignore") for a, b in itertools.pairwise(cuts)]


def _partners(source: Tokenizer, target: Tokenizer) -> Partners:
    """Maps tokens of equal spelling; what maps them does not change the speed."""
    marks = Marks(
        source=source.space_mark(), target=target.space_mark(), lends_prefix=False
    )
    ids = reference_maps.exact_ids(source.vocabulary(), target.vocabulary(), marks)
    return Partners(ids=ids, start_ids=ids)


def _tokens_per_second(
    texts: list[str],
    said: list[Rows],
    windows: list[Encoding],
    partners: Partners,
    strategy: Strategy,
) -> float:
    passes = []
    for _ in range(PASSES + 1):
        seconds = []
        for text, source, target in zip(texts, said, windows, strict=True):
            start = time.perf_counter()
            pairing = transfer.pair_tokens(
                text.encode(), source, target, strategy=strategy
            )
            row = transfer.find_rows(
                pairing, source, target, partners, strategy=strategy
            )
            transfer.transfer_rows(row, source, target, partners, k=K)
            seconds.append(time.perf_counter() - start)
        passes.append(seconds)
    # the first pass compiles
    tokens = sum(window.token_ids.size - 1 for window in windows)
    return tokens / float(np.median(np.sum(passes[1:], axis=1)))


def _plain_tokens_per_second(text: str, source: Rows, target: Encoding) -> float:
    """Times the plain one on one window, and compares its pairs with ours."""
    pieces = [
        dtw.cut_pieces(text.encode(), window.byte_ends)[1:]
        for window in (source, target)
    ]
    seconds = []
    for _ in range(PLAIN_PASSES):
        start = time.perf_counter()
        pairs = plain_dtw.warp(*pieces)
        seconds.append(time.perf_counter() - start)
    ours = dtw.pair_pieces(*pieces, ties="source_first")
    position = np.repeat(np.arange(ours.partners.size), ours.partners)
    assert pairs == list(zip(ours.sources.tolist(), position.tolist(), strict=True))
    return len(pieces[1]) / float(np.median(seconds))
