"""What a chat template may use up while it renders: steps, and characters at once.

A template is a program from elsewhere. It may loop within loops, or double a string
until memory is full. So what it reads is weighed before it is read, and what it is
about to make before it is made; a rendering that takes too much is refused.
"""

import itertools
import math
import re
from collections.abc import (
    ItemsView,
    Iterator,
    KeysView,
    Mapping,
    Sequence,
    Set,
    ValuesView,
)
from typing import Any

from jinja2.exceptions import TemplateError
from jinja2.runtime import LoopContext

MAX_CHARS = 1 << 24
"""Characters that a value may have, and that a rendering may write in all."""

MAX_STEPS = 1 << 22
"""Values that a rendering may read: turns of loops, arguments, what is written."""

_MAX_BITS = 1 << 12  # of a whole number
_CHARS_A_STEP = 1 << 12  # a longer string counts as several values
_DIGITS_A_BIT = 0.31
_MAX_PRECISION = 400  # digits that a number may be rounded to

_WHOLES = (list, tuple, Set, KeysView, ValuesView, ItemsView)


class LimitError(TemplateError):
    """A template asks for more than a rendering may take."""


class Meter:
    """Counts what one rendering has used up."""

    def __init__(self) -> None:
        self._steps = 0
        self._written = 0

    def take(self, value: Any) -> Any:
        """Counts a value that is about to be read.

        Returns:
          The value; an iterator as the list of what it yields.

        Raises:
          LimitError: if it is too large, or too much has been read.
        """
        if isinstance(value, Iterator) and not isinstance(value, LoopContext):
            value = list(self._each(value))
        self.weigh(value)
        return value

    def write(self, value: Any) -> Any:
        """Counts a value that is about to be written; returns it."""
        self._written += self.weigh(value)
        _check(self._written, "write more")
        return value

    def weigh(self, value: Any) -> int:
        """Counts about the characters of a value, with all that it holds."""
        size = self._weigh(value, 0)
        _check(size, "make a value of more")
        return size

    def _each(self, values: Iterator[Any]) -> Iterator[Any]:
        total = 0
        for value in values:
            total += self.weigh(value)
            _check(total, "make a list of more")
            yield value

    def _weigh(self, value: Any, held: int) -> int:
        """Counts characters; stops where with the `held` they are too many."""
        if isinstance(value, str | bytes):
            self._spend(1 + len(value) // _CHARS_A_STEP)
            return len(value)
        self._spend(1)
        if isinstance(value, int):
            return 1 + int(value.bit_length() * _DIGITS_A_BIT)
        if isinstance(value, range):
            self._spend(len(value))
            return len(value)
        if isinstance(value, Mapping):
            parts: Any = itertools.chain.from_iterable(value.items())
        elif isinstance(value, _WHOLES):
            parts = value
        else:
            return 1
        size = len(value)
        for part in parts:
            size += self._weigh(part, held + size)
            if held + size > MAX_CHARS:
                break
        return size

    def _spend(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise LimitError(
                f"must take at most {MAX_STEPS:,} steps for a dialogue, it asks for"
                " more"
            )

    def check_call(self, name: str, subject: Any, given: Sequence[Any]) -> None:
        """Checks what a filter or a method of a string is about to make.

        Args:
          name: the filter's or the method's name.
          subject: what it is of.
          given: what else it is given.

        Raises:
          LimitError: if that is too large.
        """
        sizes = [abs(one) if _is_int(one) else self.weigh(one) for one in given]
        _check(max(sizes, default=0), "pad to more")
        _check(_growth(name, subject, given, sizes), "make a value of more")

    def check_operator(self, operator: str, left: Any, right: Any) -> None:
        """Checks what `left operator right` is about to make, likewise."""
        if operator == "%":
            if isinstance(left, str | bytes):
                given = right if isinstance(right, tuple) else (right,)
                self.check_call("format", left, given)
            return
        if _is_int(left) and _is_int(right):
            _check_number(operator, left, right)
            return
        sizes = [abs(n) if _is_int(n) else self.weigh(n) for n in (left, right)]
        made = sum(sizes) if operator == "+" else math.prod(sizes)
        if not isinstance(left, float) and not isinstance(right, float):
            _check(made, "make a value of more")


def _check_number(operator: str, left: int, right: int) -> None:
    bits = left.bit_length() + right.bit_length()
    if operator == "**":
        bits = left.bit_length() * max(right, 0)
    if operator != "+" and bits > _MAX_BITS:
        raise LimitError(
            f"must reckon with numbers of at most {_MAX_BITS:,} bits, it asks for more"
        )


def _growth(name: str, subject: Any, given: Sequence[Any], sizes: Sequence[int]) -> int:
    """Bounds the characters that a filter or a method adds to what it is given.

    Args:
      name: its name.
      subject: what it is of.
      given: its arguments.
      sizes: their characters, or the numbers themselves.
    """
    if name == "round":
        return MAX_CHARS // _MAX_PRECISION * max(sizes, default=0)
    if name in ("batch", "slice"):
        return math.prod(sizes)
    if name == "join" and given:
        return _length(subject) * _length(given[0])
    if not isinstance(subject, str | bytes):
        return 0
    widest = max(sizes, default=0)
    if name == "replace":
        texts = [one for one in given if isinstance(one, type(subject) | str)][:2]
        return subject.count(texts[0]) * len(texts[1]) if len(texts) > 1 else 0  # type: ignore[arg-type]
    if name == "expandtabs":
        return str(subject).count("\t") * (widest or 8)
    if name == "indent":
        return (1 + str(subject).count("\n")) * (widest or 4)
    if name in ("format", "format_map"):
        places = str(subject).count("%") + str(subject).count("{")
        numbers = [int(found) for found in re.findall(r"\d{1,9}", str(subject))]
        return places * (sum(sizes) + max(numbers, default=0))
    if name in ("translate", "wordwrap", "urlize"):
        texts_of = [n for n, one in zip(sizes, given, strict=True) if not _is_int(one)]
        return len(subject) * sum(texts_of)
    return 0


def _length(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 1


def _is_int(value: Any) -> bool:
    return isinstance(value, int)


def _check(chars: int, what: str) -> None:
    if chars > MAX_CHARS:
        raise LimitError(
            f"must make at most {MAX_CHARS:,} characters of a dialogue, it asks to"
            f" {what}"
        )
