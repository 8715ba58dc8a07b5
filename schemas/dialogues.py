"""Dialogues: messages of a record, in the shapes that chat corpora have.

    messages        {"messages": [{"role": "user", "content": "Hi"}, ...]}
    conversations   {"conversations": [{"from": "human", "value": "Hi"}, ...]}
    pairs           {"instruction": "Add.", "input": "1 + 1", "output": "2"}

In all of them a field `system` may hold a system turn that comes first. What is no
dialogue is not skipped, and nor is what says more than its words do (calls of tools,
reasoning apart, a history): it raises `UnusableError`, whose reason is counted.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from schemas import checked
from schemas.checked import UnusableError

Kind = Literal["auto", "messages", "conversations", "pairs"]

USER, ASSISTANT, SYSTEM, TOOL = "user", "assistant", "system", "tool"

ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), USER),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "bard", "bing", "claude", "bot", "model", "ai"),
        ASSISTANT,
    ),
    **dict.fromkeys(("system", "developer"), SYSTEM),
    **dict.fromkeys(("tool", "function", "observation"), TOOL),
}
"""What corpora call the roles, in lower case, and what templates call them."""

LISTS = {"messages": "messages", "conversations": "conversations"}
"""Field of each shape that is a list, unless another is named."""

PAIRS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
)
"""Fields of question and answer, the first pair that a record has."""


UNREAD = {
    **dict.fromkeys(("tool_calls", "function_call"), "calls of tools"),
    **dict.fromkeys(
        ("reasoning_content", "reasoning", "thinking"),
        "what is thought apart from what is said",
    ),
}
"""Fields of a message that would change what it says; none of them is read."""

MAX_TURNS = 1 << 16
"""Turns of a dialogue at most: each has a character of its own in a disguise."""

HISTORY = "history"
"""Field of a pair that earlier rounds stand in; it is not read."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message: who says it, as templates call the role, and what.

    `is_learned` is False of an answer that is there to be read alone (`weight: 0`).
    """

    role: str
    content: str
    is_learned: bool = True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Where a record's messages stand.

    Attributes:
      kind: "messages" and "conversations" are a list; "pairs" question and answer;
        "auto" what a record has of these, in this order.
      turns: field of the list; None = that of the shape's name.
      prompt: field of the question; None = the first of `PAIRS` that is there.
      answer: field of its answer, likewise.
      input: field of what the question is about, put behind it where it is not empty.
      system: field of a system turn.
    """

    kind: Kind = "auto"
    turns: str | None = None
    prompt: str | None = None
    answer: str | None = None
    input: str = "input"
    system: str = "system"

    def lists(self) -> tuple[str, ...]:
        """Names the fields that may hold a list of messages."""
        if self.kind == "pairs":
            return ()
        if self.turns is not None:
            return (self.turns,)
        return tuple(LISTS.values()) if self.kind == "auto" else (LISTS[self.kind],)

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Names the fields that may hold question and answer."""
        if self.kind not in ("auto", "pairs"):
            return ()
        if self.prompt is not None and self.answer is not None:
            return ((self.prompt, self.answer),)
        return tuple(
            (prompt, answer)
            for prompt, answer in PAIRS
            if self.prompt in (None, prompt) and self.answer in (None, answer)
        )

    def columns(self) -> tuple[str, ...]:
        """Names every field that may be looked at."""
        questions = [name for pair in self.pairs() for name in pair]
        return (*self.lists(), *questions, self.input, self.system, HISTORY)


def turns_of(content: dict[str, Any], shape: Shape) -> tuple[Turn, ...]:
    """Returns a record's messages, in order.

    Raises:
      UnusableError: if it holds no dialogue, or one that cannot be learned from.
    """
    made = _listed(content, shape) or _paired(content, shape)
    if made is None:
        names = [*shape.lists(), *("/".join(pair) for pair in shape.pairs())]
        detail = f"a record must hold a dialogue in one of {', '.join(names)}"
        raise UnusableError("missing_dialogue", detail)
    made = [*_system(content.get(shape.system), shape.system, made[0]), *made]
    if not any(turn.role == ASSISTANT and turn.is_learned for turn in made):
        detail = "a dialogue must hold an assistant's turn whose weight is not 0"
        raise UnusableError("no_answer", detail)
    return tuple(made)


def _system(told: Any, field: str, first: Turn) -> list[Turn]:
    """Reads the system turn that stands in a field of its own, if any."""
    if told is None:
        return []
    system = _content(told, f"field {field!r}", may_be_empty=True)
    if first.role != SYSTEM:
        return [Turn(role=SYSTEM, content=system)] if system else []
    if system not in ("", first.content):
        detail = f"field {field!r} must not differ from the system turn of the list"
        raise UnusableError("invalid_turn", detail)
    return []


def said(turns: Sequence[Turn]) -> str:
    """Returns what users and assistant say: what is a dialogue's own."""
    own = [turn.content for turn in turns if turn.role in (USER, ASSISTANT)]
    return "\n\n".join(own)


