"""Scoring against bare forward passes of the same model over the same tokens.

Scoring is all that `fusebeam score` does with a slice: tokenizing, batches, top-k,
log-sum-exp, records, Parquet. A slice here is dozens of windows of mixed length, so
that batches and padding have their part. Two bare passes leave the logits where they
are: window after window, where nothing is padding, and in the scorer's own batches,
padded. Scoring is compared with the one that was faster over all slices, which the row
names. The three take turns, another in front for each slice, with torch's threads as
they come. With SmolLM2 where its file is there (some minutes on two idle cores), else
with a small model of random weights.
"""

import dataclasses
import pydoc_data.topics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from schemas import parquet, scores
from schemas.scores import Score
from schemas.windows import Window
from tests import tiny
from tests.bench import rows, smollm2
from transforms import allocator, loading, tokenizer
from transforms.functional import batches, rounding
from transforms.scorer import Scorer
from transforms.tokenizer import Tokenizer

MAX_TOKENS = 512
SLICES = 3
SLICE_WINDOWS = 24
BATCH_TOKENS = 4096
TOP_K = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    """What one slice took: seconds by way, and what scoring gave."""

    tokens: int
    seconds: dict[str, float]
    scores: list[Score]


def run() -> list[dict[str, Any]]:
    """Measures and returns the benchmark's rows."""
    allocator.keep_large_blocks()
    with tempfile.TemporaryDirectory() as folder:
        name, model, made = load(Path(folder))
        ready = Scorer(model, made, top_k=TOP_K, batch_tokens=BATCH_TOKENS)
        path = f"{folder}/scores.parquet"
        slices = [cut(number) for number in range(SLICES)]
        score_slice(ready, slices[0][:2], path)  # warms up
        rounds = [
            measure(ready, model, windows, path, first=number)
            for number, windows in enumerate(slices)
        ]
        write(path, [score for one in rounds for score in one.scores])
        size = Path(path).stat().st_size
    tokens = sum(one.tokens for one in rounds)
    total = {way: sum(one.seconds[way] for one in rounds) for way in rounds[0].seconds}
    bare = min(("one by one", "batched"), key=lambda way: total[way])
    return [
        rows.ratio_at_least(
            0.95,
            f"score, {name}, {torch.get_num_threads()} threads",
            tokens / total["score"],
            "tokens/s",
            against=f"bare forward {bare}, {tokens / total[bare]:,.0f} tokens/s",
            ratio=total[bare] / total["score"],
        ),
        rows.at_most(
            30,
            f"scores file, k = {TOP_K}, {name}",
            size / tokens,
            "B/token",
            against="FuseLLM, 108 B/token",
            ratio=size / tokens / 108,
        ),
    ]


def measure(
    ready: Scorer, model: Any, windows: list[Window], path: str, *, first: int
) -> Round:
    """Goes each way through a slice, number `first` in front."""
    encoded = [ready.tokenizer.encode_window(w.text, w.ends_document) for w in windows]
    inputs = [torch.from_numpy(e.token_ids[:-1]).long() for e in encoded]
    plan = batches.plan_batches([len(ids) for ids in inputs], BATCH_TOKENS)
    padded = [
        torch.nn.utils.rnn.pad_sequence([inputs[i] for i in batch], batch_first=True)
        for batch in plan
    ]
    made: list[Score] = []
    ways: list[tuple[str, Callable[[], None]]] = [
        ("score", lambda: made.extend(score_slice(ready, windows, path))),
        ("one by one", lambda: pass_plainly(model, [ids[None] for ids in inputs])),
        ("batched", lambda: pass_plainly(model, padded)),
    ]
    seconds: dict[str, float] = {}
    for turn in range(len(ways)):
        name, work = ways[(first + turn) % len(ways)]
        start = time.perf_counter()
        work()
        seconds[name] = time.perf_counter() - start
    tokens = sum(len(ids) for ids in inputs)
    return Round(tokens=tokens, seconds=seconds, scores=made)


def load(folder: Path) -> tuple[str, Any, Tokenizer]:
    """Loads SmolLM2, or makes a model where it is not there."""
    cpu = torch.device("cpu")
    fetched = smollm2.find()
    if fetched is not None:
        model = loading.load_model(str(fetched), dtype=torch.float32, device=cpu)
        return "SmolLM2-135M", model, tokenizer.load(str(fetched))
    torch.manual_seed(0)
    made = tiny.byte_level(4096)
    config = LlamaConfig(
        vocab_size=made.get_vocab_size(),
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=8,
        max_position_embeddings=MAX_TOKENS,
    )
    path = tiny.save(folder / "model", made, LlamaForCausalLM(config))
    model = loading.load_model(str(path), dtype=torch.float32, device=cpu)
    return "random Llama of 10M", model, tokenizer.load(str(path))


def cut(number: int) -> list[Window]:
    """Cuts a slice out of Python's manual: most windows short, some of them long."""
    manual = "\n".join(pydoc_data.topics.topics.values())
    rng = np.random.default_rng(number)
    sizes = rng.lognormal(mean=5.6, sigma=0.9, size=SLICE_WINDOWS).clip(30, 1500)
    starts = rng.integers(0, len(manual) - 1500, SLICE_WINDOWS)
    return [
        Window(
            window_id=f"{number}-{place}",
            doc_id=f"{number}-{place}",
            text=manual[start : start + int(size)],
            byte_start=0,
            ends_document=bool(place % 2),
        )
        for place, (start, size) in enumerate(zip(starts, sizes, strict=True))
    ]


def score_slice(ready: Scorer, windows: list[Window], path: str) -> list[Score]:
    """Scores windows and writes the file, as a slice's work does."""
    found = ready.score(windows).scores
    write(path, found)
    return found


def write(path: str, found: list[Score]) -> None:
    """Writes a scores file."""
    footer = {"fingerprint": "", "tokens": None, "k": TOP_K}
    options = scores.WRITER_OPTIONS
    with parquet.writer(path, scores.SCHEMA, footer, **options) as tables:
        tables.write(scores.to_table([rounding.round_score(one) for one in found]))


@torch.inference_mode()
def pass_plainly(model: Any, inputs: list[torch.Tensor]) -> None:
    """Calls the model on each batch."""
    for ids in inputs:
        model(input_ids=ids, use_cache=False)
