"""Scoring against a plain forward pass of the same model over the same tokens.

Scoring is all that `fusebeam score` does with a slice: tokenizing, batches, top-k,
log-sum-exp, records, Parquet. The plain pass calls the model on one window after the
other, so that nothing is padding, and leaves the logits where they are. The two take
turns on one small slice after the other, first the one and then the other in front, and
the median slice counts. With SmolLM2 where its file has been fetched (about two minutes
on two idle cores), else with a small model of random weights.
"""

import pydoc_data.topics
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from schemas import parquet, scores
from schemas.windows import Window
from tests import real_tokenizers, tiny
from transforms import allocator, causal, tokenizer
from transforms.functional import windows as cutting
from transforms.scorer import Scorer
from transforms.tokenizer import Tokenizer

MAX_TOKENS = 512
SLICES = 8
SLICE_BYTES = 4500
TOP_K = 10


def run() -> list[dict[str, Any]]:
    """Measures and returns the benchmark's rows."""
    allocator.keep_large_blocks()
    with tempfile.TemporaryDirectory() as folder:
        name, model, made = load(Path(folder))
        ready = Scorer(model, made, top_k=TOP_K)
        path = f"{folder}/scores.parquet"
        slices = cut(made)
        score_slice(ready, slices[0], path)  # warms up
        rounds = [
            measure(ready, model, slice_, path, plain_first=bool(number % 2))
            for number, slice_ in enumerate(slices)
        ]
        everything = [window for slice_ in slices for window in slice_]
        score_slice(ready, everything, path)
        size = Path(path).stat().st_size
    tokens = sum(one["tokens"] for one in rounds)
    score, plain = (
        statistics.median(one["tokens"] / one[arm] for one in rounds)
        for arm in ("score", "plain")
    )
    ratio = statistics.median(one["plain"] / one["score"] for one in rounds)
    return [
        {
            "name": f"score, {name}",
            "value": score,
            "unit": "tokens/s",
            "against": f"plain forward pass, {plain:,.0f} tokens/s",
            "ratio": ratio,
            "aim": ">= 0.95",
            "met": ratio >= 0.95,
        },
        {
            "name": f"scores file, k = {TOP_K}, {name}",
            "value": size / tokens,
            "unit": "B/token",
            "against": "FuseLLM, 108 B/token",
            "ratio": size / tokens / 108,
            "aim": "<= 30",
            "met": size <= 30 * tokens,
        },
    ]


def measure(
    ready: Scorer, model: Any, windows: list[Window], path: str, *, plain_first: bool
) -> dict[str, float]:
    """Returns the tokens of a slice and the seconds of both ways through it."""
    encoded = [ready.tokenizer.encode_window(w.text, w.ends_document) for w in windows]
    inputs = [torch.from_numpy(e.token_ids[None, :-1]).long() for e in encoded]
    arms = {
        "score": lambda: score_slice(ready, windows, path),
        "plain": lambda: pass_plainly(model, inputs),
    }
    order = ["plain", "score"] if plain_first else ["score", "plain"]
    found: dict[str, float] = {"tokens": sum(ids.numel() for ids in inputs)}
    for arm in order:
        start = time.perf_counter()
        arms[arm]()
        found[arm] = time.perf_counter() - start
    return found


def load(folder: Path) -> tuple[str, Any, Tokenizer]:
    """Loads SmolLM2, or makes a model where it is not there."""
    cpu = torch.device("cpu")
    fetched = real_tokenizers.available().get("smollm2")
    if fetched is not None:
        model = causal.load_model(str(fetched), dtype=torch.float32, device=cpu)
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
    model = causal.load_model(str(path), dtype=torch.float32, device=cpu)
    return "random Llama of 10M", model, tokenizer.load(str(path))


def cut(made: Tokenizer) -> list[list[Window]]:
    """Cuts articles of Python's manual into windows; an article is a slice."""
    articles = sorted(pydoc_data.topics.topics.values(), key=len)[-SLICES:]
    slices = []
    for number, article in enumerate(articles):
        text = article.encode()[:SLICE_BYTES].decode(errors="ignore")
        pieces = list(cutting.cut_document(text, [made.count], MAX_TOKENS))
        windows = [
            Window(
                window_id=f"{number}-{place}",
                doc_id=str(number),
                text=piece,
                byte_start=0,
                ends_document=place == len(pieces) - 1,
            )
            for place, piece in enumerate(pieces)
        ]
        slices.append(windows)
    return slices


def score_slice(ready: Scorer, windows: list[Window], path: str) -> None:
    """Scores windows and writes the file, as a slice's work does."""
    footer = {"fingerprint": "", "tokens": None, "k": TOP_K}
    options = scores.WRITER_OPTIONS
    with parquet.writer(path, scores.SCHEMA, footer, **options) as tables:
        tables.write(scores.to_table(ready.score(windows).scores))


@torch.inference_mode()
def pass_plainly(model: Any, inputs: list[torch.Tensor]) -> None:
    """Calls the model on each window."""
    for ids in inputs:
        model(input_ids=ids, use_cache=False)
