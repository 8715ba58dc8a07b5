"""Control tokens that a chat template wrote into a text.

Elsewhere text that spells a control token is text. Inside the spans that a template
wrote it is the token, for every tokenizer that has it.
"""

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """How a control token is written.

    Attributes:
      text: its spelling.
      token_id: its id.
      lstrip: whether it swallows the white space in front of it.
      rstrip: whether it swallows the white space behind it.
    """

    text: str
    token_id: int
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A control token in a text, at the bytes [start, stop)."""

    token_id: int
    start: int
    stop: int


def find_control_tokens(
    text: str, control_spans: Sequence[int], spellings: Iterable[Spelling]
) -> list[Found]:
    """Finds the control tokens that stand wholly inside the given spans.

    Args:
      text: a window's text.
      control_spans: start, stop, start, stop, ... in bytes of its UTF-8, rising.
      spellings: the control tokens that may stand there.

    Returns:
      The tokens, in order.

    Raises:
      ValueError: if the spans do not rise, leave the text, or split a character.
    """
    raw = text.encode()
    bounds = [0, *control_spans, len(raw)]
    if len(control_spans) % 2 or bounds != sorted(bounds):
        raise ValueError(
            f"control_spans must be rising pairs in [0, {len(raw)}], "
            f"got {list(control_spans)}"
        )
    ordered, pattern = _compiled(tuple(spellings))
    found: list[Found] = []
    for start, stop in zip(control_spans[::2], control_spans[1::2], strict=True):
        written = _decode(raw, start, stop)
        for match in pattern.finditer(written):
            if (group := match.lastindex) is None:
                continue  # no spellings at all: the empty pattern
            first = start + len(written[: match.start()].encode())
            last = first + len(match[0].encode())
            token_id = ordered[group - 1].token_id
            found.append(Found(token_id=token_id, start=first, stop=last))
    return found


@functools.lru_cache(maxsize=64)  # asked for with every window that is counted
def _compiled(
    spellings: tuple[Spelling, ...],
) -> tuple[tuple[Spelling, ...], re.Pattern[str]]:
    """Compiles a pattern of spellings, a group each, in the order that it returns."""
    # by falling length, so that none hides a longer one
    ordered = tuple(sorted(spellings, key=lambda one: (-len(one.text), one.text)))
    return ordered, re.compile("|".join(map(_pattern, ordered)))


def _pattern(one: Spelling) -> str:
    before, behind = (r"\s*" if strip else "" for strip in (one.lstrip, one.rstrip))
    return f"{before}({re.escape(one.text)}){behind}"


def _decode(raw: bytes, start: int, stop: int) -> str:
    try:
        return raw[start:stop].decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"control_spans must not split a character, got [{start}, {stop})"
        ) from error
