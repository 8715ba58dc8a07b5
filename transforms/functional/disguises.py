"""Dialogues in a disguise that shows, in a rendering, what comes from which turn.

A template is a program: it may trim, escape or drop what it is given, merge turns, or
add words of its own. So nothing is searched for in what it renders. The dialogue is
rendered a second time, each turn's letters replaced by one character that stands
nowhere else, and both renderings must agree wherever the disguise does not show::

    rendered    <|user|>Hi you<|end|><|assistant|>Hi<|end|>
    disguised   <|user|>00 000<|end|><|assistant|>11<|end|>

Where they do not, since the template looks into what it is given, the words that it may
look for stay bare, then all punctuation. White space always does, as it is trimmed.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from schemas.dialogues import USER, Turn

NOTHING = re.compile("(?!)")
_CODES = range(0xF0000, 0x10FFFE)  # planes for private use
_PLANES = f"{chr(_CODES[0])}-{chr(_CODES[-1])}"


@runtime_checkable
class Render(Protocol):
    """A template."""

    def __call__(
        self,
        turns: Sequence[Turn],
        *,
        prompt: bool = False,
        marks: tuple[str, str] = ("", ""),
    ) -> str:
        """Renders turns.

        Args:
          turns: the dialogue.
          prompt: whether the assistant is to go on from there.
          marks: written around each `{% generation %}` block.

        Raises:
          ValueError: if the template refuses the dialogue.
        """


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Characters [start, stop) that come from one turn.

    `first` and `last` bound those that the disguise shows; around them may stand what
    stayed bare, such as white space.
    """

    turn: int
    start: int
    stop: int
    first: int
    last: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Cloth:
    """What is hidden of a turn: what matches `hidden`, outside of `bare`."""

    hidden: str
    bare: re.Pattern[str]
    is_full: bool = False

    def cover(self, content: str, code: str) -> str:
        """Disguises a turn's content."""
        parts, start = [], 0
        for found in self.bare.finditer(content):
            parts += [re.sub(self.hidden, code, content[start : found.start()])]
            parts += [found.group()]
            start = found.end()
        return "".join([*parts, re.sub(self.hidden, code, content[start:])])


def _cloths(looked_for: Sequence[str]) -> Iterator[_Cloth]:
    yield _Cloth(hidden=r"\S", bare=NOTHING, is_full=True)
    bare = any_of(tuple(looked_for))
    yield _Cloth(hidden=r"\S", bare=bare)
    yield _Cloth(hidden=r"[^\W_]", bare=bare)


@functools.lru_cache(maxsize=64)
def any_of(words: tuple[str, ...]) -> re.Pattern[str]:
    """Compiles a pattern of words, none hiding a longer one; white space is no word."""
    known = sorted({word for word in words if word.strip()}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, known))) if known else NOTHING


@dataclasses.dataclass(frozen=True, kw_only=True)
class Disguised:
    """A dialogue under a disguise that fits.

    Attributes:
      turns: the dialogue.
      hidden: the same, disguised.
      codes: the character that stands for each turn, in order.
      spare: one more, for a turn that might follow.
      is_full: whether nothing but white space stayed bare.
      render: the template.
      text: the rendering of the dialogue.
      plain: the rendering of the disguised one, of the same length.
      blocks: where `{% generation %}` blocks stand.
    """

    turns: Sequence[Turn]
    hidden: Sequence[Turn]
    codes: str
    spare: str
    is_full: bool
    render: Render
    text: str
    plain: str
    blocks: list[tuple[int, int]]

    def runs(self) -> list[Run]:
        """Finds what comes from the turns, in the order of the rendering."""
        made: list[Run] = []
        turn_of = {code: turn for turn, code in enumerate(self.codes)}
        for found in re.finditer(f"([{_PLANES}])\\1*", self.plain):
            if found[1] not in turn_of:
                continue  # a turn's own
            turn, (first, last) = turn_of[found[1]], found.span()
            between = self.plain[made[-1].last : first] if made else ""
            if made and made[-1].turn == turn and self._is_own(between):
                first = made.pop().first
            made.append(Run(turn=turn, start=first, stop=last, first=first, last=last))
        return [self._widen(made, at) for at in range(len(made))]

    def _is_own(self, between: str) -> bool:
        """Says whether what stands between two parts of a turn is the turn's.

        Under a full disguise words that show are the template's; else they may be what
        stayed bare, and pass for text.
        """
        return not (self.is_full and between.strip())

    def _widen(self, runs: Sequence[Run], at: int) -> Run:
        """Takes in what stayed bare at the ends of a turn, where it was rendered."""
        run = runs[at]
        content, code = self.hidden[run.turn].content, self.codes[run.turn]
        low = runs[at - 1].last if at else 0
        high = runs[at + 1].first if at + 1 < len(runs) else len(self.plain)
        before, behind = self.plain[low : run.first], self.plain[run.last : high]
        lead = content[: content.index(code)]
        trail = content[content.rindex(code) + 1 :]
        led = next(p for p in (lead, lead.lstrip(), "") if before.endswith(p))
        left = next(p for p in (trail, trail.rstrip(), "") if behind.startswith(p))
        return dataclasses.replace(
            run, start=run.first - len(led), stop=run.last + len(left)
        )

    def tail(self, count: int, *, prompt: bool) -> str | None:
        """Renders the first turns alone; returns what follows the last of them.

        None where the template refuses them.
        """
        try:
            plain = self.render(self.hidden[:count], prompt=prompt)
        except ValueError:
            return None
        return plain[self._behind_turns(plain, len(plain)) :]

    def followed(self, count: int) -> str | None:
        """Renders the first turns and one more of a user.

        Returns:
          What stands between the last of them and that one; None where the template
          refuses it.
        """
        more = Turn(role=USER, content=self.spare)
        try:
            plain = self.render([*self.hidden[:count], more])
        except ValueError:
            return None
        stop = plain.find(self.spare)
        return plain[self._behind_turns(plain, stop) : stop]

    def _behind_turns(self, plain: str, stop: int) -> int:
        """Finds where the last turn ends that shows in front of `stop`; else 0."""
        own = frozenset(self.codes)
        places = range(stop - 1, -1, -1)
        return 1 + next((at for at in places if plain[at] in own), -1)


