"""Exact-match tasks: a model answers prompts, and an answer is right or wrong.

A task is a JSON Lines file of items:

    {"prompt": "3 km in m: ", "answer": "3000"}

The model goes on behind the prompt, at each token with its likeliest one, until it ends
the text, or has written as many tokens as are allowed. The first line of it that is not
empty must be the answer, but for white space at both ends.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import torch

from schemas import files
from schemas.errors import SchemaError
from transforms.tokenizer import Tokenizer

_BATCH = 64
"""Prompts that are answered at once, all of one length: so none is padded."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A question and its one right answer.

    Attributes:
      prompt: what the model goes on from.
      answer: what it must write, without white space at both ends.
    """

    prompt: str
    answer: str


def read(path: str) -> tuple[Item, ...]:
    """Reads the items of a task.

    Raises:
      FileNotFoundError: if there is no such file.
      SchemaError: if a line is no item, or there is none; names the line.
    """
    found = []
    for number, line in enumerate(files.read_bytes(path).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            told = json.loads(line.decode())
            prompt, answer = told["prompt"], told["answer"]
            if not (isinstance(prompt, str) and isinstance(answer, str)):
                raise TypeError("they are no strings")
            if not (prompt and answer.strip()):
                raise ValueError("one is empty")
            if len(answer.strip().splitlines()) > 1:
                raise ValueError("the answer has several lines, of which one is asked")
        except (ValueError, TypeError, KeyError) as error:
            raise SchemaError(
                f"{path}, line {number}, must hold 'prompt' and 'answer', both strings"
                f" that are not empty: {error}"
            ) from error
        found.append(Item(prompt=prompt, answer=answer.strip()))
    if not found:
        raise SchemaError(f"{path} must hold an item at least, it holds none")
    return tuple(found)


def accuracy(
    model: Any, tokenizer: Tokenizer, items: Sequence[Item], max_new_tokens: int
) -> float:
    """Returns the share of items that a model answers, in [0, 1].

    Args:
      model: a causal language model, in evaluation mode.
      tokenizer: its tokenizer.
      items: of the task.
      max_new_tokens: most tokens of an answer.
    """
    prompts = [[tokenizer.start_id, *_ids(tokenizer, one.prompt)] for one in items]
    by_length: dict[int, list[int]] = {}
    for place, ids in enumerate(prompts):
        by_length.setdefault(len(ids), []).append(place)
    right = 0
    for places in by_length.values():
        for start in range(0, len(places), _BATCH):
            group = places[start : start + _BATCH]
            rows = torch.tensor([prompts[place] for place in group])
            made = _continue(model, tokenizer, rows, max_new_tokens)
            right += sum(
                said(tokenizer, ids) == items[place].answer
                for place, ids in zip(group, made, strict=True)
            )
    return right / len(items)


def _ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    return [int(n) for n in tokenizer.encode(prompt).token_ids]


def _continue(
    model: Any, tokenizer: Tokenizer, rows: torch.Tensor, most: int
) -> list[list[int]]:
    """Goes on from prompts of one length, with the likeliest token each time."""
    from transformers import GenerationConfig  # takes seconds

    end = tokenizer.eos_id
    rows = rows.to(model.device)  # (b, t)
    made = model.generate(
        rows,
        attention_mask=torch.ones_like(rows),
        generation_config=GenerationConfig(
            do_sample=False,
            max_new_tokens=most,
            eos_token_id=end,
            pad_token_id=tokenizer.pad_id if end is None else end,
        ),
    )
    return made[:, rows.shape[1] :].tolist()


def said(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Returns the first line that is not empty of what tokens say, till their EOS."""
    lines = _text(tokenizer, ids).strip().splitlines()
    return lines[0].strip() if lines else ""


def _text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Spells tokens till EOS; control tokens have no bytes."""
    found = b""
    for token in ids:
        if token == tokenizer.eos_id:
            break
        if token < tokenizer.size:  # some models have more logits than tokens
            found += tokenizer.token_bytes[token] or b""
    return found.decode(errors="replace")
