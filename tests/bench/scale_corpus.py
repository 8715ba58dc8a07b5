"""A made-up corpus of any size, and the recipe that it is prepared and fused by.

Words of Python's manual, drawn by how often they stand there, make documents of a few
kilobytes. A corpus of factor f has f times the text that the demo's recipe reads; its
held-out split is as large at every factor, as real ones are.
"""

import collections
import dataclasses
import json
import pydoc_data.topics
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from tests import real_tokenizers

DEMO_BYTES = 437_077
"""Text of the demo's excerpts, which `examples/demo.toml` prepares and fuses."""

HELDOUT_BYTES = 40_000
TARGET = "mistral_v3"
SOURCE = "qwen2_5"
MAX_TOKENS = 512
TOP_K = 10
SEQ_LENGTH = 2048
_WORDS_A_LINE = 12
_MEDIAN_BYTES = 3_000
_SHORTEST, _LONGEST = 300, 60_000  # bytes of a document, about


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How a corpus is made and cut into slices.

    Attributes:
      factor: its text, in texts of the demo; None for short documents.
      documents: short documents, each a slice; None for a factor.
      group_windows: windows of a row group.
      slice_bytes: bytes of text of a slice.
    """

    factor: float | None = None
    documents: int | None = None
    group_windows: int
    slice_bytes: int


def make(folder: Path, shape: Shape) -> int:
    """Makes corpus, models and recipe; returns the bytes of text of the split fusion.

    Raises:
      SystemExit: if the tokenizers have not been fetched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "shape.json").write_text(json.dumps(dataclasses.asdict(shape)))
    _write_recipe(folder, shape)
    if shape.factor is None:
        assert shape.documents is not None
        return _write_short(folder, shape.documents)
    return _write_long(folder, shape.factor)


def shape_of(folder: Path) -> Shape:
    """Returns the shape that a corpus was made by."""
    return Shape(**json.loads((folder / "shape.json").read_text()))


def _write_long(folder: Path, factor: float) -> int:
    rng = np.random.default_rng(0)
    with (folder / "corpus.jsonl").open("w") as file:
        _write_split(file, rng, "heldout", HELDOUT_BYTES)
        return _write_split(file, rng, "fusion", round(factor * DEMO_BYTES))


def _write_short(folder: Path, documents: int) -> int:
    rng = np.random.default_rng(0)
    total = 0
    with (folder / "corpus.jsonl").open("w") as file:
        _write_split(file, rng, "heldout", 1)
        words = _drawn(rng)
        for number in range(documents):
            text = " ".join(next(words) for _ in range(8))
            total += len(text.encode())
            file.write(_line("fusion", number, text))
    return total


def _write_recipe(folder: Path, shape: Shape) -> None:
    """Writes the recipe of a corpus, and the models that it names.

    A model is its tokenizer and a configuration that says how large it would be: no
    weights are there, and none are read.
    """
    for name in (TARGET, SOURCE):
        _write_model(name, folder / "models" / name)
    (folder / "recipe.toml").write_text(
        f"""\
output = "{folder}/run"

[corpus]
inputs = ["{folder}/corpus.jsonl"]
id_field = "id"
split_field = "split"

[prepare]
splits = "fusion,heldout"
max_tokens = {MAX_TOKENS}
group_windows = {shape.group_windows}
slice_bytes = {shape.slice_bytes}

[target]
model = "{folder}/models/{TARGET}"

[sources.{SOURCE}]
model = "{folder}/models/{SOURCE}"

[score]
top_k = {TOP_K}

[fuse]
top_k = {TOP_K}
seq_length = {SEQ_LENGTH}
"""
    )


def _write_model(name: str, folder: Path) -> None:
    found = real_tokenizers.available()
    if name not in found:
        raise SystemExit(
            f"error: the tokenizer {name} must be there; fetch it with: make tokenizers"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("tokenizer.json", "tokenizer_config.json"):
        (folder / part).write_bytes((found[name] / part).read_bytes())
    config = {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "vocab_size": real_tokenizers.load(name).size,
    }
    (folder / "config.json").write_text(json.dumps(config))


def _write_split(file: TextIO, rng: np.random.Generator, split: str, size: int) -> int:
    """Writes documents of a split until they hold so many bytes."""
    words, total, number = _drawn(rng), 0, 0
    while total < size:
        wanted = _MEDIAN_BYTES * np.exp(rng.normal())
        text = _document(words, float(np.clip(wanted, _SHORTEST, _LONGEST)))
        total += len(text.encode())
        file.write(_line(split, number, text))
        number += 1
    return total


def _line(split: str, number: int, text: str) -> str:
    record = {"id": f"{split}-{number}", "split": split, "text": text}
    return json.dumps(record, ensure_ascii=False) + "\n"


def _document(words: Iterator[str], n_bytes: float) -> str:
    lines: list[str] = []
    while n_bytes > 0:
        lines.append(" ".join(next(words) for _ in range(_WORDS_A_LINE)))
        n_bytes -= len(lines[-1])
    return "\n".join(lines) + "\n"


def _drawn(rng: np.random.Generator) -> Iterator[str]:
    """Yields words of the manual without end, by how often they stand there."""
    counted = collections.Counter(
        " ".join(sorted(pydoc_data.topics.topics.values())).split()
    )
    words = sorted(counted)
    chances = np.array([counted[word] for word in words], np.float64)
    bounds = np.cumsum(chances / chances.sum())
    while True:
        for place in np.searchsorted(bounds, rng.random(4096)):
            yield words[min(place, len(words) - 1)]
