"""Windows of text under four tokenizers, with made-up rows, to measure on.

The tokenizers are those of well-known models where `tests.real_tokenizers` has fetched
them; else byte-level BPEs trained on the spot. The text is Python's own manual.
"""

import json
import pydoc_data.topics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests import real_tokenizers
from transforms import tokenizer
from transforms.functional import vocabulary
from transforms.functional.vocabulary import VocabularyMap
from transforms.tokenizer import Encoding, Tokenizer

NAMES = ("llama2", "qwen2_5", "neox", "gemma3")  # the target first
WINDOW_BYTES = 2_000
WINDOWS = 150


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What a source says of one window."""

    token_ids: np.ndarray
    byte_ends: np.ndarray
    top_ids: np.ndarray
    top_logprobs: np.ndarray
    gold_logprob: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Data:
    """Windows of one target and three sources.

    Attributes:
      label: which tokenizers.
      targets: the target's tokens of every window.
      sources: for each source its rows of every window.
      maps: from each source to the target.
      alike: for each source, whether every window begins alike for it and the target.
    """

    label: str
    targets: list[Encoding]
    sources: list[list[Rows]]
    maps: list[VocabularyMap]
    alike: list[list[bool]]


def load(k: int) -> Data:
    """Tokenizes the windows and makes up k entries for each row."""
    label, (target, *sources) = load_tokenizers()
    texts = _texts()
    own = vocabulary.build_map(target, target)
    targets = [target.encode_window(text, False) for text in texts]
    made = [make_rows(source, texts, k) for source in sources]
    maps = [vocabulary.build_map(source, target) for source in sources]
    return Data(
        label=label,
        targets=targets,
        sources=made,
        maps=maps,
        alike=[
            [
                _puts(pairs, said) == _puts(own, t)
                for said, t in zip(one, targets, strict=True)
            ]
            for pairs, one in zip(maps, made, strict=True)
        ],
    )


def load_tokenizers() -> tuple[str, list[Tokenizer]]:
    """Returns which tokenizers there are, and the target's and three sources'."""
    found = real_tokenizers.available()
    if set(NAMES) <= set(found):
        return "real tokenizers", [tokenizer.load(str(found[n])) for n in NAMES]
    return "trained tokenizers", _train()


def read_manual() -> str:
    """Returns Python's own manual."""
    return "\n".join(pydoc_data.topics.topics.values())


def _puts(pairs: VocabularyMap, window: Encoding | Rows) -> bool:
    return pairs.puts_space(window.token_ids, window.byte_ends)


def _texts() -> list[str]:
    manual = read_manual()
    return [manual[i * WINDOW_BYTES :][:WINDOW_BYTES] for i in range(WINDOWS)]


def make_rows(source: Tokenizer, texts: list[str], k: int) -> list[Rows]:
    """Gives every row its gold at some rank, among tokens as frequent as the text's."""
    rng = np.random.default_rng(0)
    windows = [source.encode_window(text, False) for text in texts]
    pool = np.concatenate([window.token_ids for window in windows])
    rows = []
    for window in windows:
        n = window.token_ids.size - 1
        places = np.minimum(rng.geometric(0.6, n) - 1, k - 1)
        ids = _draw_ids(rng, pool, window.token_ids[1:], places, k)
        probs = np.sort(rng.dirichlet(np.full(k + 1, 0.3), n)[:, :k])[:, ::-1]
        logprobs = np.log(np.maximum(probs, 1e-6)).astype(np.float32)
        rows.append(
            Rows(
                token_ids=window.token_ids,
                byte_ends=window.byte_ends,
                top_ids=ids,
                top_logprobs=np.ascontiguousarray(logprobs),
                gold_logprob=logprobs[np.arange(n), places],
            )
        )
    return rows


def _draw_ids(
    rng: np.random.Generator,
    pool: np.ndarray,
    gold: np.ndarray,
    places: np.ndarray,
    k: int,
) -> np.ndarray:
    """Draws k distinct ids a row from the pool, the row's gold at its place."""
    n = gold.size
    drawn = np.concatenate([gold[:, None], rng.choice(pool, (n, 16 * k))], axis=1)
    order = np.argsort(drawn, axis=1, kind="stable")
    ranked = np.take_along_axis(drawn, order, 1)
    again = np.zeros(drawn.shape, bool)
    np.put_along_axis(again, order[:, 1:], ranked[:, 1:] == ranked[:, :-1], 1)
    fresh = np.argsort(again, axis=1, kind="stable")[:, :k]
    assert not np.take_along_axis(again, fresh, 1).any(), "more draws are needed"
    ids = np.take_along_axis(drawn, fresh, 1).astype(np.int32)
    rows = np.arange(n)
    ids[rows, 0] = ids[rows, places]
    ids[rows, places] = gold
    return ids


def _train() -> list[Tokenizer]:
    from tokenizers import ByteLevelBPETokenizer

    trained = []
    for size in (4_000, 8_000, 2_000, 12_000):
        bpe = ByteLevelBPETokenizer()
        bpe.train_from_iterator(
            pydoc_data.topics.topics.values(),
            vocab_size=size,
            special_tokens=["<s>"],
            show_progress=False,
        )
        with tempfile.TemporaryDirectory() as folder:
            bpe.save(f"{folder}/tokenizer.json")
            roles = Path(folder, "tokenizer_config.json")
            roles.write_text(json.dumps({"bos_token": "<s>"}))
            trained.append(tokenizer.load(folder))
    return trained
