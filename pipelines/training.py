"""Trains the arms of a recipe: at one learning rate, or at that which dev chooses."""

import dataclasses
import shutil
from pathlib import Path

from pipelines.branches import Arm
from pipelines.progress import Slices, Stage
from pipelines.recipe import Recipe
from schemas import copies, files, manifest
from train import evaluate, trainer
from train.config import TrainConfig

CHOICE = "choice.json"


def train_arm(plan: Recipe, arm: Arm, stage: Stage) -> None:
    """Trains an arm, at each of its rates where it has several.

    Of several rates the one with the fewest bits per byte on the dev split is taken;
    `choice.json` beside the model tells them all.
    """
    if not arm.rates:
        _train(plan.train(arm), plan, stage)
        return
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


def _train(config: TrainConfig, plan: Recipe, stage: Stage) -> str:
    """Trains, or takes over the model that another arm got by the same settings."""
    for arm in plan.arms:
        other = plan.train(arm) if not arm.rates else config
        alike = dataclasses.replace(other, output=config.output) == config
        trained = files.exists(files.join(other.output, manifest.NAME))
        if alike and trained and other != config:
            stage.say(f"the same settings as {arm.name}: its model is taken")
            _adopt(other.output, config.output)
    result = trainer.train(config)
    stage.say(f"{result.steps:,} steps, {result.tokens:,} tokens")
    return result.output


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