def disguise(
    turns: Sequence[Turn], render: Render, looked_for: Sequence[str]
) -> Disguised | None:
    """Disguises a dialogue, so that the template does with it what it does.

    Args:
      turns: the dialogue.
      render: the template.
      looked_for: words that the template may look for in what it is given; none that
        spells a control token, which must never pass for the template's.

    Returns:
      The first disguise that fits; None where none does.

    Raises:
      ValueError: if the template refuses the dialogue.
    """
    text = render(turns)
    begin, end, spare, *codes = _unused(text, turns)
    for cloth in _cloths(looked_for):
        hidden = [
            Turn(role=turn.role, content=cloth.cover(turn.content, code))
            for turn, code in zip(turns, codes, strict=True)
        ]
        try:
            marked = render(hidden, marks=(begin, end))
        except ValueError:  # it refuses what it does not recognize
            continue
        plain, blocks = _without_marks(marked, begin, end)
        if _agree(plain, text, turns, codes) and _all_show(hidden, codes):
            return Disguised(
                turns=turns,
                hidden=hidden,
                codes="".join(codes),
                spare=spare,
                is_full=cloth.is_full,
                render=render,
                text=text,
                plain=plain,
                blocks=blocks,
            )
    return None


def _unused(text: str, turns: Sequence[Turn]) -> list[str]:
    """Chooses characters that stand nowhere: two marks, a spare, one for each turn."""
    used = set(text).union(*(turn.content for turn in turns))
    free = (chr(code) for code in _CODES if chr(code) not in used)
    return [code for code, _ in zip(free, range(3 + len(turns)), strict=False)]


def _without_marks(
    marked: str, begin: str, end: str
) -> tuple[str, list[tuple[int, int]]]:
    """Takes the marks out of a rendering; returns it, and where blocks stood."""
    plain, opened, blocks = "", 0, []
    for part in re.split(f"([{begin}{end}])", marked):
        if part == begin:
            opened = len(plain)
        elif part == end:
            blocks.append((opened, len(plain)))
        else:
            plain += part
    return plain, blocks


def _agree(plain: str, text: str, turns: Sequence[Turn], codes: Sequence[str]) -> bool:
    """Says whether two renderings are the same but for the disguise and for case."""
    letters = {
        code: set(turn.content.casefold())
        for turn, code in zip(turns, codes, strict=True)
    }
    return len(plain) == len(text) and all(
        letters[code].issuperset(letter.casefold())
        if code in letters
        else code == letter
        for code, letter in zip(plain, text, strict=True)
    )


def _all_show(hidden: Sequence[Turn], codes: Sequence[str]) -> bool:
    """Says whether every turn that is not blank can be seen."""
    return all(
        code in turn.content or not turn.content.strip()
        for turn, code in zip(hidden, codes, strict=True)
    )
