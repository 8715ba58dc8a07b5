"""What makes the inputs of an example's recipe: a table `[inputs]`.

    [inputs]
    made_by = "examples.table7"
    size = "full"

A recipe is data, which may come from anywhere, so it cannot name what is run: only the
modules of the package `examples` of this checkout, beside the one that reads it.
"""

import dataclasses
import importlib
import importlib.util
import inspect
import re
import sys
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from schemas import files, settings

PACKAGE = "examples"
ROOT = Path(__file__).resolve().parent.parent
"""The checkout, or where the packages are installed."""

_MAKES = "make_inputs"
_MODULE = re.compile(rf"{PACKAGE}\.[a-z][a-z0-9_]*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a recipe says of the making of its inputs.

    Attributes:
      made_by: module of the examples; its `make_inputs` makes what is missing.
      output: folder that they lie in, which is the recipe's own, whatever `--output`.
      given: `size` and what else `make_inputs` takes, by name.
    """

    made_by: str
    output: str
    given: Mapping[str, str | int]


def read(recipe: Mapping[str, Any]) -> Inputs | None:
    """Reads the table; None where a recipe has none. Nothing is imported.

    Raises:
      ValueError: if it names what is no module of the examples, holds what is neither
        text nor whole number, or the recipe has no output.
    """
    if "inputs" not in recipe:
        return None
    given = dict(recipe["inputs"])
    made_by = given.pop("made_by", None)
    if not isinstance(made_by, str) or not _MODULE.fullmatch(made_by):
        raise ValueError(
            f"[inputs].made_by must name a module of FuseBeam's own examples, as"
            f" '{PACKAGE}.demo', got {made_by!r}: a recipe is data, and cannot have"
            " other programs run; run what makes your inputs yourself"
        )
    for key, value in given.items():
        if type(value) not in (str, int):
            raise ValueError(
                f"[inputs].{key} must be text or a whole number, got {value!r}"
            )
    if not isinstance(recipe.get("output"), str):
        raise ValueError("a recipe with [inputs] must hold 'output', where they lie")
    return Inputs(made_by=made_by, output=recipe["output"], given=given)


def refuse_elsewhere(inputs: Inputs, named: Mapping[str, str]) -> None:
    """Refuses a recipe that has inputs made, and goes on with others.

    Args:
      inputs: what is made.
      named: where the recipe's corpus and models are, by where it says so.

    Raises:
      ValueError: if one is not below the folder of the inputs; names both.
    """
    place = files.join(inputs.output, "inputs")
    for where, path in named.items():
        if not path.startswith(f"{place}/"):
            raise ValueError(
                f"{where} must lie in {place}, where {inputs.made_by} makes what"
                f" [inputs] asks for, got {path}; name that, or leave [inputs] out,"
                " which recipes of your own do without"
            )


def make(inputs: Inputs) -> None:
    """Makes what is missing of the inputs.

    Raises:
      FileNotFoundError: if the examples are not there.
      ImportError: if another package of their name is loaded.
      SchemaError: if inputs of other settings are there.
      ValueError: if the example takes no such settings.
    """
    find(inputs)(inputs.output, **inputs.given)


def find(inputs: Inputs) -> Callable[..., None]:
    """Finds what makes the inputs, and sees that it takes what the recipe tells it.

    Raises:
      FileNotFoundError: if the examples are not there.
      ImportError: if another package of their name is loaded.
      ValueError: if the example makes no inputs, or takes no such settings.
    """
    path = ROOT.joinpath(*inputs.made_by.split(".")).with_suffix(".py")
    if not (ROOT / "pyproject.toml").exists():
        raise FileNotFoundError(
            f"[inputs].made_by = {inputs.made_by!r} must be of a checkout that fusebeam"
            f" runs from, but {ROOT} has no {path.relative_to(ROOT)} of FuseBeam's; run"
            " the fusebeam of a checkout (make install), or make what the recipe names"
            " yourself and leave [inputs] out"
        )
    if not path.exists():
        known = [f"{PACKAGE}.{one.stem}" for one in path.parent.glob("[a-z]*.py")]
        raise FileNotFoundError(
            f"[inputs].made_by must name an example, but {path} is not there"
            f"{settings.suggestion(inputs.made_by, known)}"
        )
    _open_package()
    work: Callable[..., None] | None = getattr(
        importlib.import_module(inputs.made_by), _MAKES, None
    )
    if work is None:
        raise ValueError(
            f"[inputs].made_by must name an example with inputs of its own, but"
            f" {inputs.made_by} has no {_MAKES}"
        )
    _check(inputs, inspect.signature(work), typing.get_type_hints(work))
    return work


def _open_package() -> None:
    """Makes the checkout's examples importable, and no others of that name."""
    if PACKAGE not in sys.modules:
        folder = ROOT / PACKAGE
        spec = importlib.util.spec_from_file_location(
            PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        package = importlib.util.module_from_spec(spec)
        sys.modules[PACKAGE] = package
        spec.loader.exec_module(package)
    found = [Path(place).resolve() for place in sys.modules[PACKAGE].__path__]
    if found != [ROOT / PACKAGE]:
        raise ImportError(
            f"the package {PACKAGE} must be the checkout's own, {ROOT / PACKAGE}, for"
            " [inputs] to be made, but this program has loaded"
            f" {', '.join(map(str, found))}; run the recipe by fusebeam run"
        )


def _check(
    inputs: Inputs, signature: inspect.Signature, hints: Mapping[str, Any]
) -> None:
    """Compares what the table holds with what the example takes.

    Raises:
      ValueError: if a key is unknown or missing, or a value is none that it takes.
    """
    takes = {n: p for n, p in signature.parameters.items() if n != "output"}
    for key in inputs.given:
        if key not in takes:
            raise ValueError(
                f"[inputs] may hold made_by and what {inputs.made_by} takes,"
                f" {', '.join(takes)}, got {key!r}{settings.suggestion(key, takes)}"
            )
    for name, parameter in takes.items():
        if name not in inputs.given:
            if parameter.default is parameter.empty:
                raise ValueError(f"[inputs] must hold {name!r} for {inputs.made_by}")
            continue
        value, choices = inputs.given[name], typing.get_args(hints[name])
        fits = value in choices if choices else type(value) is hints[name]
        if not fits:
            told = ", ".join(choices) if choices else f"of type {hints[name].__name__}"
            raise ValueError(f"[inputs].{name} must be {told}, got {value!r}")
