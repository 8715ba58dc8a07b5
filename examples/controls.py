"""The arms that `examples.results` compares, and how one of them is run.

What an arm does not change is the recipe's: its arms `clm` and `fused` are where every
control starts from, and the learning rates of `clm_tuned` are CLM's grid.
"""

import dataclasses
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from examples import models
from pipelines import fuse, score
from pipelines.fuse import FuseConfig
from pipelines.recipe import Recipe
from schemas import files, settings
from train import evaluate, trainer
from train.config import TrainConfig
from train.evaluate import EvaluateConfig

WEIGHTS = (0.1, 0.4, 0.7)
"""Shares of the CLM loss that fused training is tried with."""

FUSED_RATES = (1e-3, 2e-3)
EPOCHS = (1, 2, 3, 4, 6)
SPLITS = ("dev", "heldout")
_ALL = "all"  # the fused rows that the recipe's own settings give


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """One arm.

    Attributes:
      name: in files and tables.
      says: what it is.
      base: the recipe's arm that it starts from; None for the target as it is.
      train: settings of the trainer that take the place of the recipe's.
      fuse: settings of fuse that do; where there are any, it has rows of its own.
    """

    name: str
    says: str
    base: str | None
    train: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fuse: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def quick(plan: Recipe) -> list[Control]:
    """Lists the most telling arms."""
    alone = [
        Control(
            name=f"only.{entry.partition('=')[0]}",
            says=f"taught by {entry.partition('=')[0]} alone",
            base="fused",
            fuse={"sources": (entry,), "include_target": False},
        )
        for entry in plan.fuse.sources
    ]
    return [
        Control(name="untouched", says="the target as it is", base=None),
        Control(name="clm", says="CLM alone, the recipe's settings", base="clm"),
        Control(name="fused", says="fused, the recipe's settings", base="fused"),
        Control(
            name="self",
            says="taught by its own rows (self-distillation)",
            base="fused",
            fuse={"sources": (), "include_target": True},
        ),
        *alone,
        Control(
            name="kl",
            says="KL in place of CE",
            base="fused",
            train={"fusion_loss": "kl"},
        ),
    ]


def rest(plan: Recipe) -> list[Control]:
    """Lists the arms that `quick` leaves out: grids, ablations, lengths."""
    return [*_grid(plan), *_ablations(), *_lengths(plan)]


def _grid(plan: Recipe) -> list[Control]:
    """Settings beside the recipe's, for the dev split to choose from."""
    clm, fused = (_settings(plan, base) for base in ("clm", "fused"))
    clm_rates = next((a.rates for a in plan.arms if a.name == "clm_tuned"), ())
    own = (fused.clm_weight, fused.learning_rate)
    return [
        *(
            Control(
                name=f"clm.rate{rate:g}",
                says=f"CLM alone, rate {rate:g}",
                base="clm",
                train={"learning_rate": rate},
            )
            for rate in clm_rates
            if rate != clm.learning_rate
        ),
        *(
            Control(
                name=f"fused.weight{weight:g}.rate{rate:g}",
                says=f"fused, CLM's share {weight:g}, rate {rate:g}",
                base="fused",
                train={"clm_weight": weight, "learning_rate": rate},
            )
            for weight in WEIGHTS
            for rate in FUSED_RATES
            if (weight, rate) != own
        ),
    ]


def _ablations() -> list[Control]:
    return [
        Control(
            name="renormalise",
            says="rows renormalized over k, no tail",
            base="fused",
            train={"tail": "renormalise"},
        ),
        Control(
            name="smoothing",
            says="CLM alone, label smoothing 0.1",
            base="clm",
            train={"label_smoothing": 0.1},
        ),
        Control(
            name="avgce",
            says="AvgCE in place of MinCE",
            base="fused",
            fuse={"fusion": "avgce"},
        ),
        Control(
            name="position",
            says="chosen by position, not by window",
            base="fused",
            fuse={"granularity": "position"},
        ),
    ]


