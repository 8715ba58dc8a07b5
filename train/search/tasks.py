"""Exact-match tasks: a model answers prompts, and an answer is right or wrong.

The model goes on behind the prompt, or behind the prompt as a user's turn of its chat
template, at each token with its likeliest one, until it ends the text or the turn, or
has written as many tokens as are allowed. `answers` tells what of that is the answer,
and when it is right.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from schemas.checked import UnusableError
from schemas.errors import AlignmentError, SchemaError
from train.search import answers, greedy
from train.search.answers import Item
from transforms import chat
from transforms.templates import Template
from transforms.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """Items, and how they are asked.

    Attributes:
      items: the questions, one at least.
      answer_after: what the line of the answer begins with; None = the answer is the
        first line that is not empty.
      template: puts prompts as turns of a user; None = they are text to go on from.
    """

    items: tuple[Item, ...]
    answer_after: str | None = None
    template: Template | None = None


def accuracy(
    model: Any, tokenizer: Tokenizer, task: Task, max_new_tokens: int
) -> float:
    """Returns the share of a task's items that a model answers, in [0, 1].

    Args:
      model: a causal language model, in evaluation mode.
      tokenizer: its tokenizer.
      task: what is asked.
      max_new_tokens: most tokens of a response.
    """
    right = marks(model, tokenizer, task, max_new_tokens)
    return sum(right) / len(right)


def marks(
    model: Any, tokenizer: Tokenizer, task: Task, max_new_tokens: int
) -> list[bool]:
    """Returns of each item whether a model answers it; programs are run.

    Args:
      model: a causal language model, in evaluation mode.
      tokenizer: its tokenizer.
      task: what is asked.
      max_new_tokens: most tokens of a response.
    """
    texts = written(
        model,
        tokenizer,
        [item.prompt for item in task.items],
        max_new_tokens,
        template=task.template,
    )
    return [
        answers.is_right(item, text, task.answer_after)
        for item, text in zip(task.items, texts, strict=True)
    ]


def written(
    model: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    template: Template | None = None,
) -> list[str]:
    """Returns what a model writes behind each prompt, to the end of text or turn.

    Args:
      model: a causal language model, in evaluation mode.
      tokenizer: its tokenizer.
      prompts: what it goes on from, or is asked.
      max_new_tokens: most tokens of what it writes.
      template: puts prompts as turns of a user; None = they are text to go on from.

    Raises:
      UnusableError: if the template refuses a prompt.
    """
    rows = [prompt_ids(tokenizer, prompt, template) for prompt in prompts]
    ends = [tokenizer.eos_id]
    if template is not None:
        ends.append(chat.end_of_turn(template, tokenizer))
    stops = [end for end in dict.fromkeys(ends) if end is not None]
    made = greedy.continuations(model, rows, max_new_tokens, stops)
    return [spelled(tokenizer, ids) for ids in made]


def refuse_misfits(
    path: str,
    task: Task,
    tokenizer: Tokenizer,
    longest: int | None,
    max_new_tokens: int,
) -> None:
    """Looks whether every prompt and its right answer fit.

    Where an answer is worked first, its work is known by the item's response alone.

    Args:
      path: the file of the items.
      task: what is asked.
      tokenizer: of the model that is asked.
      longest: tokens that the model reads; None where nothing bounds them.
      max_new_tokens: most tokens of a response.

    Raises:
      SchemaError: if a prompt leaves no room for a response, or cannot be read, or a
        right answer is longer than a response may be; names the line.
    """
    for item in task.items:
        place = f"{path}, line {item.line}, must"
        try:
            asked = len(prompt_ids(tokenizer, item.prompt, task.template))
        except (UnusableError, AlignmentError) as error:
            raise SchemaError(
                f"{place} hold a prompt that becomes tokens: {error.args[-1]}"
            ) from error
        if longest is not None and asked + max_new_tokens > longest:
            raise SchemaError(
                f"{place} leave room for a response of {max_new_tokens} tokens, but its"
                f" prompt has {asked} of the {longest} that the model reads; lower"
                " max_new_tokens, or leave the item out"
            )
        told = item.answer if task.answer_after is None else item.response or ""
        needed = len(tokenizer.encode_middle(told))
        if needed > max_new_tokens:
            raise SchemaError(
                f"{place} have a right answer of at most {max_new_tokens} tokens, with"
                f" its work, but it has {needed}; set max_new_tokens to that at least,"
                " or leave the item out"
            )


def prompt_ids(
    tokenizer: Tokenizer, prompt: str, template: Template | None = None
) -> list[int]:
    """Returns the tokens that a model goes on from, the start token in front.

    Raises:
      UnusableError: if the template refuses the prompt.
    """
    if template is None:
        found = tokenizer.encode_window(prompt, ends_document=False)
    else:
        asked, controls = chat.ask(prompt, template, tokenizer)
        found = tokenizer.encode_window(asked, False, controls)
    return [int(n) for n in found.token_ids]


def spelled(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Spells tokens; control tokens have no bytes."""
    known = (n for n in ids if n < tokenizer.size)  # some models have more logits
    return b"".join(tokenizer.token_bytes[n] or b"" for n in known).decode(
        errors="replace"
    )
