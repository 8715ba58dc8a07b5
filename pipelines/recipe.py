"""A recipe: one TOML file that says what to fuse, with a table for each stage.

A stage's table holds its flags by name. Folders between the stages are the recipe's own
affair: they lie below `output`.
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from typing import Any, TypeVar

from pipelines.fuse import FuseConfig
from pipelines.prepare import PrepareConfig
from pipelines.score import ScoreConfig
from schemas import files, settings
from train.config import TrainConfig
from train.evaluate import EvaluateConfig

Config = TypeVar("Config")

TABLES = ("corpus", "prepare", "target", "sources", "score", "fuse", "train", "arms")
TABLES_AND_KEYS = (*TABLES, "evaluate", "splits", "output")
SPLITS = {"fusion": "fusion", "dev": "dev", "heldout": "heldout"}
SWEPT = "learning_rate"
"""The setting of an arm that may be a list, of which the dev split chooses."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to continue the target.

    Attributes:
      name: its name in tables and folders.
      settings: what its table holds beside the shared settings of `[train]`.
      rates: learning rates to choose from on the dev split; empty where one is given.
    """

    name: str
    settings: Mapping[str, Any]
    rates: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a recipe says, checked.

    Attributes:
      output: folder that gets a folder for each stage.
      target: the model that is trained: a folder, a .gguf file or a hub id.
      sources: the models that teach, by name.
      splits: which split is fused, which chooses settings, and which is reported.
      arms: the ways to continue the target, in order.
      tables: the table of each stage, by name.
    """

    output: str
    target: str
    sources: Mapping[str, str]
    splits: Mapping[str, str]
    arms: tuple[Arm, ...]
    tables: Mapping[str, Mapping[str, Any]]

    def folder(self, *names: str) -> str:
        """Returns a folder below the output."""
        return files.join(self.output, *names)

    @property
    def fusion_windows(self) -> str:
        """The windows that are scored and fused."""
        return self.folder("windows", self.splits["fusion"])

    @property
    def prepare(self) -> PrepareConfig:
        """Settings of prepare."""
        table = {**self.tables["corpus"], **self.tables["prepare"]}
        models = (self.target, *self.sources.values())
        return settings.from_mapping(
            PrepareConfig,
            {"output": self.folder("windows"), "models": models, **table},
            "[corpus] and [prepare]",
        )

    def score(self, name: str) -> ScoreConfig:
        """Settings of the scoring of one model; `target` is the target's name."""
        own = self._model_table(name)
        given = {
            "windows": self.fusion_windows,
            "output": self.folder("scores", name),
            **self.tables["score"],
            **own,
        }
        return settings.from_mapping(ScoreConfig, given, f"[score] and [{name}]")

    def _model_table(self, name: str) -> Mapping[str, Any]:
        if name == "target":
            return self.tables["target"]
        return self.tables["sources"][name]

    @property
    def fuse(self) -> FuseConfig:
        """Settings of fuse."""
        given = {
            "windows": self.fusion_windows,
            "target": self.folder("scores", "target"),
            "sources": [f"{n}={self.folder('scores', n)}" for n in self.sources],
            "output": self.folder("fused"),
            **self.tables["fuse"],
        }
        return settings.from_mapping(FuseConfig, given, "[fuse]")

    def train(self, arm: Arm, rate: float | None = None) -> TrainConfig:
        """Settings of the training of an arm, at one of its rates where it has any."""
        where: tuple[str, ...] = ("models", arm.name)
        given: dict[str, Any] = {**self.tables["train"], **arm.settings}
        if rate is not None:
            given[SWEPT] = rate
            where = ("trials", arm.name, f"{SWEPT}={rate:g}")
        given = {
            "data": self.folder("fused"),
            "model": self.target,
            "output": self.folder(*where),
            **given,
        }
        return settings.from_mapping(
            TrainConfig, given, f"[train] and [arms.{arm.name}]"
        )

    def evaluate(self, name: str, model: str, split: str) -> EvaluateConfig:
        """Settings of the evaluation of one model on one split."""
        given = {
            "name": name,
            "model": model,
            "windows": self.folder("windows", self.splits[split]),
            "output": self.folder("evaluation", self.splits[split]),
            **self.tables["evaluate"],
        }
        return settings.from_mapping(EvaluateConfig, given, "[evaluate]")


def read(path: str, output: str | None = None) -> Recipe:
    """Reads a recipe and checks all of its tables.

    Args:
      path: the TOML file.
      output: takes the place of the recipe's own output.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not TOML, or a table or key is unknown, missing or wrong;
        names it.
    """
    try:
        given = tomllib.loads(files.read_bytes(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be TOML: {error}") from error
    for key in given:
        if key not in TABLES_AND_KEYS:
            near = settings.suggestion(key, TABLES_AND_KEYS)
            raise ValueError(f"{path} must hold known tables only, got {key!r}{near}")
    for table in ("corpus", "target", "sources"):
        if not isinstance(given.get(table), dict) or not given[table]:
            raise ValueError(f"{path} must hold a table [{table}]")
    recipe = Recipe(
        output=output or _text(path, given, "output"),
        target=_text(path, given["target"], "model"),
        sources={
            name: _text(path, table, "model")
            for name, table in given["sources"].items()
        },
        splits=_splits(path, given.get("splits", {})),
        arms=tuple(_arms(path, given.get("arms", {"fused": {}}))),
        tables={name: given.get(name, {}) for name in TABLES_AND_KEYS},
    )
    _check(recipe)
    return recipe


def _text(path: str, table: Any, key: str) -> str:
    if not isinstance(table, dict) or not isinstance(table.get(key), str):
        raise ValueError(f"{path} must hold a string {key!r}, got {table!r}")
    return str(table[key])


def _splits(path: str, table: Mapping[str, Any]) -> dict[str, str]:
    for key in table:
        if key not in SPLITS:
            raise ValueError(f"{path}: [splits] may hold {', '.join(SPLITS)}: {key!r}")
    return {**SPLITS, **table}


def _arms(path: str, tables: Mapping[str, Any]) -> list[Arm]:
    arms = []
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ValueError(f"{path} must hold a table [arms.{name}], got {table!r}")
        if name == "untouched" or name.startswith("source:"):
            raise ValueError(f"{path}: no arm may be called {name!r}")
        own = dict(table)
        rates: tuple[float, ...] = ()
        if isinstance(own.get(SWEPT), list):
            rates = tuple(float(rate) for rate in own.pop(SWEPT))
        arms.append(Arm(name=name, settings=own, rates=rates))
    return arms


def _check(recipe: Recipe) -> None:
    """Builds the settings of every stage, so that a slip is found before any work."""
    _ = recipe.prepare, recipe.fuse
    for name in ("target", *recipe.sources):
        recipe.score(name)
    for arm in recipe.arms:
        for rate in arm.rates or (None,):
            recipe.train(arm, rate)
    recipe.evaluate("untouched", recipe.target, "heldout")
