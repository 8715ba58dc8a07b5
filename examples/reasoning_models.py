"""How the models of examples/reasoning.py are made: a base, experts, one model jointly.

    base ──┬─ arithmetic, units, programs   of the base's make: merged with each other
           └─ joint                         all skills, in as many steps as these
    reckoner, converter, coder              of other makes: fused into the base

All read an item as its prompt, a newline, and the response, which alone is learned, end
of text included. Every digit is a token in all of their vocabularies, which are else
their own: a number is worked digit by digit, and a model of this size does not learn to
take one apart.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import tokenizers
import torch
import transformers

from examples import models, vocabularies
from examples.models import Architecture, Plan
from examples.skills import SINGLE
from examples.worked import Item
from schemas import files
from transforms import causal

Size = Literal["full", "tiny", "smollm2"]

Items = Mapping[str, Sequence[Item]]
"""Items of one skill, by skill."""

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}{{ message.content }}\n"
    "{% else %}{% generation %}{{ message.content }}{% endgeneration %}{% endif %}"
    "{% endfor %}"
)
"""Chat template: a question, a newline, the answer, and nothing else."""

BASE = "base"
OTHERS: Mapping[str, str] = dict(
    zip(("reckoner", "converter", "coder"), SINGLE, strict=True)
)
"""Experts of other makes, and their skills."""

JOINT = "joint"

TOIL: Mapping[str, int] = {"arithmetic": 3, "units": 2, "programs": 1}
"""How long skills take to learn, beside each other."""

_APART = "\n0123456789"
"""Characters that are tokens of their own."""

_DEVIATION = 0.08
"""Of the first weights: with 0.02 so narrow a model stands still for long."""

_POOL = 16  # batches that are filled by length together, so that little is padding


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """A model that is made.

    Attributes:
      plan: how; its mixture is of skills.
      parent: the model that it goes on from; None for one that begins anew.
    """

    plan: Plan
    parent: str | None = None


_RATE, _GENTLE = 2.5e-3, 5e-4
"""Learning rates of models that begin anew, and of those that go on: from so gentle a
step their weights stay near the base's, which merging needs."""


def _plans(width: int, layers: int, steps: Mapping[str, int]) -> tuple[Learner, ...]:
    """Returns all models, each behind its parent.

    Args:
      width: of all.
      layers: of all.
      steps: of the `base`; of an expert that begins `anew`, and of one that goes `on`
        from the base, times the toil of its skill.
    """
    toil = sum(TOIL.values())
    by_toil = {skill: TOIL[skill] / toil for skill in SINGLE}

    def plan(
        name: str,
        mixture: Mapping[str, float],
        steps: int,
        architecture: Architecture = "llama",
        rate: float = _RATE,
    ) -> Plan:
        return Plan(
            name=name,
            architecture=architecture,
            vocabulary=512,
            mixture=mixture,
            width=width,
            layers=layers,
            steps=steps,
            batch=8,
            learning_rate=rate,
        )

    makes: Sequence[Architecture] = ("qwen2", "mistral", "gpt_neox")
    anew = [
        Learner(plan=plan(name, {skill: 1.0}, TOIL[skill] * steps["anew"], make))
        for (name, skill), make in zip(OTHERS.items(), makes, strict=True)
    ]
    further = {s: ({s: 1.0}, TOIL[s]) for s in SINGLE} | {JOINT: (by_toil, toil)}
    on = [
        Learner(
            plan=plan(name, mixture, times * steps["on"], rate=_GENTLE), parent=BASE
        )
        for name, (mixture, times) in further.items()
    ]
    return Learner(plan=plan(BASE, by_toil, steps["base"])), *anew, *on


_STEPS = {"base": 1800, "anew": 900, "on": 200}

PLANS: Mapping[Size, tuple[Learner, ...]] = {
    "full": _plans(width=128, layers=3, steps=_STEPS),
    "tiny": _plans(width=32, layers=2, steps={"base": 4, "anew": 3, "on": 2}),
    "smollm2": _plans(width=128, layers=3, steps=_STEPS)[:4],
}
"""All models; beside SmolLM2 those that are fused, and no others."""

