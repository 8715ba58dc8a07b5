"""Settings of a stage: one frozen dataclass, from which its flags and help are made.

Flag = field = recipe key = manifest key, in snake_case; hyphens are accepted. A field's
metadata says what it is for, its unit, and whether the output depends on it: only
those that do enter the fingerprint.
"""

import argparse
import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from schemas import files

Config = TypeVar("Config")


def setting(
    default: Any = dataclasses.MISSING, *, help: str, shapes_output: bool = True
) -> Any:
    """Declares a field of a settings dataclass.

    Args:
      default: its value when not given; left out, it must be given.
      help: what it is for and its unit, as `--help` shows it.
      shapes_output: whether the bytes written depend on it.
    """
    return dataclasses.field(
        default=default, metadata={"help": help, "shapes_output": shapes_output}
    )


def as_dict(config: Any) -> dict[str, Any]:
    """Returns the settings by name, as JSON values."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def shaping(config: Any) -> dict[str, Any]:
    """Returns the settings that the output depends on, as JSON values."""
    return {
        f.name: _plain(getattr(config, f.name))
        for f in dataclasses.fields(config)
        if f.metadata.get("shapes_output", True)
    }


def fingerprint(config: Any, **more: Any) -> str:
    """Digests the settings that shape the output, and what else is given."""
    return files.digest({"settings": shaping(config), **more})


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value


def from_mapping(cls: type[Config], values: Mapping[str, Any], where: str) -> Config:
    """Builds settings from a table of a recipe.

    Raises:
      ValueError: if a key is unknown (with a suggestion), missing, or of a wrong
        type; `where` names the table.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {k.replace("-", "_"): v for k, v in values.items()}
    for key in values:
        if key not in fields:
            raise ValueError(
                f"{where} must hold known keys only, got {key!r}"
                f"{suggestion(key, fields)}"
            )
    hints = typing.get_type_hints(cls)
    given = {k: _checked(hints[k], v, f"{where}.{k}") for k, v in values.items()}
    for name, f in fields.items():
        if name not in given and f.default is dataclasses.MISSING:
            raise ValueError(f"{where} must hold {name!r}: {f.metadata['help']}")
    return cls(**given)


def suggestion(word: str, known: Iterable[str], mark: str = "") -> str:
    """Returns "; did you mean X?" where a known word is near, else nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {mark}{near[0]}?" if near else ""


def _checked(hint: Any, value: Any, where: str) -> Any:
    """Checks one value against its annotation; lists become tuples."""
    options = _options(hint)
    if typing.get_origin(hint) is typing.Literal:
        if value in typing.get_args(hint):
            return value
    elif value is None and type(None) in options:
        return None
    else:
        for option in options:
            if typing.get_origin(option) is tuple and isinstance(value, list | tuple):
                element = typing.get_args(option)[0]
                return tuple(_checked(element, v, where) for v in value)
            if typing.get_origin(option) is typing.Literal:
                if value in typing.get_args(option):
                    return value
            elif option is float and isinstance(value, int | float):
                if not isinstance(value, bool):
                    return float(value)
            elif isinstance(option, type) and type(value) is option:
                return value
    raise ValueError(f"{where} must be {_spelt(hint)}, got {value!r}")


def _options(hint: Any) -> tuple[Any, ...]:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return typing.get_args(hint)
    return (hint,)


def _spelt(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return f"a list of {_spelt(typing.get_args(hint)[0])}"
    if typing.get_origin(hint) is typing.Union or isinstance(hint, types.UnionType):
        return " or ".join(_spelt(o) for o in typing.get_args(hint))
    return {type(None): "nothing", str: "a string", bool: "true or false"}.get(
        hint, getattr(hint, "__name__", str(hint))
    )


def add_flags(parser: argparse.ArgumentParser, cls: type[Any]) -> None:
    """Adds one flag for each field of a settings dataclass.

    No default is set: what was not typed is not in the namespace, so that flags can
    overlay a recipe.
    """
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        text = f.metadata["help"].replace("%", "%%")
        if f.default is dataclasses.MISSING:
            text += " (required)"
        elif f.default is not None:
            text += f" (default: {_shown(f.default)})"
        parser.add_argument(
            f"--{f.name}",
            default=argparse.SUPPRESS,
            help=text,
            **_action(hints[f.name]),
        )


def _shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _action(hint: Any) -> dict[str, Any]:
    """Translates an annotation into argparse's words."""
    kinds = [o for o in _options(hint) if o is not type(None)]
    kind = kinds[0]
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(kind) is tuple:
        element = typing.get_args(kind)[0]
        return {"nargs": "+", "type": element, "metavar": element.__name__.upper()}
    if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        return {"choices": choices, "type": type(choices[0])}
    return {"type": kind, "metavar": kind.__name__.upper()}


def snake_case_flags(argv: Sequence[str]) -> list[str]:
    """Spells flags with underscores; what follows a bare `--` is left as it is.

    Example:
      >>> snake_case_flags(["--top-k=3", "a-b", "--", "--keep-me"])
      ['--top_k=3', 'a-b', '--', '--keep-me']
    """
    spelt: list[str] = []
    for place, word in enumerate(argv):
        if word == "--":
            return spelt + list(argv[place:])
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
            # argparse spells the denial of a truth value with a hyphen.
            name = re.sub("^--no_", "--no-", name)
        spelt.append(name + equals + value)
    return spelt


def parse_flags(
    cls: type[Config], argv: Sequence[str], *, prog: str, description: str
) -> Config:
    """Parses a command line that takes the settings of `cls` and nothing else."""
    config, rest = parse_known_flags(cls, argv, prog=prog, description=description)
    for word in rest:
        refuse_flag(word, [f.name for f in dataclasses.fields(cls)])  # type: ignore[arg-type]
    return config


def refuse_flag(word: str, known: Iterable[str]) -> None:
    """Ends the program with a message on a word of the command line.

    Raises:
      SystemExit: always, with the nearest known flag where one is near.
    """
    name = word.partition("=")[0].removeprefix("--")
    raise SystemExit(f"error: unknown argument {word!r}{suggestion(name, known, '--')}")


def parse_known_flags(
    cls: type[Config], argv: Sequence[str], *, prog: str, description: str
) -> tuple[Config, list[str]]:
    """Parses the flags of `cls`, and returns the words that are not among them.

    Raises:
      SystemExit: on a bad or missing value, with the message on standard error.
    """
    parser = argparse.ArgumentParser(
        prog=prog, description=description, allow_abbrev=False
    )
    add_flags(parser, cls)
    given, rest = parser.parse_known_args(snake_case_flags(argv))
    try:
        return from_mapping(cls, vars(given), prog), rest
    except ValueError as error:
        parser.error(str(error))
