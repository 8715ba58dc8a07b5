"""What models answer to items, and what of it is right; and what emerges of that."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from examples import skills
from examples.skills import Item
from schemas import files
from train.search import tasks
from transforms import causal, templates
from transforms import tokenizer as tokenizers

MOST_TOKENS = 200
"""Of a response, more than any right one has."""

Right = Mapping[str, Sequence[bool]]
"""Of each item of a skill whether it is answered, by skill."""


def ask(
    model: str, items: Mapping[str, Sequence[Item]], path: str
) -> dict[str, list[bool]]:
    """Asks a model, unless its answers are there; programs run in the sandbox.

    Args:
      model: folder with weights, tokenizer and chat template.
      items: what is asked, by skill.
      path: JSON file that gets the answers; those of other weights or items make way.

    Returns:
      Of each item whether it is answered, by skill.
    """
    identity = {
        "weights": files.checksum(files.join(model, "model.safetensors")),
        "items": files.digest([one.prompt for some in items.values() for one in some]),
    }
    if files.exists(path):
        kept = files.read_json(path)
        if kept["identity"] == identity:
            return _right(kept["answers"])
    answers = {}
    loaded = causal.load_model(
        model, dtype=torch.float32, device=torch.device("cpu")
    ).eval()
    tokenizer, template = tokenizers.load(model), templates.read(model)
    for skill, some in items.items():
        prompts = [one.prompt for one in some]
        told = tasks.written(loaded, tokenizer, prompts, MOST_TOKENS, template=template)
        answers[skill] = [
            {
                "prompt": one.prompt,
                "response": text,
                "right": skills.is_right(one, text),
            }
            for one, text in zip(some, told, strict=True)
        ]
    files.write_json(path, {"identity": identity, "answers": answers})
    return _right(answers)


def _right(answers: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[bool]]:
    return {skill: [one["right"] for one in some] for skill, some in answers.items()}


def share(right: Sequence[bool]) -> float:
    """Returns the share of items that are answered, in percent."""
    return 100 * sum(right) / len(right)


def emergent(model: Sequence[bool], others: Collection[Sequence[bool]]) -> int:
    """Counts the items that a model answers, and none of the others does."""
    return sum(
        own and not any(theirs) for own, *theirs in zip(model, *others, strict=True)
    )


def lost(model: Sequence[bool], others: Collection[Sequence[bool]]) -> int:
    """Counts the items that one of the others answers, and a model does not."""
    return sum(
        not own and any(theirs) for own, *theirs in zip(model, *others, strict=True)
    )
