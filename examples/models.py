"""Trains the demo's own models: the target that is fused into, and sources.

    python -m examples.models runs/demo/prepared/base runs/demo/models --size full

They are real models, if small: each has its own tokenizer, its own architecture and
its own share of the text, so they know different things. On one machine they are a
function of the windows, the size and the seed alone, to the byte.
"""

import argparse
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tokenizers
import torch
import transformers
from torch.nn import functional

from examples import vocabularies
from examples.corpus import Size
from schemas import files, plan, windows
from transforms import allocator, causal

Texts = Mapping[str, Sequence[str]]
"""Windows of each domain."""

Architecture = Literal["llama", "qwen2", "gpt_neox", "mistral"]

_SAMPLE_BYTES = 2_000_000  # of text that a tokenizer is trained on
_POSITIONS = 2048  # more than the tokens of any window of the demo
_WARMUP = 0.05  # of the steps
_LEAST_RATE = 0.1  # of the peak, where the cosine ends
_BETAS = (0.9, 0.95)
_WEIGHT_DECAY = 0.1
_CLIP_NORM = 1.0
IGNORED = -100
"""Label of what is not learned: padding, say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How one model is made.

    Attributes:
      name: of its folder.
      architecture: of the model; its tokenizer goes with it. A Llama has a byte-level
        BPE, a Qwen2 one that never joins digits; a GPT-NeoX has a Unigram tokenizer
        with byte fallback and a dummy prefix, a Mistral such a BPE.
      vocabulary: tokens, control tokens and bytes included.
      mixture: share of the training windows that each domain gets; they sum to 1.
      width: of the hidden states.
      layers: how many.
      steps: of the optimizer; a step takes `batch` windows.
      batch: windows.
      learning_rate: at its peak.
    """

    name: str
    architecture: Architecture
    vocabulary: int
    mixture: Mapping[str, float]
    width: int
    layers: int
    steps: int
    batch: int
    learning_rate: float


_EVEN = {"code": 1 / 3, "prose": 1 / 3, "headers": 1 / 3}

PLANS: Mapping[Size, tuple[Plan, ...]] = {
    "full": (
        Plan(
            name="target",
            architecture="llama",
            vocabulary=4096,
            mixture=_EVEN,
            width=192,
            layers=4,
            steps=260,
            batch=4,
            learning_rate=3e-3,
        ),
        Plan(
            name="expert",
            architecture="gpt_neox",
            vocabulary=3072,
            mixture={"headers": 1.0},
            width=192,
            layers=4,
            steps=600,
            batch=4,
            learning_rate=3e-3,
        ),
    ),
    "tiny": (
        Plan(
            name="target",
            architecture="llama",
            vocabulary=1024,
            mixture=_EVEN,
            width=64,
            layers=2,
            steps=40,
            batch=4,
            learning_rate=3e-3,
        ),
        Plan(
            name="writer",
            architecture="llama",
            vocabulary=2048,
            mixture={"code": 0.5, "prose": 0.5},
            width=96,
            layers=2,
            steps=80,
            batch=4,
            learning_rate=5e-3,
        ),
        Plan(
            name="expert",
            architecture="gpt_neox",
            vocabulary=1024,
            mixture={"headers": 1.0},
            width=96,
            layers=2,
            steps=80,
            batch=4,
            learning_rate=5e-3,
        ),
    ),
}
"""The target first, then the sources that are made on the spot."""


def read_texts(folder: str) -> dict[str, list[str]]:
    """Reads the windows of a folder that `fusebeam prepare` wrote, by domain."""
    texts: dict[str, list[str]] = {}
    for window in windows.read_all(folder, plan.read(folder)):
        domain = window.domain or windows.DEFAULT_DOMAIN
        texts.setdefault(domain, []).append(window.text)
    return texts