def _lengths(plan: Recipe) -> list[Control]:
    """Shorter and longer runs than the recipe's, each with a whole schedule."""
    return [
        Control(
            name=f"{base}.epochs{epochs}",
            says=f"{base}, {epochs} epochs",
            base=base,
            train={"epochs": float(epochs)},
        )
        for epochs in EPOCHS
        for base in ("fused", "clm")
        if epochs != _settings(plan, base).epochs
    ]


def _settings(plan: Recipe, base: str) -> TrainConfig:
    """Returns the recipe's settings of one of its arms."""
    for arm in plan.arms:
        if arm.name == base and not arm.rates:
            return plan.train(arm)
    raise SystemExit(
        f"error: the recipe must hold an arm [arms.{base}] with one learning rate"
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """All that the arms of one seed share.

    Attributes:
      plan: the recipe of a finished demo.
      made: how the target is made.
      output: folder of the results; each seed gets one below it.
      seed: of the target's weights, its windows' order, and the order of training.
    """

    plan: Recipe
    made: models.Plan
    output: str
    seed: int

    def folder(self, *names: str) -> str:
        """Returns a folder of this seed."""
        return files.join(self.output, f"seed{self.seed}", *names)

    def make_target(self) -> str:
        """Trains the target on the split `base`, unless it is there; its folder."""
        folder, partial = self.folder("target"), self.folder("target.partial")
        if not files.exists(folder):
            texts = models.read_texts(self.plan.folder("prepared", "base"))
            models.make_model(self.made, texts, partial, self.seed)
            Path(partial).rename(folder)
        return folder

    def _fuse_config(self, control: Control) -> FuseConfig:
        return dataclasses.replace(
            self.plan.fuse,
            target=self.folder("scores"),
            output=self.folder("fused", control.name if control.fuse else _ALL),
            **control.fuse,
        )

    def _train_config(self, control: Control) -> TrainConfig:
        assert control.base is not None
        return dataclasses.replace(
            _settings(self.plan, control.base),
            data=self._fuse_config(control).output,
            model=self.folder("target"),
            output=self.folder("models", control.name),
            seed=self.seed,
            **control.train,
        )

    def _evaluate_config(self, name: str, model: str, split: str) -> EvaluateConfig:
        return dataclasses.replace(
            self.plan.evaluate(name, model, split),
            output=self.folder("evaluation", split),
        )

    def settings(self, control: Control) -> dict[str, Any]:
        """Returns all that shapes an arm's figures, as JSON values."""
        if control.base is None:
            return {}
        fusing = self._fuse_config(control)
        return {
            "fuse": {
                **settings.shaping(fusing),
                "sources": sorted(fusing.named_sources()),
            },
            "train": settings.shaping(self._train_config(control)),
        }

    def run(self, control: Control) -> dict[str, Any]:
        """Trains and measures an arm.

        Returns:
          Its settings, optimizer steps, tokens, seconds of all its stages, and for
          each split nats, bytes and windows by domain, as `train.evaluate` counts.
        """
        start = time.monotonic()
        model, steps, tokens = self.make_target(), 0, 0
        if control.base is not None:
            self._fuse(control)
            result = trainer.train(self._train_config(control))
            model, steps, tokens = result.output, result.steps, result.tokens
        found = {
            split: evaluate.evaluate_model(
                self._evaluate_config(control.name, model, split)
            )
            for split in SPLITS
        }
        return {
            "settings": self.settings(control),
            "steps": steps,
            "tokens": tokens,
            "seconds": round(time.monotonic() - start, 1),
            **found,
        }

    def _fuse(self, control: Control) -> None:
        """Scores the target and fuses, unless both are done."""
        score.score_windows(
            dataclasses.replace(
                self.plan.score("target"),
                model=self.folder("target"),
                output=self.folder("scores"),
            )
        )
        fuse.fuse_scores(self._fuse_config(control))

    def discard(self, control: Control) -> None:
        """Removes an arm's trained model; the target stays, for other arms."""
        shutil.rmtree(self.folder("models", control.name), ignore_errors=True)
