"""Settings of a stage: one frozen dataclass, from which its flags and help are made.

Flag = field = recipe key = manifest key, in snake_case; hyphens are accepted. A field's
metadata says what it is for, its unit, and whether the output depends on it: only
those that do enter the fingerprint.
"""

import argparse
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from schemas import files

Config = TypeVar("Config")


def setting(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    shapes_output: bool = True,
    omit_default: bool = False,
) -> Any:
    """Declares a field of a settings dataclass.

    Args:
      default: its value when not given; left out, it must be given.
      help: what it is for and its unit, as `--help` shows it.
      shapes_output: whether the bytes written depend on it.
      omit_default: whether its default leaves no trace in manifests and fingerprints,
        so that folders of before the setting existed are still the same work.
    """
    told = {"help": help, "shapes_output": shapes_output, "omit_default": omit_default}
    return dataclasses.field(default=default, metadata=told)


def as_dict(config: Any) -> dict[str, Any]:
    """Returns the settings by name, as JSON values."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def shaping(config: Any) -> dict[str, Any]:
    """Returns the settings that the output depends on, as JSON values."""
    return {
        f.name: _plain(getattr(config, f.name))
        for f in dataclasses.fields(config)
        if f.metadata.get("shapes_output", True) and not _omitted(config, f)
    }


def _omitted(config: Any, f: dataclasses.Field[Any]) -> bool:
    """Says whether a setting is at a default that leaves no trace."""
    at_default = bool(getattr(config, f.name) == f.default)
    return at_default and f.metadata.get("omit_default", False)


def fingerprint(config: Any, **more: Any) -> str:
    """Digests the settings that shape the output, and what else is given."""
    return files.digest({"settings": shaping(config), **more})


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and math.isinf(value):
        return str(value)  # JSON has no infinity
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
    for name in _required(cls):
        if name not in given:
            told = fields[name].metadata["help"]
            raise ValueError(f"{where} must hold {name!r}: {told}")
    try:
        return cls(**given)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _required(cls: type[Any]) -> list[str]:
    """Names the fields that must be given."""
    missing = dataclasses.MISSING
    return [f.name for f in dataclasses.fields(cls) if f.default is missing]


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
            **_action(f, hints[f.name]),
        )


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return " ".join(map(str, default)) or "none"
    return str(default)


def kind(hint: Any) -> Any:
    """Returns what a setting holds when it is given: its annotation without None."""
    return next(o for o in _options(hint) if o is not type(None))


_METAVARS = {str: "TEXT", int: "INTEGER", float: "NUMBER"}


def _action(f: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    """Translates a field's annotation into argparse's words."""
    found = kind(hint)
    required = f.default is dataclasses.MISSING
    if found is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(found) is tuple:
        element = typing.get_args(found)[0]
        shown = f.name.upper() if required else _METAVARS[element]
        # A flag given twice adds to what stands there, and replaces nothing unseen.
        return {"action": "extend", "nargs": "+", "type": element, "metavar": shown}
    if typing.get_origin(found) is typing.Literal:
        choices = typing.get_args(found)
        return {"choices": choices, "type": type(choices[0])}
    return {"type": found, "metavar": f.name.upper() if required else _METAVARS[found]}


def _usage(prog: str, cls: type[Any]) -> str:
    """Writes the usage line: what must be given, and that more may be."""
    hints = typing.get_type_hints(cls)
    words = []
    for name in _required(cls):
        many = typing.get_origin(kind(hints[name])) is tuple
        words.append(f"--{name} {name.upper()}{' ...' * many}")
    return " ".join([prog, *words, "[flags]"])


def truths(cls: type[Any]) -> list[str]:
    """Names the fields that are true or false, which a flag `--no_NAME` denies."""
    hints = typing.get_type_hints(cls)
    return [f.name for f in dataclasses.fields(cls) if hints[f.name] is bool]


def snake_case_flags(argv: Sequence[str], deniable: Iterable[str] = ()) -> list[str]:
    """Spells flags with underscores; what follows a bare `--` is left as it is.

    Args:
      argv: a command line.
      deniable: our truth values; argparse spells their denial with a hyphen. Other
        flags may begin with `--no_` of themselves, as several of Beam's do.

    Example:
      >>> snake_case_flags(["--top-k=3", "a-b", "--", "--keep-me"])
      ['--top_k=3', 'a-b', '--', '--keep-me']
      >>> snake_case_flags(["--no_fast", "--no-auth"], ["fast"])
      ['--no-fast', '--no_auth']
    """
    denials = {f"--no_{name}": f"--no-{name}" for name in deniable}
    spelt: list[str] = []
    for place, word in enumerate(argv):
        if word == "--":
            return spelt + list(argv[place:])
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
            name = denials.get(name, name)
        spelt.append(name + equals + value)
    return spelt


def parse_flags(
    cls: type[Config], argv: Sequence[str], *, prog: str, description: str
) -> Config:
    """Parses a command line that takes the settings of `cls` and nothing else."""

    def refuse(rest: Sequence[str]) -> None:
        for word in rest:
            refuse_flag(word, [f.name for f in dataclasses.fields(cls)])  # type: ignore[arg-type]

    config, _ = parse_known_flags(
        cls, argv, prog=prog, description=description, check=refuse
    )
    return config


def refuse_flag(word: str, known: Iterable[str]) -> None:
    """Ends the program with a message on a word of the command line.

    Raises:
      SystemExit: always, with the nearest known flag where one is near.
    """
    name = word.partition("=")[0].removeprefix("--")
    raise SystemExit(f"error: unknown argument {word!r}{suggestion(name, known, '--')}")


def parse_known_flags(
    cls: type[Config],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    check: Callable[[Sequence[str]], Any],
    epilog: str | None = None,
) -> tuple[Config, list[str]]:
    """Parses the flags of `cls`, and returns the words that are not among them.

    Args:
      cls: the settings.
      argv: the command line.
      prog: the command, as help and errors name it.
      description: what it does.
      check: refuses words that are not among the flags; called before anything is
        said of what is missing, as a misspelt flag is missing too.
      epilog: ends the help.

    Raises:
      SystemExit: on a bad or missing value, with the message on standard error.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=_usage(prog, cls),
        description=description,
        epilog=epilog,
        allow_abbrev=False,
    )
    add_flags(parser, cls)
    given, rest = parser.parse_known_args(snake_case_flags(argv, truths(cls)))
    check(rest)
    values = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(given).items()
    }
    helps = {f.name: f.metadata["help"] for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in _required(cls):
        if name not in values:
            parser.error(f"--{name} must be given: {helps[name]}")
    try:
        return cls(**values), rest
    except ValueError as error:
        parser.error(str(error))