def make_model(
    made: Plan,
    texts: Texts,
    folder: str,
    seed: int = 0,
    template: str | None = None,
    *,
    device: str = "cpu",
) -> float:
    """Trains a tokenizer and a model and saves both in one folder.

    Args:
      made: how.
      texts: windows of the base split; those of the mixture's domains are used.
      folder: gets what transformers reads: config.json, model.safetensors,
        tokenizer.json and tokenizer_config.json.
      seed: of the weights and of the order of the windows.
      template: chat template of a model that knows the marks of ChatML as control
        tokens; None for one that has no template, to which they are text.
      device: where it is trained; on a GPU it is not the same to the byte.

    Returns:
      The mean loss of the last tenth of the steps, in nats a token.
    """
    tokenizer = _tokenizer(made, texts)
    if template is not None:
        tokenizer.add_special_tokens(dict(vocabularies.CHAT_ROLES))
        tokenizer.chat_template = template
    torch.manual_seed(seed)
    model = new_model(made, tokenizer).to(device)
    return _train_and_save(made, texts, model, tokenizer, folder, seed)


def continue_model(
    made: Plan,
    texts: Texts,
    base: str,
    folder: str,
    seed: int = 0,
    *,
    device: str = "cpu",
) -> float:
    """Goes on training a model that `make_model` made, as an expert of its mixture.

    Args:
      made: how; architecture, vocabulary, width and layers are the base's own.
      texts: windows by domain; those of the mixture's domains are used.
      base: folder of the model, which stays as it is.
      folder: gets the expert, with the base's tokenizer.
      seed: of the order of the windows.
      device: where it is trained.

    Returns:
      The mean loss of the last tenth of the steps, in nats a token.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    with causal.quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(base).to(device)
    return _train_and_save(made, texts, model, tokenizer, folder, seed)


def _train_and_save(
    made: Plan,
    texts: Texts,
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerFast,
    folder: str,
    seed: int,
) -> float:
    """Trains a model and saves it; returns the last losses' mean, in nats a token."""
    drawn = draw(made, texts, np.random.default_rng(seed))
    losses = train(made, model, _batches(made, drawn, tokenizer))
    with causal.quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return float(np.mean(losses[-max(1, made.steps // 10) :]))


ONE_BORDER = {"bos_token": vocabularies.BORDER, "eos_token": vocabularies.BORDER}
SENTENCEPIECE = {
    "bos_token": vocabularies.BEGIN,
    "eos_token": vocabularies.END,
    "unk_token": vocabularies.UNKNOWN,
}
_TOKENIZERS: Mapping[
    Architecture,
    tuple[Callable[[Sequence[str], int], tokenizers.Tokenizer], Mapping[str, str]],
] = {
    "llama": (vocabularies.train_byte_bpe, ONE_BORDER),
    "qwen2": (vocabularies.train_digit_bpe, ONE_BORDER),
    "gpt_neox": (vocabularies.train_unigram, SENTENCEPIECE),
    "mistral": (vocabularies.train_piece_bpe, SENTENCEPIECE),
}


def _tokenizer(made: Plan, texts: Texts) -> transformers.PreTrainedTokenizerFast:
    """Trains the tokenizer that goes with the architecture."""
    sample: list[str] = []
    for domain, share in made.mixture.items():
        ends = itertools.accumulate(len(text.encode()) for text in texts[domain])
        fits = (end <= _SAMPLE_BYTES * share for end in ends)
        sample += itertools.compress(texts[domain], fits)
    train, roles = _TOKENIZERS[made.architecture]
    trained = train(sample, made.vocabulary)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=trained, **roles)


def new_model(
    made: Plan,
    tokenizer: transformers.PreTrainedTokenizerFast,
    deviation: float = 0.02,
) -> transformers.PreTrainedModel:
    """Makes a model with random weights, of torch's global generator.

    Args:
      made: how.
      tokenizer: whose vocabulary and borders it has.
      deviation: of the weights; 0.02 is what transformers has for all of these.
    """
    shape = {
        "initializer_range": deviation,
        "vocab_size": len(tokenizer),
        "hidden_size": made.width,
        "num_hidden_layers": made.layers,
        "num_attention_heads": made.width // 32,
        "max_position_embeddings": _POSITIONS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if made.architecture == "gpt_neox":
        shape |= {"intermediate_size": 4 * made.width}
    else:  # three matrices instead of two, so each is narrower
        inner = 32 * math.ceil(made.width * 8 / 3 / 32)
        shape |= {"intermediate_size": inner, "tie_word_embeddings": True}
        shape |= {"num_key_value_heads": made.width // 32}
    config = transformers.AutoConfig.for_model(made.architecture, **shape)
    return transformers.AutoModelForCausalLM.from_config(config)


def draw(made: Plan, texts: Texts, order: np.random.Generator) -> list[str]:
    """Draws all windows of the training, the domains mixed by their shares."""
    wanted = made.steps * made.batch
    drawn: list[str] = []
    for domain, share in made.mixture.items():
        count = math.ceil(wanted * share)
        passes = math.ceil(count / len(texts[domain]))
        places = [order.permutation(len(texts[domain])) for _ in range(passes)]
        drawn += [texts[domain][place] for place in np.concatenate(places)[:count]]
    return [drawn[place] for place in order.permutation(len(drawn))[:wanted]]


def _batches(
    made: Plan, drawn: Sequence[str], tokenizer: transformers.PreTrainedTokenizerFast
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields inputs and labels, (b, t) each: a window a row, BOS in front."""
    for start in range(0, len(drawn), made.batch):
        group = drawn[start : start + made.batch]
        rows = [
            [tokenizer.bos_token_id, *encoding.ids]
            for encoding in tokenizer.backend_tokenizer.encode_batch(group)
        ]
        inputs = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        labels = torch.full_like(inputs, IGNORED)
        for place, row in enumerate(rows):
            inputs[place, : len(row)] = torch.tensor(row)
            labels[place, : len(row) - 1] = torch.tensor(row[1:])
        yield inputs, labels


def train(
    made: Plan,
    model: transformers.PreTrainedModel,
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
) -> list[float]:
    """Trains in place with AdamW, warm-up and a cosine; returns each step's loss."""
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=made.learning_rate,
        betas=_BETAS,
        weight_decay=_WEIGHT_DECAY,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _rate(step, made.steps)
    )
    model.train()
    losses = []
    for inputs, labels in batches:
        logits = model(
            input_ids=inputs.to(model.device), use_cache=False
        ).logits  # (b, t, v)
        loss = functional.cross_entropy(
            logits.flatten(0, 1),
            labels.to(model.device).flatten(),
            ignore_index=IGNORED,
        )
        loss.backward()  # type: ignore[no-untyped-call]  # torch has it so
        torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def _rate(step: int, steps: int) -> float:
    """Learning rate as a share of its peak: up in a line, down in a cosine."""
    warmup = max(1, int(_WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    gone = (step - warmup) / max(1, steps - warmup)
    return _LEAST_RATE + (1 - _LEAST_RATE) * (1 + math.cos(math.pi * gone)) / 2


def main() -> None:
    """Makes the models of a demo."""
    parser = argparse.ArgumentParser(description="train the demo's models")
    parser.add_argument("windows", help="folder of the base split, from prepare")
    parser.add_argument("output", help="folder that gets a folder for each model")
    parser.add_argument("--size", choices=tuple(PLANS), default="full")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    allocator.keep_large_blocks()
    texts = read_texts(given.windows)
    for made in PLANS[given.size]:
        start = time.monotonic()
        loss = make_model(made, texts, files.join(given.output, made.name), given.seed)
        seconds = time.monotonic() - start
        print(f"{made.name:8} {loss:.3f} nats a token after {seconds:.0f} s")


if __name__ == "__main__":
    main()
