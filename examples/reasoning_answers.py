"""What models answer to items, and what of it is right; and what emerges of that."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from examples import skills
from examples.worked import MARK, Item
from schemas import files
from train.sandbox import Limits
from train.search import tasks
from train.search.tasks import Task
from transforms import causal, checkpoint, loading, templates
from transforms import tokenizer as tokenizers

MOST_TOKENS = 280
"""Of a response; a right one that has more is refused."""

Right = Mapping[str, Sequence[bool]]
"""Of each item of a skill whether it is answered, by skill."""


def ask(
    model: str, items: Mapping[str, Sequence[Item]], path: str
) -> dict[str, list[bool]]:
    """Asks a model, unless its answers are there; programs run in the sandbox.

    Args:
      model: folder with weights, tokenizer and chat template.
      items: what is asked, by skill.
      path: JSON file that gets the answers; those of another model, other items or
        another way to ask make way.

    Returns:
      Of each item whether it is answered, by skill.

    Raises:
      SchemaError: if a prompt or a right response does not fit.
    """
    tokenizer, template = tokenizers.load(model), templates.read(model)
    identity = {
        "model": checkpoint.fingerprint(model),
        "tokenizer": tokenizer.fingerprint,
        "template": template.fingerprint,
        "items": files.digest(
            [dataclasses.asdict(i) for s in items.values() for i in s]
        ),
        "most_tokens": MOST_TOKENS,
        "mark": MARK,
        "limits": dataclasses.asdict(Limits()),
    }
    if files.exists(path):
        kept = files.read_json(path)
        if kept["identity"] == identity:
            return _right(kept["answers"])
    loaded = loading.load_model(
        model, dtype=torch.float32, device=torch.device("cpu")
    ).eval()
    longest = causal.longest_input(loaded)
    answers = {}
    for skill, some in items.items():
        asked = Task(
            items=tuple(skills.asked(one, line) for line, one in enumerate(some, 1)),
            answer_after=MARK,
            template=template,
        )
        tasks.refuse_misfits(skill, asked, tokenizer, longest, MOST_TOKENS)
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