_Trains = Callable[[Sequence[str], int], tokenizers.Tokenizer]
_TOKENIZERS: Mapping[Architecture, tuple[_Trains, Mapping[str, str]]] = {
    "llama": (vocabularies.train_digit_bpe, models.ONE_BORDER),
    "qwen2": (vocabularies.train_digit_bpe, models.ONE_BORDER),
    "gpt_neox": (
        lambda texts, size: vocabularies.train_unigram(texts, size, _APART),
        models.SENTENCEPIECE,
    ),
    "mistral": (
        lambda texts, size: vocabularies.train_piece_bpe(texts, size, _APART),
        models.SENTENCEPIECE,
    ),
}


def make(learner: Learner, items: Items, folder: str, seed: int) -> float:
    """Trains a model and saves it beside the others, with its tokenizer and template.

    Args:
      learner: which; its parent is there already.
      items: to learn from, by skill.
      folder: gets a folder for the model.
      seed: of its weights, and of the order of the items.

    Returns:
      The mean loss of the last tenth of the steps, in nats a token of a response.
    """
    made, path = learner.plan, files.join(folder, learner.plan.name)
    texts = {skill: [text_of(one) for one in items[skill]] for skill in made.mixture}
    if learner.parent is None:
        tokenizer = _tokenizer(made, texts)
        torch.manual_seed(seed)
        model = models.new_model(made, tokenizer, _DEVIATION)
    else:
        parent = files.join(folder, learner.parent)
        tokenizer = transformers.AutoTokenizer.from_pretrained(parent)
        with causal.quiet():
            model = transformers.AutoModelForCausalLM.from_pretrained(parent)
    order = np.random.default_rng(seed)
    drawn = models.draw(made, texts, order)
    losses = models.train(made, model, _batches(made.batch, drawn, tokenizer, order))
    with causal.quiet():
        model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return float(np.mean(losses[-max(1, made.steps // 10) :]))


def text_of(item: Item) -> str:
    """Returns what a model reads of an item."""
    return f"{item.prompt}\n{item.response}"


def _tokenizer(made: Plan, texts: models.Texts) -> transformers.PreTrainedTokenizerFast:
    """Trains the tokenizer that goes with the architecture."""
    train, roles = _TOKENIZERS[made.architecture]
    trained = train([text for some in texts.values() for text in some], made.vocabulary)
    found = transformers.PreTrainedTokenizerFast(tokenizer_object=trained, **roles)
    found.chat_template = TEMPLATE
    return found


def _batches(
    batch: int,
    drawn: Sequence[str],
    tokenizer: transformers.PreTrainedTokenizerFast,
    order: np.random.Generator,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields inputs and labels, (b, t) each: an item a row, of like lengths."""
    rows = [row_of(text, tokenizer) for text in drawn]
    for start in range(0, len(rows), batch * _POOL):
        pool = sorted(rows[start : start + batch * _POOL], key=lambda row: len(row[0]))
        firsts = range(0, len(pool), batch)
        for first in order.permutation(firsts):
            yield _padded(pool[first : first + batch])


def row_of(
    text: str, tokenizer: transformers.PreTrainedTokenizerFast
) -> tuple[list[int], int]:
    """Returns the tokens of an item, borders included, and where its response begins.

    A response begins at the first token that ends behind the first newline.
    """
    encoding = tokenizer.backend_tokenizer.encode(text)
    prompt = text.index("\n") + 1
    asked = sum(stop <= prompt for _, stop in encoding.offsets)
    ids = [tokenizer.bos_token_id, *encoding.ids, tokenizer.eos_token_id]
    return ids, 1 + asked


def _padded(rows: Sequence[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Puts rows into a rectangle; what is no response is not learned."""
    longest = max(len(ids) for ids, _ in rows)
    inputs = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full_like(inputs, models.IGNORED)
    for place, (ids, answer) in enumerate(rows):
        inputs[place, : len(ids)] = torch.tensor(ids)
        labels[place, answer - 1 : len(ids) - 1] = torch.tensor(ids[answer:])
    return inputs, labels
