"""Language models that a minute makes, and what they say of text they have not seen.

A Llama of two layers for a vocabulary, from the running Python's own sources and
manual: with a byte-level BPE of 8,192 tokens that is trained here, or the real
tokenizer of Llama 2 (32,000) or Qwen2.5 (151,665). A step's softmax is over the ids
that the step's tokens have, corrected by the chance that an id is among them (Jean et
al. 2015, arXiv 1412.2007, section 3), so the size of the vocabulary costs nothing. Ids
that the text lacks are never learned: they have no mass.
"""

import dataclasses
import math
import pydoc_data.topics
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from schemas.scores import Score
from tests import real_tokenizers
from tests.bench import ngram, said
from transforms import logits, tokenizer
from transforms.tokenizer import Encoding, Tokenizer

CACHE = ".cache/bench/{}-1.npz"
K = 64
SMALL = 8192
REAL = {"llama2": 32_000, "qwen2_5": 151_665}
"""Names of `tests.real_tokenizers`, and how many tokens each has."""

_PIECE = 1024  # characters of a window
_TRAIN_CHARS, _HELD_CHARS = 4 << 20, 180_000
_WIDTH, _LAYERS = 128, 2
_STEPS, _ROWS, _ROW_TOKENS = 400, 8, 256
_WARMUP, _RATE, _LEAST_RATE = 30, 4e-3, 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A body, whose embedding is its head too, and a bias over the ids of a text."""

    causal: transformers.LlamaForCausalLM
    bias: nn.Parameter
    seen: np.ndarray

    def features(self, ids: Tensor) -> Tensor:
        """Returns (b t, width) of ids (b, t)."""
        body = self.causal.model(input_ids=ids, use_cache=False)
        return body.last_hidden_state.flatten(0, 1)

    def head(self, features: Tensor, ids: Tensor | slice = slice(None)) -> Tensor:
        """Returns the logits of these ids, or of all."""
        weights = self.causal.get_input_embeddings().weight
        return features @ weights[ids].T + self.bias[ids]


def names() -> list[str]:
    """Lists the vocabularies that are there."""
    return ["bpe", *(name for name in REAL if name in real_tokenizers.available())]


def size_of(name: str) -> int:
    """Returns how many tokens a vocabulary has."""
    return REAL.get(name, SMALL)


def scored(name: str) -> list[Score]:
    """Returns what the model of a vocabulary says, unrounded; it is kept."""
    return said.cached(Path(CACHE.format(name)), lambda: _make(name))


def _make(name: str) -> list[Score]:
    train, held = _texts()
    own = _small_bpe(train) if name == "bpe" else real_tokenizers.load(name)
    encoded = own.encode_windows(train, [False] * len(train))
    stream = np.concatenate([one.token_ids for one in encoded])
    model = _train(stream)
    found = own.encode_windows(held, [False] * len(held))
    places = np.full(own.size, -1)
    places[model.seen] = np.arange(model.seen.size)
    whole = [one for one in found if (places[one.token_ids] >= 0).all()]
    with torch.inference_mode():
        return [_score(model, one, places) for one in whole]


def _texts() -> tuple[list[str], list[str]]:
    """Cuts the manual and the standard library into windows, some of them held out."""
    train, held = ngram.read_texts()
    manual = sorted(pydoc_data.topics.topics.values())
    own, other = manual[::2] + train, manual[1::8] + held[::4]
    return _cut(own, _TRAIN_CHARS), _cut(other, _HELD_CHARS)


def _cut(texts: list[str], chars: int) -> list[str]:
    pieces = [t[i : i + _PIECE] for t in texts for i in range(0, len(t), _PIECE)]
    return pieces[: chars // _PIECE]


def _small_bpe(texts: list[str]) -> Tokenizer:
    made = ngram.train_tokenizer(texts, SMALL)
    with tempfile.TemporaryDirectory() as folder:
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_object=made, bos_token="<s>", eos_token="<s>"
        )
        fast.save_pretrained(folder)
        return tokenizer.load(folder)


def _train(stream: np.ndarray) -> Model:
    """Trains a model on tokens end to end."""
    seen, places = np.unique(stream, return_inverse=True)
    shares = torch.from_numpy(np.bincount(places) / places.size).float()
    model = _new_model(seen, shares)
    every = [*model.causal.parameters(), model.bias]
    optimizer = torch.optim.AdamW(
        every, lr=_RATE, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate)
    rng, tokens = np.random.default_rng(0), torch.from_numpy(places)
    for _ in range(_STEPS):
        starts = rng.integers(0, len(tokens) - _ROW_TOKENS - 1, _ROWS)
        rows = torch.stack([tokens[a : a + _ROW_TOKENS + 1] for a in starts])
        ids, labels = torch.unique(rows[:, 1:], return_inverse=True)
        labels = labels.flatten()
        chance = -torch.expm1(labels.numel() * torch.log1p(-shares[ids]))
        scores = model.head(model.features(rows[:, :-1]), ids) - chance.log()
        functional.cross_entropy(scores, labels).backward()  # type: ignore[no-untyped-call]  # torch has it so
        nn.utils.clip_grad_norm_(every, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model


def _new_model(seen: np.ndarray, shares: Tensor) -> Model:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(seen),
        hidden_size=_WIDTH,
        intermediate_size=3 * _WIDTH,
        num_hidden_layers=_LAYERS,
        num_attention_heads=_WIDTH // 32,
        num_key_value_heads=_WIDTH // 32,
        max_position_embeddings=2 * _PIECE,
    )
    causal = transformers.LlamaForCausalLM(config)
    return Model(causal=causal, bias=nn.Parameter(shares.log()), seen=seen)


def _rate(step: int) -> float:
    """Learning rate as a share of its peak: up in a line, down in a cosine."""
    cosine = (1 + math.cos(math.pi * step / _STEPS)) / 2
    return min(1, (step + 1) / _WARMUP) * (_LEAST_RATE + (1 - _LEAST_RATE) * cosine)


def _score(model: Model, encoding: Encoding, places: np.ndarray) -> Score:
    """Scores a window by the reduction that every model's logits go through."""
    ids = torch.from_numpy(places[encoding.token_ids])
    scores = model.head(model.features(ids[None, :-1]))
    draws = torch.zeros(len(ids) - 1, 0, dtype=torch.float64)
    kept = logits.to_arrays(
        [logits.reduce_logits(scores, ids[1:], draws, len(model.seen), K)]
    )
    return Score(
        window_id="",
        token_ids=encoding.token_ids,
        byte_ends=encoding.byte_ends,
        top_ids=model.seen[kept.top_ids].astype(np.int32),
        top_logprobs=kept.top_logprobs,
        logsumexp=kept.logsumexp,
        gold_logprob=kept.gold_logprob,
        nll_nats=None,
        n_bytes=int(encoding.byte_ends[-1]),
    )
