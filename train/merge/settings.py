"""The settings of a merge method: what may be set, in which range, and their check."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from schemas import settings as words

WITHOUT_EFFECT = ("int8_mask",)
"""Settings of mergekit that change no number: checked, and not among the settled.

`int8_mask` chooses how masks are stored there; ours are truth values.
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One setting of a method.

    Attributes:
      default: value where it is left out; None where it must be given. A whole number
        here means that only whole numbers are taken.
      per_model: a list, one number a model; a single number serves all.
      low: least number that is taken; None: open.
      high: greatest number that is taken; None: open.
      choices: the strings that are taken.
      meaning: one line with unit and range, for `--help` and the documentation.
      optional: may be left out though it has no default.
      found: what the work itself finds out first, so no recipe may say it.
    """

    default: float | int | str | bool | None
    per_model: bool = False
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    meaning: str
    optional: bool = False
    found: bool = False


def complete(
    method: str,
    parameters: Mapping[str, Parameter],
    given: Mapping[str, Any],
    models: int,
) -> dict[str, Any]:
    """Checks the settings of a method and adds those left out.

    Args:
      method: its name, for messages.
      parameters: what it can be set to, by name.
      given: the settings, by name.
      models: number of models, the base apart.

    Returns:
      All settings; those per model are lists of as many numbers as there are models.

    Raises:
      ValueError: if a setting is unknown, missing, of the wrong type or out of range,
        or a list has not one number a model.
    """
    for name in given:
        if name not in parameters:
            raise unknown(method, parameters, name)
    settled: dict[str, Any] = {}
    for name, parameter in parameters.items():
        value = given.get(name, parameter.default)
        if value is None and parameter.optional:
            continue
        if value is None:
            raise ValueError(f"{method} needs {name}: {parameter.meaning}")
        where = f"{name} of {method}"
        if parameter.per_model:
            settled[name] = _per_model(parameter, value, models, where)
        else:
            settled[name] = _value(parameter, value, where)
    return {k: value for k, value in settled.items() if k not in WITHOUT_EFFECT}


def unknown(method: str, parameters: Mapping[str, Parameter], name: str) -> ValueError:
    """Returns the error of a setting that a method does not take.

    It tells and suggests what recipes may hold and what has an effect.
    """
    known = [
        key
        for key, parameter in parameters.items()
        if not parameter.found and key not in WITHOUT_EFFECT
    ]
    told, near = ", ".join(known) or "no settings", words.suggestion(name, known)
    return ValueError(f"{method} takes {told}, got {name!r}{near}")


def _per_model(
    parameter: Parameter, value: Any, models: int, where: str
) -> list[float]:
    """One number for each model, from a list or from one number for all."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [_number(parameter, value, where)] * models
    if len(value) != models:
        raise ValueError(
            f"{where} must have one number a model, {models}, got {len(value)}; a "
            "single number serves all"
        )
    return [
        _number(parameter, one, f"{where}, model {place},")
        for place, one in enumerate(value)
    ]


def _value(parameter: Parameter, value: Any, where: str) -> float | int | str | bool:
    """A string, a truth value or a number, whichever the parameter takes."""
    if parameter.choices:
        if isinstance(value, bool) and "l1" in parameter.choices:
            return "l1" if value else "none"  # as mergekit's recipes have it
        if value not in parameter.choices:
            told = ", ".join(parameter.choices)
            near = words.suggestion(str(value), parameter.choices)
            raise ValueError(f"{where} must be one of {told}, got {value!r}{near}")
        return str(value)
    if isinstance(parameter.default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{where} must be true or false, got {value!r}")
        return value
    return _number(parameter, value, where)


def _number(parameter: Parameter, value: Any, where: str) -> float | int:
    """A finite number in range; whole where the default is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where} must be a number, got {value!r}")
    if not _is_finite(value):
        raise ValueError(f"{where} must be a finite number, got {value}")
    whole = isinstance(parameter.default, int)
    if whole and value != int(value):
        raise ValueError(f"{where} must be a whole number, got {value}")
    low = -math.inf if parameter.low is None else parameter.low
    high = math.inf if parameter.high is None else parameter.high
    if not low <= value <= high:
        raise ValueError(f"{where} must be in [{low:g}, {high:g}], got {value}")
    return int(value) if whole else float(value)


def _is_finite(value: float | int) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False
