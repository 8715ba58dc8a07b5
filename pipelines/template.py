"""A stage as a Flex Template of Dataflow: its parameters are the stage's flags.

A template's parameters are single strings, `--name=value`. A list is written as a shell
would take it ("a b 'c d'"), a truth value as true or false.
"""

import argparse
import dataclasses
import shlex
import sys
import typing
from collections.abc import Sequence
from typing import Any, Literal

from pipelines import cli
from pipelines.fuse import FuseConfig
from pipelines.prepare import PrepareConfig
from pipelines.score import ScoreConfig
from schemas import settings

STAGES: dict[str, type[Any]] = {
    "prepare": PrepareConfig,
    "score": ScoreConfig,
    "fuse": FuseConfig,
}
NOT_HERE = ("slices",)
"""Flags that are no parameters: `--slices` works in its own process, without a job."""


def metadata(stage: str) -> dict[str, Any]:
    """Returns the description of a stage's template, as gcloud wants it in JSON."""
    cls = STAGES[stage]
    hints = typing.get_type_hints(cls)
    parameters = [
        _parameter(f, hints[f.name])
        for f in dataclasses.fields(cls)
        if f.name not in NOT_HERE
    ]
    return {
        "name": f"fusebeam {stage}",
        "description": cli.COMMANDS[stage][1],
        "parameters": [_stage_parameter(stage), _IMAGE, *parameters],
    }


_IMAGE = {
    "name": "sdk_container_image",
    "label": "sdk_container_image",
    "helpText": "image of the workers: the CPU or the CUDA one of this version",
    "isOptional": False,
    "paramType": "TEXT",
}


def _stage_parameter(stage: str) -> dict[str, Any]:
    return {
        "name": "stage",
        "label": "stage",
        "helpText": f"what the template does: {stage}",
        "isOptional": False,
        "paramType": "ENUM",
        "enumOptions": [{"value": stage}],
    }


def _parameter(f: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    """Describes one setting as a parameter."""
    told = f.metadata["help"]
    kind = settings.kind(hint)
    if typing.get_origin(kind) is tuple:
        told += "; several parted by spaces, quoted as in a shell"
    found: dict[str, Any] = {
        "name": f.name,
        "label": f.name,
        "helpText": told,
        "isOptional": f.default is not dataclasses.MISSING,
        "paramType": "TEXT",
    }
    if kind is bool:
        found.update(paramType="BOOLEAN")
    elif kind in (int, float):
        found.update(paramType="NUMBER")
    elif typing.get_origin(kind) is Literal:
        options = [{"value": value} for value in typing.get_args(kind)]
        found.update(paramType="ENUM", enumOptions=options)
    if f.default not in (dataclasses.MISSING, None, ()):
        found["defaultValue"] = (
            str(f.default).lower() if kind is bool else f"{f.default}"
        )
    return found


def flags(stage: str, words: Sequence[str]) -> list[str]:
    """Writes parameters as the flags of a stage; other words stay as they are.

    Example:
      >>> flags("prepare", ["--models=a b", "--overwrite=false", "--region=r"])
      ['--models', 'a', 'b', '--no_overwrite', '--region=r']

    Raises:
      ValueError: if a truth value is neither true nor false.
    """
    hints = typing.get_type_hints(STAGES[stage])
    spelt: list[str] = []
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        kind = settings.kind(hints[name]) if equals and name in hints else None
        if typing.get_origin(kind) is tuple:
            spelt += [f"--{name}", *shlex.split(value)]
        elif kind is bool:
            if value not in ("true", "false"):
                raise ValueError(f"{name} must be true or false, got {value!r}")
            spelt.append(f"--{name}" if value == "true" else f"--no_{name}")
        else:
            spelt.append(word)
    return spelt


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the stage that a template's parameters name; returns the exit status."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--stage", choices=STAGES, required=True)
    given, words = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    return cli.main([given.stage, *flags(given.stage, words)])
