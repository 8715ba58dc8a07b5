"""Trains the arms of a recipe: at one learning rate, or at that which dev chooses."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path

from pipelines.branches import Arm
from pipelines.progress import Slices, Stage
from pipelines.recipe import Recipe
from schemas import copies, files, manifest
from train import evaluate, publish, trainer
from train.config import TrainConfig

CHOICE = "choice.json"


def train_arm(plan: Recipe, arm: Arm, stage: Stage) -> None:
    """Trains an arm, at each of its rates where it has several.

    Of several rates the one with the fewest bits per byte on the dev split is taken;
    `choice.json` beside the model tells them all.

    Raises:
      SchemaError: if a model of other settings is there, and `overwrite` is off.
    """
    if not arm.rates:
        _train(plan.train(arm), plan, stage)
        return
    _refuse_others(plan, arm)
    scores: dict[float, float] = {}
    trials: dict[float, str] = {}
    for rate in arm.rates:
        trials[rate] = _train(plan.train(arm, rate), plan, stage)
        found = evaluate.evaluate_model(
            plan.evaluate(f"{arm.name}.{rate:g}", trials[rate], "dev"),
            Slices(f"evaluate {arm.name} on dev"),
        )
        scores[rate] = evaluate.bits_per_byte(found)["all"]
        stage.say(f"learning rate {rate:g}: {scores[rate]:.4f} bits per byte on dev")
    best = min(scores, key=lambda rate: scores[rate])
    stage.say(f"dev chose {best:g}")
    folder = plan.folder("models", arm.name)
    _adopt(trials[best], folder)
    costs = {f"{rate:g}": score for rate, score in scores.items()}
    choice = {"chosen": best, "dev_bits_per_byte": costs}
    place = files.join(folder, CHOICE)
    if not files.exists(place) or files.read_json(place) != choice:
        files.write_json(place, choice)


def _refuse_others(plan: Recipe, arm: Arm) -> None:
    """Looks whether a model is in the way that no choice of rates has put there.

    Raises:
      SchemaError: if so, it is of none of the rates, and `overwrite` is off.
    """
    folder = plan.folder("models", arm.name)
    chosen = files.exists(files.join(folder, CHOICE))
    if plan.overwrite or chosen or not manifest.present(folder):
        return
    found = manifest.read(folder, publish.STAGE)
    trials = [trainer.identity(plan.train(arm, rate)) for rate in arm.rates]
    if {**found.settings, **found.inputs} not in trials:
        manifest.refuse_other(folder, found, trials[0])


def _train(config: TrainConfig, plan: Recipe, stage: Stage) -> str:
    """Trains, or takes over the model that another arm got by the same settings.

    Raises:
      SchemaError: if a model of other settings is there, and `overwrite` is off.
    """
    if others := _alike(config, plan):
        _take_over(config, others, stage)
    result = trainer.train(config)
    stage.say(f"{result.steps:,} steps, {result.tokens:,} tokens")
    return result.output


def _alike(config: TrainConfig, plan: Recipe) -> dict[str, str]:
    """Returns the arms, with their folders, whose settings are those of a training."""
    found = {arm.name: plan.train(arm) for arm in plan.arms if not arm.rates}
    return {
        name: other.output
        for name, other in found.items()
        if dataclasses.replace(other, output=config.output) == config
        and other.output != config.output
    }


def _take_over(config: TrainConfig, others: Mapping[str, str], stage: Stage) -> None:
    """Copies a model that another arm has got by this very run, if there is one.

    That settings are the same now says nothing of the other's folder: it may be of
    settings or data from before, as with `--only` nobody has looked into it.
    """
    wanted = trainer.identity(config)
    if publish.finished(config.output, wanted, overwrite=config.overwrite):
        return
    for name, folder in others.items():
        if publish.finished(folder, wanted, overwrite=True):
            stage.say(f"the same settings as {name}: its model is taken")
            _adopt(folder, config.output)
            return


def _adopt(trial: str, folder: str) -> None:
    """Copies a trial's folder, unless it is there already; whole or not at all."""
    marks = [files.join(place, manifest.NAME) for place in (trial, folder)]
    if files.exists(marks[1]) and len({files.checksum(mark) for mark in marks}) == 1:
        return
    if "://" in folder:
        copies.replace_tree(trial, folder, last=manifest.NAME)
        return
    copy = Path(f"{folder}.copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(trial, copy)
    shutil.rmtree(folder, ignore_errors=True)
    copy.rename(folder)
