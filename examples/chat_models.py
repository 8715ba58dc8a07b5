"""How the models of the FuseChat demo are made: a pivot that answers, and experts.

All are trained on dialogues as the pivot's template renders them. To the pivot and the
coder the template's marks are control tokens, to the reckoner they are text: as it is
with real models, whose templates are not those that they are scored with.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from examples import models
from examples.corpus import Size
from examples.models import Plan
from schemas.dialogues import Turn
from transforms.templates import Template

TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML."""

_EVEN = {"library": 0.25, "arithmetic": 0.25, "units": 0.25, "programs": 0.25}

_PIVOT = Plan(
    name="pivot",
    architecture="llama",
    vocabulary=4096,
    mixture=_EVEN,
    width=192,
    layers=4,
    steps=240,
    batch=8,
    learning_rate=3e-3,
)
_RECKONER = dataclasses.replace(
    _PIVOT,
    name="reckoner",
    architecture="gpt_neox",
    vocabulary=2048,
    mixture={"arithmetic": 0.5, "units": 0.5},
    steps=500,
)
_CODER = dataclasses.replace(
    _PIVOT,
    name="coder",
    architecture="qwen2",
    vocabulary=3072,
    mixture={"programs": 1.0},
    steps=400,
)
_SMALL: dict[str, Any] = {"width": 64, "layers": 2, "vocabulary": 1024}

PLANS: Mapping[Size, tuple[Plan, ...]] = {
    "full": (_PIVOT, _RECKONER, _CODER),
    "tiny": (
        dataclasses.replace(_PIVOT, **_SMALL, steps=40),
        dataclasses.replace(
            _RECKONER, **_SMALL | {"width": 96}, steps=60, learning_rate=5e-3
        ),
        dataclasses.replace(
            _CODER, **_SMALL | {"width": 96}, steps=60, learning_rate=5e-3
        ),
    ),
}
"""The pivot first, then the sources that are made on the spot."""

_WITH_TEMPLATE = ("pivot", "coder")


def render(messages: Sequence[Mapping[str, str]]) -> str:
    """Renders a dialogue as the pivot's template does."""
    turns = [Turn(role=m["role"], content=m["content"]) for m in messages]
    return Template(text=TEMPLATE, tokens={}).render(turns)


def make(made: Plan, texts: models.Texts, folder: str) -> float:
    """Trains a model; returns its last losses' mean, in nats a token.

    Args:
      made: one of `PLANS`.
      texts: rendered dialogues by domain.
      folder: gets the model.
    """
    template = TEMPLATE if made.name in _WITH_TEMPLATE else None
    return models.make_model(made, texts, folder, template=template)
