"""Dialogues become windows: rendered once, with one template, for every model."""

import dataclasses
from collections.abc import Sequence

from schemas.checked import UnusableError
from schemas.documents import Document
from schemas.windows import Window
from transforms.functional import control, turn_cuts, turns, windows
from transforms.functional.turns import Rendering
from transforms.templates import Template
from transforms.tokenizer import Tokenizer


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
    except ValueError as error:
        told = _without_text(str(error), document)
        detail = f"the template must take the dialogue, it refuses: {told}"
        raise UnusableError("template_refused", detail) from error
    if found is None:
        detail = (
            "what the template does with the turns must be seen, to tell answers apart;"
            " mark answers in it by {% generation %} or write turns as they come"
        )
        raise UnusableError("unlocated_turns", detail)
    if not found.loss_spans:
        detail = "the template must write an answer, it drops them all"
        raise UnusableError("no_answer", detail)
    return found


def _without_text(told: str, document: Document) -> str:
    """Leaves out what a template says where it quotes the dialogue."""
    quoted = any(t.content.strip() in told for t in document.turns or () if t.content)
    return "with a message that quotes it" if quoted else told[:200]


def cut(
    document: Document,
    rendering: Rendering,
    tokenizers: Sequence[Tokenizer],
    max_tokens: int,
    max_bytes: int | None,
) -> list[Window]:
    """Cuts a rendered dialogue into windows, each with its share of the spans."""
    text, spans = rendering.text, rendering.control_spans
    to_byte = turns.byte_offsets(text)
    to_char = {int(byte): char for char, byte in enumerate(to_byte)}

    def count(start: int, stop: int) -> int:
        own = clip(spans, int(to_byte[start]), int(to_byte[stop]))
        piece = text[start:stop]
        return max((one.count_window(piece, own) for one in tokenizers), default=0)

    spelled = [one for own in tokenizers for one in own.controls]
    found = control.find_control_tokens(text, spans, spelled)
    places = turn_cuts.cut_turns(
        text,
        [to_char[border] for border in rendering.borders],
        [(to_char[token.start], to_char[token.stop]) for token in found],
        count,
        max_tokens,
        max_bytes,
    )
    made = []
    for start, stop in places:
        first, last = int(to_byte[start]), int(to_byte[stop])
        made.append(
            Window(
                window_id=windows.window_id(document.doc_id, first, text[start:stop]),
                doc_id=document.doc_id,
                text=text[start:stop],
                byte_start=first,
                ends_document=stop == len(text),
                domain=document.domain,
                loss_spans=clip(rendering.loss_spans, first, last),
                control_spans=clip(spans, first, last),
            )
        )
    return made


def clip(spans: Sequence[int], start: int, stop: int) -> tuple[int, ...]:
    """Returns what lies of flat spans in [start, stop), counted from `start`.

    >>> clip((0, 4, 6, 9), 2, 8)
    (0, 2, 4, 6)
    """
    edges: list[int] = []
    for first, last in zip(spans[::2], spans[1::2], strict=True):
        if max(first, start) < min(last, stop):
            edges += [max(first, start) - start, min(last, stop) - start]
    return tuple(edges)
