"""A recipe: one TOML file that says what to fuse, with a table for each stage.

A stage's table holds its flags by name. Folders between the stages are the recipe's own
affair: they lie below `output`.
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from typing import Any, TypeVar

from pipelines import branches, makers, tables
from pipelines.branches import (
    ALL_SOURCES,
    ENSEMBLE,
    MERGE,
    ONE_MERGE,
    SOURCE,
    SWEPT,
    UNTOUCHED,
    Arm,
    Ensemble,
    Fusion,
    Merge,
)
from pipelines.fuse import FuseConfig
from pipelines.makers import Inputs
from pipelines.merging import Merging, read_table
from pipelines.prepare import PrepareConfig
from pipelines.score import ScoreConfig
from pipelines.tables import SPLITS, TABLES_AND_KEYS
from schemas import files, settings
from train.config import TrainConfig
from train.evaluate import EvaluateConfig

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a recipe says, checked.

    Attributes:
      output: folder that gets a folder for each stage.
      target: the model that is trained: a folder, a .gguf file or a hub id.
      sources: the models that teach, by name.
      splits: which split is fused, which chooses settings, and which is reported.
      fusions: the ways to fuse, by name.
      arms: the ways to continue the target, in order.
      merges: the ways to merge models, each behind those that it takes.
      ensembles: models that are measured as one.
      tables: the table of each stage, by name.
      inputs: what makes corpus and models where they are missing; None where they are
        the user's own.
      overwrite: whether every stage writes anew what other settings have written.
    """

    output: str
    target: str
    sources: Mapping[str, str]
    splits: Mapping[str, str]
    fusions: Mapping[str, Fusion]
    arms: tuple[Arm, ...]
    merges: tuple[Merge, ...]
    ensembles: tuple[Ensemble, ...]
    tables: Mapping[str, Mapping[str, Any]]
    inputs: Inputs | None = None
    overwrite: bool = False

    def folder(self, *names: str) -> str:
        """Returns a folder below the output."""
        return files.join(self.output, *names)

    def _settings(self, cls: type[Config], given: Any, where: str) -> Config:
        """Builds the settings of a stage."""
        more = {"overwrite": True} if self.overwrite else {}
        return settings.from_mapping(cls, {**given, **more}, where)

    @property
    def needed_splits(self) -> tuple[str, ...]:
        """The splits that must hold windows; dev only where it chooses something."""
        idle = set() if any(arm.rates for arm in self.arms) else {"dev"}
        return tuple(self.splits[role] for role in SPLITS if role not in idle)

    @property
    def models(self) -> dict[str, str]:
        """Where the models are that the run compares, by their names in its table.

        Ensembles, which are no models of their own, have their rows in `evaluations`.
        """
        return {
            UNTOUCHED: self.target,
            **{arm.name: self.folder("models", arm.name) for arm in self.arms},
            **{f"{MERGE[:-1]}:{m.name}": self._merged(m.name) for m in self.merges},
            **{f"{SOURCE[:-1]}:{name}": at for name, at in self.sources.items()},
        }

    @property
    def places(self) -> dict[str, str]:
        """Where the models are, by their names in the recipe and behind `--only`."""
        return {name.replace(":", "."): at for name, at in self.models.items()}

    @property
    def fusion_windows(self) -> str:
        """The windows that are scored and fused."""
        return self.folder("windows", self.splits["fusion"])

    @property
    def prepare(self) -> PrepareConfig:
        """Settings of prepare."""
        table = {**self.tables["corpus"], **self.tables["prepare"]}
        given: dict[str, Any] = {
            "output": self.folder("windows"),
            "models": (self.target, *self.sources.values()),
        }
        if "chat_shape" in table:  # whatever the order of models that a table names
            given["chat_model"] = self.target
        return self._settings(
            PrepareConfig,
            {**given, **table},
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
        table = name if name == "target" else f"sources.{name}"
        return self._settings(ScoreConfig, given, f"[score] and [{table}]")

    def _model_table(self, name: str) -> Mapping[str, Any]:
        if name == "target":
            return self.tables["target"]
        return self.tables["sources"][name]

    @property
    def fuse(self) -> FuseConfig:
        """Settings of the fusion of all sources."""
        return self.fuse_of(ALL_SOURCES)

    def fuse_of(self, name: str) -> FuseConfig:
        """Settings of a fusion."""
        fusion = self.fusions[name]
        scores = {source: self.folder("scores", source) for source in fusion.sources}
        given = {
            "windows": self.fusion_windows,
            "target": self.folder("scores", "target"),
            "sources": [f"{source}={folder}" for source, folder in scores.items()],
            "output": self._fused(name),
            **fusion.settings,
        }
        return self._settings(FuseConfig, given, fusion.where)

    def _fused(self, fusion: str) -> str:
        """Returns the folder of a fusion's rows."""
        below = () if fusion == ALL_SOURCES else (fusion,)
        return self.folder("fusions" if below else ALL_SOURCES, *below)

    def train(self, arm: Arm, rate: float | None = None) -> TrainConfig:
        """Settings of the training of an arm, at one of its rates where it has any."""
        where: tuple[str, ...] = ("models", arm.name)
        given: dict[str, Any] = {**self.tables["train"], **arm.settings}
        self._refuse_to_push(arm)
        if rate is not None:
            given[SWEPT] = rate
            where = ("trials", arm.name, f"{SWEPT}={rate:g}")
        given = {
            "data": tuple(map(self._fused, arm.fusions)),
            "model": self.target,
            "output": self.folder(*where),
            **given,
        }
        if given.get("checkpoints"):  # each run has its own below the folder
            given["checkpoints"] = files.join(given["checkpoints"], *where)
        return self._settings(TrainConfig, given, f"[train] and [arms.{arm.name}]")

    def _refuse_to_push(self, arm: Arm) -> None:
        """Refuses a place on the hub that several runs would send their models to."""
        several = arm.rates or _pushed(self.tables["train"])
        if several and (_pushed(arm.settings) or _pushed(self.tables["train"])):
            raise ValueError(
                "push_to_hub must stand in the table of one arm with one learning rate,"
                f" or all runs of it would be sent to one place; [arms.{arm.name}] has"
                " several rates, or [train] names the place: send the finished model by"
                " fusebeam train with the same settings and --push_to_hub"
            )

    def merge(self, merge: Merge) -> Merging:
        """How models are merged."""
        places = self.places
        more = {"overwrite": True} if self.overwrite else {}
        given = {
            "base": self.target,
            "output": self._merged(merge.name),
            **merge.settings,
            "models": [f"{name}={places[name]}" for name in merge.models],
            **more,
        }
        return read_table(given, f"[merges.{merge.name}]")

    def _merged(self, merge: str) -> str:
        """Returns the folder of a merged model."""
        below = () if merge == ONE_MERGE else (merge,)
        return self.folder("merges" if below else ONE_MERGE, *below)

    def evaluations(self, split: str) -> dict[str, EvaluateConfig]:
        """Settings of the evaluations of all rows of the table, on one split."""
        found = {n: self.evaluate(n, at, split) for n, at in self.models.items()}
        for ensemble in self.ensembles:
            name = f"{ENSEMBLE[:-1]}:{ensemble.name}"
            first, *others = (self.places[model] for model in ensemble.models)
            plain = self.evaluate(name, first, split)
            try:
                found[name] = dataclasses.replace(
                    plain,
                    ensemble=tuple(others),
                    ensemble_weights=ensemble.weights,
                    tasks=(),
                )
            except ValueError as error:
                raise ValueError(f"[ensembles.{ensemble.name}]: {error}") from error
        return found

    def evaluate(self, name: str, model: str, split: str) -> EvaluateConfig:
        """Settings of the evaluation of one model on one split."""
        given = {
            "name": name.replace(":", "."),
            "model": model,
            "windows": self.folder("windows", self.splits[split]),
            "output": self.folder("evaluation", self.splits[split]),
            **self.tables["evaluate"],
        }
        return self._settings(EvaluateConfig, given, "[evaluate]")

    @property
    def has_tasks(self) -> bool:
        """Whether models are measured on benchmarks, too."""
        return bool(self.tables["evaluate"].get("tasks"))

    def benchmark(self, name: str, model: str) -> EvaluateConfig:
        """Settings of the benchmarks of one model; `[evaluate]` names them."""
        given = {
            "name": name.replace(":", "."),
            "model": model,
            "output": self.folder("evaluation"),
            **self.tables["evaluate"],
        }
        return self._settings(EvaluateConfig, given, "[evaluate]")


def read(path: str, output: str | None = None, overwrite: bool = False) -> Recipe:
    """Reads a recipe and checks all of its tables.

    Args:
      path: the TOML file.
      output: takes the place of the recipe's own output.
      overwrite: whether every stage writes anew what other settings have written.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not TOML, or a table or key is unknown, missing or wrong;
        names it.
    """
    try:
        given = tomllib.loads(files.read_bytes(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be TOML: {error}") from error
    try:
        tables.check(given)
        fusions = branches.fusions_of(given)
        arms = branches.arms_of(given, fusions)
        if all(ALL_SOURCES not in arm.fusions for arm in arms):
            del fusions[ALL_SOURCES]  # nobody asks for it
        recipe = Recipe(
            output=output or tables.text(given, "the recipe", "output"),
            target=tables.text(given["target"], "[target]", "model"),
            sources={
                name: tables.text(table, f"[sources.{name}]", "model")
                for name, table in given["sources"].items()
            },
            splits=tables.splits_of(given.get("splits", {})),
            fusions=fusions,
            arms=arms,
            merges=branches.merges_of(given, [arm.name for arm in arms]),
            ensembles=branches.ensembles_of(given, [arm.name for arm in arms]),
            tables={name: given.get(name, {}) for name in TABLES_AND_KEYS},
            inputs=makers.read(given),
            overwrite=overwrite,
        )
        _check(recipe)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return recipe


def _check(recipe: Recipe) -> None:
    """Builds the settings of every stage, so that a slip is found before any work."""
    prepared = recipe.prepare
    if recipe.inputs is not None:
        named = {f"[corpus].inputs ({path})": path for path in prepared.inputs}
        named["[target].model"] = recipe.target
        named |= {f"[sources.{name}].model": at for name, at in recipe.sources.items()}
        makers.refuse_elsewhere(recipe.inputs, named)
    for fusion in recipe.fusions:
        recipe.fuse_of(fusion)
    for name in ("target", *recipe.sources):
        recipe.score(name)
    for arm in recipe.arms:
        for rate in arm.rates or (None,):
            recipe.train(arm, rate)
    splits = prepared.shares()
    for split in recipe.needed_splits:
        if split not in splits:
            raise ValueError(
                f"[prepare]: splits must name {split!r}, which [splits] has or means,"
                f" it names {', '.join(splits)}"
            )
    for merge in recipe.merges:
        recipe.merge(merge)
    recipe.evaluations("heldout")


def _pushed(table: Mapping[str, Any]) -> bool:
    return any(key.replace("-", "_") == "push_to_hub" for key in table)
