"""A table `[merge]`: which models are merged, how, and where to."""

import dataclasses
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pipelines import branches, guards
from schemas import files, settings
from schemas.settings import setting
from train.merge import rules
from train.merge.rules import Rule

_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Settings of `fusebeam merge` that are flags, too."""

    models: tuple[str, ...] = setting(
        help="the models, each a folder or hub id, or NAME=it to name it in rules",
        shapes_output=False,
    )
    output: str = setting(
        help="folder of the merged model; left out: 'merged' in the recipe's output",
        shapes_output=False,
    )
    method: str = setting(help="how tensors are merged; docs/algorithms.md has a list")
    base: str | None = setting(
        None,
        help="the model that all others were trained from, folder or hub id; methods of"
        " differences need it. Keys, vocabulary, configuration and tokenizer are its"
        " own; without it those of the first model",
        shapes_output=False,
    )
    use_base: bool = setting(
        True,
        help="whether a method that can do without a base, as nuslerp, takes it where"
        " there is one",
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = setting(
        None,
        help="number format that floats are stored in; left out: each tensor as in the"
        " base. The arithmetic is in float32",
    )
    embeddings: Literal["error", "base", "common"] = setting(
        "error",
        help="what becomes of embeddings and head where vocabularies differ: an error,"
        " those of the base, or tokens that all models have in common merged and the"
        " others those of the base",
    )
    seed: int = setting(0, help="of what DARE and DELLA draw at random")
    shard_bytes: int = setting(
        2_000_000_000, help="most bytes of a file; each file is a slice of the work"
    )
    threads: int = setting(
        1, help="threads of torch in each worker; last bits may depend on them"
    )
    show: bool = setting(
        False,
        help="print what would become of every tensor, and write nothing",
        shapes_output=False,
    )
    slices: str | None = setting(
        None,
        help="do only slices A-B, both included, counted from 0, without a runner",
        shapes_output=False,
    )
    stall_timeout: float = guards.stall_timeout()
    max_slice_attempts: int = guards.max_slice_attempts()
    element_timeout: float | None = guards.element_timeout()
    overwrite: bool = setting(
        False, help="write anew what other settings have written", shapes_output=False
    )

    def __post_init__(self) -> None:
        """Checks what can be checked without reading a file."""
        if not self.models:
            raise ValueError("models must name a model, they name none")
        names = self.names
        for name in names:
            if name == rules.BASE or names.count(name) > 1:
                raise ValueError(
                    f"every model must have a name of its own that is not"
                    f" {rules.BASE!r}, got {', '.join(names)}"
                )
        for name in ("shard_bytes", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        guards.of(self)

    @property
    def _pairs(self) -> list[tuple[str, str]]:
        """The models with their names, empty where none is given."""
        parts = [text.partition("=") for text in self.models]
        return [
            (head, tail) if mark and _NAME.fullmatch(head) else ("", head + mark + tail)
            for head, mark, tail in parts
        ]

    @property
    def names(self) -> list[str]:
        """The models' names: given, or the last part of the path where that tells."""
        lasts = [files.name_of(place) for _, place in self._pairs]
        return [
            name
            or (last if _NAME.fullmatch(last) and lasts.count(last) == 1 else "")
            or f"model-{number}"
            for number, ((name, _), last) in enumerate(
                zip(self._pairs, lasts, strict=True), 1
            )
        ]

    @property
    def places(self) -> dict[str, str]:
        """Where the inputs are, by name: the models in order, then the base."""
        pairs = zip(self.names, (place for _, place in self._pairs), strict=True)
        return {**dict(pairs), **({rules.BASE: self.base} if self.base else {})}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Merging:
    """What is merged and how: a table `[merge]`, checked.

    Attributes:
      config: the settings that are flags.
      settings: of the method for all tensors.
      tables: `[[merge.rules]]`.
    """

    config: MergeConfig
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tables: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        """Settles the rules once, so that slips show before a file is read."""
        _ = self.rules

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules, in the order in which they are tried."""
        return rules.read_rules(
            self.config.method,
            self.settings,
            self.tables,
            self.config.names,
            use_base=self.config.use_base,
            has_base=self.config.base is not None,
        )

    @property
    def shaping(self) -> dict[str, Any]:
        """The settings that shape the merged model, as JSON values."""
        given = {
            **settings.shaping(self.config),
            "models": self.config.names,
            "settings": dict(self.settings),
            "rules": [dict(table) for table in self.tables],
        }
        # In one order, however the recipe has it: the model card quotes it.
        return dict(json.loads(files.canonical_json(given)))


def read_table(table: Mapping[str, Any], where: str = "[merge]") -> Merging:
    """Reads a table `[merge]`.

    Raises:
      ValueError: if a key is unknown, missing or wrong; names it.
    """
    try:
        config, own, tables = part_table(table, where)
        return Merging(config=config, settings=own, tables=tables)
    except ValueError as error:
        told = str(error)
        raise ValueError(told if where in told else f"{where}: {told}") from error


def part_table(
    table: Mapping[str, Any], where: str
) -> tuple[MergeConfig, Mapping[str, Any], Sequence[Any]]:
    """Parts a table `[merge]` into flags, settings of the method, and rules.

    Raises:
      ValueError: if a key is unknown, missing or wrong; names it.
    """
    given = dict(table)
    own, tables = given.pop("settings", {}), given.pop("rules", [])
    if not isinstance(own, Mapping):
        raise ValueError(f"{where}.settings must be a table, got {own!r}")
    if not isinstance(tables, list):
        raise ValueError(f"{where}.rules must be a list of tables, got {tables!r}")
    if isinstance(given.get("models"), Mapping):
        given["models"] = [f"{name}={place}" for name, place in given["models"].items()]
    return settings.from_mapping(MergeConfig, given, where), own, tables


def is_of_run(path: str) -> bool:
    """Says whether a recipe is of `fusebeam run`, whose models are arms by name.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not TOML.
    """
    return bool(_marks_of_run(_read_toml(path)))


def no_merges(path: str) -> ValueError:
    """Returns the error of a recipe of a run that merges nothing."""
    return ValueError(
        f"{path} must say what is merged, but it is a recipe of fusebeam run that has"
        " neither [merge] nor [merges.NAME]; add one of them, or write a recipe of its"
        " own that holds [merge] with models by path"
    )


def _marks_of_run(given: Mapping[str, Any]) -> list[str]:
    return [f"[{key}]" for key in ("sources", "merges") if key in given]


def _read_toml(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(files.read_bytes(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be TOML: {error}") from error


def _refuse_run(path: str, given: Mapping[str, Any]) -> None:
    """Refuses a recipe of a run.

    Raises:
      ValueError: if it is one; names the command that makes its merges.
    """
    if not (found := _marks_of_run(given)):
        return
    merges = [f"{branches.MERGE}{name}" for name in branches.merge_tables(given)]
    if not merges:
        raise no_merges(path)
    raise ValueError(
        f"{path} must hold [merge] with models by path, but with {' and '.join(found)}"
        " it is a recipe of fusebeam run, which merges arms by name; --show shows what"
        f" would become of them, and this makes them: fusebeam run {path} --only"
        f" {' '.join(merges)}"
    )


def read_tables(path: str, needed: Mapping[str, str]) -> dict[str, Any]:
    """Reads a recipe of models by path.

    Args:
      path: the TOML file.
      needed: tables that it must hold, and what each says.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not TOML, is a recipe of a run, or lacks a table.
    """
    given = _read_toml(path)
    _refuse_run(path, given)
    for name, says in needed.items():
        if not isinstance(given.get(name), dict):
            raise ValueError(
                f"{path} must hold a table [{name}] that says {says}, it holds"
                f" {', '.join(given) or 'nothing'}"
            )
    return given


def read_recipe(path: str, flags: Mapping[str, Any]) -> Merging:
    """Reads the table `[merge]` of a recipe; flags take the place of keys.

    A flag of another method leaves out the settings of the recipe's, as tables of
    `[merges]` do.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not TOML, is a recipe of a run, or has no such table, or a
        key is wrong.
    """
    given = read_tables(path, {"merge": "what is merged"})
    folder = given.get("output")
    default = {"output": files.join(folder, "merged")} if folder else {}
    try:
        return read_table({**default, **branches.over(given["merge"], flags)})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
