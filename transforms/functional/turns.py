"""Finds the spans of a rendered dialogue: what is learned, and what a template wrote.

    rendered  <|user|>Hi you<|end|><|assistant|>Hi<|end|>
    control   ########      #####################  #######
    loss                                        #########

An answer that is there to be read alone (`Turn.is_learned`) is in no loss span. Any
other begins where the template's prompt for generation ends, and ends behind the
end of turn that the template writes: the last control token in what stands behind the
answer both where a turn follows and where none does. `{% generation %}`, where a
template has it, says itself what is learned; its end of turn is learned too.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int64

from schemas.dialogues import ASSISTANT, SYSTEM, USER, Turn
from transforms.functional import disguises
from transforms.functional.disguises import Disguised, Render, Run

_Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """A rendered dialogue; all offsets are bytes of its UTF-8.

    Attributes:
      text: the text.
      loss_spans: answers to learn, with their ends of turn: start, stop, ...
      control_spans: what the template wrote, likewise.
      borders: where a user's turn, or what stands with it, begins behind an answer,
        rising.
      weaker: where any other turn begins behind one, rising.
    """

    text: str
    loss_spans: tuple[int, ...]
    control_spans: tuple[int, ...]
    borders: tuple[int, ...]
    weaker: tuple[int, ...] = ()


def locate(
    turns: Sequence[Turn],
    render: Render,
    *,
    looked_for: Sequence[str] = (),
    controls: Sequence[str] = (),
    bos: str | None = None,
) -> Rendering | None:
    """Renders a dialogue and finds its spans.

    A BOS that the template writes in front is left out, as every model begins a window
    with its own; but not where it opens the assistant's turns too (SmolLM2's BOS is
    ChatML's opener).

    Args:
      turns: the dialogue.
      render: the template.
      looked_for: words that the template may look for in what it is given.
      controls: how models spell their control tokens.
      bos: how the target spells BOS.

    Returns:
      The rendering, without loss spans where the template drops every answer. None
      where what it does with the turns cannot be seen.

    Raises:
      ValueError: if the template refuses the dialogue.
    """
    spelled = disguises.any_of(tuple(controls))
    words = [word for word in looked_for if not spelled.search(word)]
    made = disguises.disguise(turns, render, words)
    return None if made is None else _Spans(made, controls, bos).rendering()


class _Spans:
    """The spans of a disguised dialogue."""

    def __init__(
        self, made: Disguised, controls: Sequence[str], bos: str | None
    ) -> None:
        self._made, self._bos = made, bos
        self._controls = disguises.any_of(tuple(controls))
        self._runs = made.runs()
        # a turn whose parts the template rendered apart is one all the same
        groups = itertools.groupby(self._runs, key=lambda run: run.turn)
        self._said = [list(group) for _, group in groups]
        first = self._runs[0].first if self._runs else 0
        self._opening = made.plain[:first].removeprefix(bos or "")
        self._starts: dict[str, int | None] = {}
        self._ends: dict[tuple[str, int, str, bool], _Pair] = {}

    def rendering(self) -> Rendering:
        """Returns text and spans, in bytes."""
        answers: list[_Pair] = []
        borders: dict[bool, list[int]] = {True: [], False: []}
        for at, said in enumerate(self._said):
            answers_here, is_last = self._role(at) == ASSISTANT, said is self._said[-1]
            if is_last and not answers_here:
                break
            stop, border = self._end(at)
            if answers_here and self._turn(at).is_learned:
                answers += self._learned(said, (self._start(at), stop))
            if not is_last:
                begins = self._role(at + 1) in (USER, SYSTEM)
                borders[answers_here and begins].append(border)
        text, cut = self._made.text, self._written_bos()
        edges = [edge for run in self._runs for edge in (run.start, run.stop)]
        bounds = [cut, *edges, len(text)]
        control = list(zip(bounds[::2], bounds[1::2], strict=True))
        to_byte = byte_offsets(text)
        to_byte = np.maximum(to_byte - to_byte[cut], 0)
        return Rendering(
            text=text[cut:],
            loss_spans=_flat(answers, to_byte),
            control_spans=_flat(control, to_byte),
            borders=tuple(to_byte[borders[True]].tolist()),
            weaker=tuple(to_byte[borders[False]].tolist()),
        )

    def _turn(self, at: int) -> Turn:
        return self._made.turns[self._said[at][0].turn]

    def _role(self, at: int) -> str:
        return self._turn(at).role

    def _before(self, at: int) -> _Pair:
        """Bounds what stands between a turn and the one before it."""
        return self._said[at - 1][-1].last if at else 0, self._said[at][0].first

    def _start(self, at: int) -> int:
        """Finds where the prompt for an answer ends, or else the answer begins."""
        begin, first = self._before(at)
        gap, run = self._made.plain[begin:first], self._said[at][0]
        if gap not in self._starts:
            self._starts[gap] = self._prompt(gap, run.turn) if run.turn else None
        prompt = self._starts[gap]
        return run.start if prompt is None else begin + prompt

    def _prompt(self, gap: str, turn: int) -> int | None:
        """Measures the prompt for generation that `gap`, before an answer, begins with.

        Where the template has none, an answer's header is no part of the answer.
        """
        asked = self._made.tail(turn, prompt=True)
        if asked is None or not gap.startswith(asked):
            return None
        rest = gap[len(asked) :]
        if rest.strip() and asked == self._made.tail(turn, prompt=False):
            return None
        return len(asked)

    def _end(self, at: int) -> _Pair:
        """Finds where an end of turn ends, and where the next turn begins.

        These differ by white space; and where the next turn's role is the end (GLM-4):
        that stands in front of its own turn, so that a window begins with the whole of
        it. Its first token then counts as what follows the start of a window.
        """
        last, is_last = self._said[at][-1], at + 1 == len(self._said)
        stop = len(self._made.plain) if is_last else self._before(at + 1)[1]
        gap, own = self._made.plain[last.last : stop], last.stop - last.last
        key = gap, own, self._role(at), is_last
        if key not in self._ends:
            if is_last:
                follows, closed = self._made.followed(last.turn + 1), gap
            else:
                follows = gap
                closed = self._made.tail(last.turn + 1, prompt=False) or ""
            common = closed if follows is None else _common_beginning(follows, closed)
            end = self._close(common, closed, own, gap, is_last=is_last)
            rest = gap[end:]
            behind = end + len(rest) - len(rest.lstrip())
            border = len(common) if common == closed else behind
            self._ends[key] = max(end, own), max(border, own)
        end, border = self._ends[key]
        return last.last + end, last.last + border

    def _close(
        self, common: str, closed: str, own: int, gap: str, *, is_last: bool
    ) -> int:
        """Measures the end of turn in what is written behind an answer.

        Args:
          common: what is written whether a turn follows or not.
          closed: what is written where none does.
          own: characters of both that are the answer's own.
          gap: what is written here.
          is_last: whether none does here.
        """
        # A prompt that a template writes unasked opens as the dialogue does.
        told = [_without_overlap(common, self._opening), common, closed * is_last]
        for text in told:
            if found := [m.end() for m in self._controls.finditer(text, own)]:
                return found[-1]
        # Where an answer is closed in another way once others follow (gpt-oss), or by
        # the next turn's role alone (GLM-4), generation stops at the first such token.
        if not is_last and (first := self._controls.search(gap, own)):
            return first.end()
        if common == closed or is_last:
            return len(closed.rstrip()) or len(closed)
        return own

    def _learned(self, said: Sequence[Run], answer: _Pair) -> list[_Pair]:
        """Returns what is learned of an answer: its blocks, where there are any."""
        if not self._made.blocks:
            return [answer]
        first, last = said[0].first, said[-1].last
        return [
            (start, max(stop, answer[1]) if stop >= last else stop)
            for start, stop in self._made.blocks
            if start < last and stop > first
        ]

    def _written_bos(self) -> int:
        """Measures the BOS in front that is left out."""
        bos, runs = self._bos or "", self._runs
        if not self._made.text.startswith(bos) or (runs and runs[0].start < len(bos)):
            return 0
        for at in range(len(self._said)):
            if self._role(at) == ASSISTANT:
                begin, first = self._before(at)
                opens = bos in self._made.plain[begin:first] and begin > 0
                return 0 if opens else len(bos)
        return len(bos)


def _common_beginning(one: str, other: str) -> str:
    pairs = enumerate(zip(one, other, strict=False))
    differing = (at for at, (a, b) in pairs if a != b)
    return one[: next(differing, min(len(one), len(other)))]


def _without_overlap(text: str, opening: str) -> str:
    """Takes away the longest end of a text that `opening` begins with."""
    sizes = range(min(len(text), len(opening)), 0, -1)
    ends = (n for n in sizes if text.endswith(opening[:n]))
    return text[: len(text) - next(ends, 0)]


def byte_offsets(text: str) -> Int64[np.ndarray, " c"]:
    """Returns the byte that each character begins at, and the end."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF)
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def _flat(pairs: Iterable[_Pair], to_byte: Int64[np.ndarray, " c"]) -> tuple[int, ...]:
    """Joins spans that touch, leaves out empty ones, and counts in bytes."""
    edges: list[int] = []
    for start, stop in ((int(to_byte[a]), int(to_byte[b])) for a, b in sorted(pairs)):
        if edges and start <= edges[-1]:
            edges[-1] = max(edges[-1], stop)
        elif start < stop:
            edges += [start, stop]
    return tuple(edges)