def _listed(content: dict[str, Any], shape: Shape) -> list[Turn] | None:
    """Reads the list of messages, the first there is."""
    for name in shape.lists():
        if (found := content.get(name)) is not None:
            if not isinstance(found, list) or not found:
                detail = f"field {name!r} must be a list of messages"
                raise UnusableError("invalid_turn", detail)
            if len(found) > MAX_TURNS:
                detail = f"a dialogue must hold at most {MAX_TURNS} turns"
                raise UnusableError("too_long", f"{detail}, got {len(found)}")
            return [_turn(one, f"{name}[{at}]") for at, one in enumerate(found)]
    return None


def _turn(message: Any, place: str) -> Turn:
    """Reads one message, by role and content or by from and value."""
    if not isinstance(message, dict):
        raise UnusableError("invalid_turn", f"{place} must be a message, an object")
    for name, what in UNREAD.items():
        if message.get(name):
            detail = f"{place} must be text alone, without {name!r}: {what}, not read"
            raise UnusableError("invalid_turn", detail)
    named = message.get("role", message.get("from"))
    role = ROLES.get(named.lower()) if isinstance(named, str) else None
    if role is None:
        detail = f"{place}: a role must be one of {', '.join(ROLES)}"
        raise UnusableError("unknown_role", detail)
    told = message.get("content", message.get("value"))
    content = _content(told, place, may_be_empty=role == SYSTEM)
    learned = _is_learned(message.get("weight"), place)
    return Turn(role=role, content=content, is_learned=learned)


def _is_learned(weight: Any, place: str) -> bool:
    """Reads the weight of a message: an answer of weight 0 is read and not learned."""
    if weight is None or weight == "":
        return True
    if not isinstance(weight, int | float) or weight not in (0, 1):
        detail = f"{place}: weight must be 0 or 1, or left out"
        raise UnusableError("invalid_turn", detail)
    return weight == 1


def _paired(content: dict[str, Any], shape: Shape) -> list[Turn] | None:
    """Reads question and answer, the first pair there is."""
    for prompt, answer in shape.pairs():
        if content.get(prompt) is None or content.get(answer) is None:
            continue
        if content.get(HISTORY) and shape.input != HISTORY:
            detail = f"a pair must be whole without field {HISTORY!r}, not read"
            raise UnusableError("invalid_turn", detail)
        question = _content(content[prompt], f"field {prompt!r}")
        about = content.get(shape.input)
        if about is not None:
            about = _content(about, f"field {shape.input!r}", may_be_empty=True)
            question = f"{question}\n\n{about}" if about.strip() else question
        return [
            Turn(role=USER, content=question),
            Turn(
                role=ASSISTANT, content=_content(content[answer], f"field {answer!r}")
            ),
        ]
    return None


def _content(told: Any, place: str, *, may_be_empty: bool = False) -> str:
    """Reads the text of a message: a string, or a list of parts that are text."""
    if isinstance(told, list) and all(isinstance(part, dict) for part in told):
        parts = [part.get("text") for part in told if part.get("type") == "text"]
        if len(parts) == len(told) and all(isinstance(part, str) for part in parts):
            told = "".join(map(str, parts))
    if not isinstance(told, str):
        raise UnusableError("invalid_turn", f"{place} must hold text")
    if not may_be_empty and not told.strip():
        raise UnusableError("empty_content", f"{place} must hold more than white space")
    return checked.sound(told, place)
