"""Dialogues become windows: rendered once, with one template, for every model."""

import dataclasses
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from schemas.checked import UnusableError
from schemas.dialogues import ASSISTANT, USER, Turn
from schemas.documents import Document
from schemas.windows import Window
from transforms.functional import control, turn_cuts, turns, windows
from transforms.functional.turns import Rendering
from transforms.templates import RefusalError, Template
from transforms.tokenizer import Tokenizer

_QUESTION, _ANSWER = "Which?", "This."
"""Stand for what is said where that does not matter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat:
    """How dialogues become text.

    Attributes:
      template: the template.
      model: whose it is; the target.
    """

    template: Template
    model: str


def render(
    document: Document, template: Template, tokenizers: Sequence[Tokenizer]
) -> Rendering:
    """Renders a dialogue and finds its spans.

    Args:
      document: the dialogue.
      template: what renders it.
      tokenizers: those whose control tokens the template may write.

    Raises:
      UnusableError: if the template refuses the dialogue or drops its answers, or its
        spans cannot be found.
    """
    assert document.turns is not None
    controls = {one.text: None for own in tokenizers for one in own.controls}
    try:
        found = turns.locate(
            document.turns,
            template.render,
            looked_for=template.looked_for(),
            controls=tuple(controls),
            bos=template.tokens.get("bos_token"),
        )
    except RefusalError as error:
        raise _refused(error) from error
    if found is None:
        detail = (
            "what comes from which turn must be seen in what the template makes of it,"
            " but it changes the words; name one that does not by --chat_template"
        )
        raise UnusableError("unlocated_turns", detail)
    if not found.loss_spans:
        detail = "the template must write an answer, it drops them all"
        raise UnusableError("no_answer", detail)
    return found


def _refused(error: RefusalError) -> UnusableError:
    detail = f"the template must take the dialogue, it refuses: {error}"
    return UnusableError("template_refused", detail)


def ask(
    prompt: str, template: Template, tokenizer: Tokenizer
) -> tuple[str, tuple[int, ...]]:
    """Renders a user's turn as far as where the assistant's answer begins.

    That is the template's prompt for generation, or, where it has none, what stands in
    front of an answer in a dialogue of both. A BOS in front is left out, as `render`
    leaves it out.

    Args:
      prompt: what the user says.
      template: the template.
      tokenizer: whose control tokens the template may write.

    Returns:
      The text, and its control spans in bytes: start, stop, ...

    Raises:
      UnusableError: as of `render`.
    """
    found = _answered(prompt, template, tokenizer)
    raw, start = found.text.encode(), found.loss_spans[0]
    spans = clip(found.control_spans, 0, start)
    said = spans[-2] if spans and spans[-1] == start else start
    for text in _generation_prompts(prompt, template):
        if text.encode().startswith(raw[:said]):
            own = clip(found.control_spans, 0, said)
            return text, (*own, said, len(text.encode()))
    return raw[:start].decode(), spans


def _generation_prompts(prompt: str, template: Template) -> tuple[str, ...]:
    """Renders a user's turn with the prompt for an answer, with BOS and without it.

    Returns:
      Both; nothing where the template has no such prompt.

    Raises:
      UnusableError: if the template refuses the turn.
    """
    turn = (Turn(role=USER, content=prompt),)
    try:
        asked, plain = template.render(turn, prompt=True), template.render(turn)
    except RefusalError as error:
        raise _refused(error) from error
    bos = template.tokens.get("bos_token", "")
    return () if asked == plain else (asked.removeprefix(bos), asked)


def end_of_turn(template: Template, tokenizer: Tokenizer) -> int | None:
    """Returns the control token that a template writes behind an answer, if any.

    It is the first one that is learned, as a model that has written it has ended its
    answer.

    Raises:
      UnusableError: as of `render`.
    """
    found = _answered(_QUESTION, template, tokenizer)
    stop = found.loss_spans[-1]
    end = found.text.encode().rindex(_ANSWER.encode(), 0, stop) + len(_ANSWER)
    own = control.find_control_tokens(found.text, (end, stop), tokenizer.controls)
    return own[0].token_id if own else None


def _answered(prompt: str, template: Template, tokenizer: Tokenizer) -> Rendering:
    turns_of_both = (
        Turn(role=USER, content=prompt),
        Turn(role=ASSISTANT, content=_ANSWER),
    )
    document = Document(doc_id=_QUESTION, text="", turns=turns_of_both)
    return render(document, template, [tokenizer])


def cut(
    document: Document,
    rendering: Rendering,
    tokenizers: Sequence[Tokenizer],
    max_tokens: int,
    max_bytes: int | None,
) -> list[Window]:
    """Cuts a rendered dialogue into windows, each with its share of the spans."""
    raw, made = rendering.text.encode(), []
    for start, stop in _places(rendering, tokenizers, max_tokens, max_bytes):
        text = raw[start:stop].decode()
        made.append(
            Window(
                window_id=windows.window_id(document.doc_id, start, text),
                doc_id=document.doc_id,
                text=text,
                byte_start=start,
                ends_document=stop == len(raw),
                domain=document.domain,
                loss_spans=clip(rendering.loss_spans, start, stop),
                control_spans=clip(rendering.control_spans, start, stop),
            )
        )
    return made


def _places(
    rendering: Rendering,
    tokenizers: Sequence[Tokenizer],
    max_tokens: int,
    max_bytes: int | None,
) -> Iterator[tuple[int, int]]:
    """Yields the bytes [start, stop) of each window."""
    text, spans = rendering.text, rendering.control_spans
    to_byte = turns.byte_offsets(text)

    def chars(edges: Iterable[int]) -> list[int]:
        return [int(at) for at in np.searchsorted(to_byte, list(edges))]

    def count(start: int, stop: int) -> int:
        own = clip(spans, int(to_byte[start]), int(to_byte[stop]))
        piece = text[start:stop]
        return max((one.count_window(piece, own) for one in tokenizers), default=0)

    spelled = [one for own in tokenizers for one in own.controls]
    found = control.find_control_tokens(text, spans, spelled)
    starts, stops = chars(t.start for t in found), chars(t.stop for t in found)
    places = turn_cuts.cut_turns(
        text,
        chars(rendering.borders),
        list(zip(starts, stops, strict=True)),
        count,
        weaker=chars(rendering.weaker),
        max_tokens=max_tokens,
        max_bytes=max_bytes,
    )
    for start, stop in places:
        yield int(to_byte[start]), int(to_byte[stop])


def clip(spans: Sequence[int], start: int, stop: int) -> tuple[int, ...]:
    """Returns what lies of flat spans in [start, stop), counted from `start`.

    >>> clip((0, 4, 6, 9), 2, 8), clip((0, 4, 6, 9), 4, 6)
    ((0, 2, 4, 6), ())
    """
    first = bisect_right(spans, start) // 2 * 2
    last = (bisect_left(spans, stop) + 1) // 2 * 2
    return tuple(min(max(edge, start), stop) - start for edge in spans[first:last])
