"""Settings of a corpus of dialogues: where messages stand, and what renders them."""

import datetime
import functools
from typing import Any

from schemas.dialogues import Shape
from schemas.documents import Fields
from schemas.settings import setting
from transforms import templates
from transforms.chat import Chat
from transforms.templates import Template

_DEFAULTS = Shape()
_ALONE = (
    *("chat_field", "prompt_field", "answer_field", "input_field", "system_field"),
    *("chat_template", "chat_model", "chat_date"),
)
"""Settings that mean nothing where documents are texts."""


def chat_shape() -> Any:
    """Declares the setting of that name."""
    return setting(
        None,
        help="read dialogues in place of texts: auto, a list of messages (role,"
        " content), of conversations (from, value), or pairs of question and answer",
        omit_default=True,
    )


def chat_field() -> Any:
    """Declares the setting of that name."""
    return setting(
        None,
        help="field of the list of messages; left out: messages or conversations",
        omit_default=True,
    )


def prompt_field() -> Any:
    """Declares the setting of that name."""
    return setting(
        None,
        help="of pairs, the question's field; left out: instruction, prompt, question",
        omit_default=True,
    )


def answer_field() -> Any:
    """Declares the setting of that name."""
    return setting(
        None,
        help="of pairs, the answer's field; left out: output, response, completion,"
        " answer",
        omit_default=True,
    )


def input_field() -> Any:
    """Declares the setting of that name."""
    return setting(
        None,
        help="of pairs, the field of what the question is about, put behind it; left"
        f" out: {_DEFAULTS.input}",
        omit_default=True,
    )


def system_field() -> Any:
    """Declares the setting of that name."""
    return setting(
        None,
        help="of dialogues, the field of a system turn that comes first; left out:"
        f" {_DEFAULTS.system}",
        omit_default=True,
    )


def chat_template() -> Any:
    """Declares the setting of that name."""
    return setting(
        None,
        help="what renders dialogues: the name of one of the model's templates, a"
        " .jinja file, or the template itself; left out: the model's own",
        omit_default=True,
    )


def chat_model() -> Any:
    """Declares the setting of that name."""
    return setting(
        None,
        help="whose chat template and special tokens these are, the target's; left"
        " out: the first of --models",
        shapes_output=False,
    )


def chat_date() -> Any:
    """Declares the setting of that name."""
    return setting(
        None,
        help="day that a chat template is told when it asks for today's, YYYY-MM-DD",
        omit_default=True,
    )


def check(config: Any) -> None:
    """Checks the settings that are of dialogues.

    Raises:
      ValueError: if one is out of place; says how it is meant.
    """
    if config.chat_shape is None:
        for name in _ALONE:
            if getattr(config, name) is not None:
                raise ValueError(
                    f"{name} must stand beside chat_shape, which says that the corpus"
                    " holds dialogues; pass --chat_shape=auto"
                )
        return
    _check_fields(config)
    if config.chat_model is None and not config.models:
        raise ValueError("chat_model or models must be given, to say whose template")
    check_date(config.chat_date)


def check_date(day: str | None) -> None:
    """Raises ValueError if a day is told, and not as YYYY-MM-DD."""
    if day is not None:
        try:
            datetime.date.fromisoformat(day)
        except ValueError as error:
            raise ValueError(f"chat_date must be YYYY-MM-DD, got {day!r}") from error


def _check_fields(config: Any) -> None:
    """Refuses fields that would never be read, before a corpus is."""
    pair = (config.prompt_field, config.answer_field)
    if (pair[0] is None) != (pair[1] is None):
        raise ValueError(
            "prompt_field and answer_field must be given together, or neither, got"
            f" {pair[0]!r} and {pair[1]!r}"
        )
    if config.chat_shape == "pairs" and config.chat_field is not None:
        raise ValueError("chat_field must be left out where chat_shape is pairs")
    if config.chat_shape in ("messages", "conversations"):
        for name in ("prompt_field", "answer_field", "input_field"):
            if getattr(config, name) is not None:
                raise ValueError(
                    f"{name} must be left out where chat_shape is {config.chat_shape}:"
                    " it is of pairs"
                )


def fields_of(config: Any) -> Fields:
    """Returns where a record's text, or its messages, id, domain and split stand."""
    shape = None
    if config.chat_shape is not None:
        shape = Shape(
            kind=config.chat_shape,
            turns=config.chat_field,
            prompt=config.prompt_field,
            answer=config.answer_field,
            input=config.input_field or _DEFAULTS.input,
            system=config.system_field or _DEFAULTS.system,
        )
    return Fields(
        text=config.text_field,
        id=config.id_field,
        domain=config.domain_field,
        split=config.split_field,
        dialogue=shape,
    )


def chat_of(config: Any) -> Chat | None:
    """Returns how dialogues become text; None where documents are text.

    Raises:
      FileNotFoundError: if there is no such model or file.
      ValueError: if there is no such template; says which there are.
    """
    if config.chat_shape is None:
        return None
    model = config.chat_model or config.models[0]
    return Chat(
        template=_read(model, config.chat_template, config.chat_date), model=model
    )


@functools.lru_cache(maxsize=8)
def _read(model: str, template: str | None, date: str | None) -> Template:
    return templates.read(model, template, date=date)
