"""fusebeam run: all stages of a recipe, on this machine.

    prepare → score the target and every source → fuse → train every arm → evaluate

Each stage skips what is done, so the same command goes on where it stopped.
"""

import argparse
import dataclasses
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines import fuse, launch, prepare, recipe, score
from pipelines.recipe import Arm, Recipe
from schemas import copies, files, manifest, settings
from schemas.errors import FusionError
from schemas.manifest import Manifest
from train import evaluate, trainer
from train.config import TrainConfig
from transforms import rows

RESULT = "evaluation.json"
CHOICE = "choice.json"


def run(plan: Recipe, runner_flags: Sequence[str] = ()) -> dict[str, Any]:
    """Does all stages of a recipe.

    Returns:
      What `evaluation.json` holds: bits per byte by model and domain, and bytes.
    """
    start = time.monotonic()
    with _Stage("prepare") as stage:
        for split, made in prepare.prepare_corpus(plan.prepare, runner_flags).items():
            stage.say(f"{split}: {_counts(made, 'documents', 'windows', 'text_bytes')}")
            if split in plan.needed_splits and not made.counts["windows"]:
                raise FusionError(
                    f"split {split!r} must hold windows, it holds none; give it a"
                    " larger share, or more documents"
                )
    for name in ("target", *plan.sources):
        with _Stage(f"score {name}") as stage:
            scored = score.score_windows(plan.score(name), runner_flags)
            assert scored is not None
            stage.say(_counts(scored, "windows", "tokens", "failed"))
            for line in manifest.losses(plan.score(name).output, scored):
                stage.say(line)
    with _Stage("fuse") as stage:
        fused = fuse.fuse_scores(plan.fuse, runner_flags)
        assert fused is not None
        stage.say(_counts(fused, "windows", "tokens", "positions", "covered"))
        lost = manifest.losses(plan.fuse.output, fused)
        for line in (*lost, *fuse.slips(plan.fuse, fused.counts)):
            stage.say(line)
    models = {"untouched": plan.target}
    for arm in plan.arms:
        with _Stage(f"train {arm.name}") as stage:
            models[arm.name] = train_arm(plan, arm, stage)
    models |= {f"source:{name}": model for name, model in plan.sources.items()}
    with _Stage("evaluate") as stage:
        result = evaluate_all(plan, models, stage)
    files.write_json(plan.folder(RESULT), result)
    print()
    print(taught_table(fused))
    print()
    print(evaluate.table(result))
    print(f"\ndone in {launch.clock(time.monotonic() - start)}: {plan.folder(RESULT)}")
    return result


class _Stage:
    """Says when a stage begins, what it came to, and how long it took."""

    def __init__(self, name: str) -> None:
        self._name, self._start = name, time.monotonic()

    def __enter__(self) -> "_Stage":
        print(f"── {self._name}", flush=True)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.say(f"({launch.clock(time.monotonic() - self._start)})")

    def say(self, text: str) -> None:
        """Prints a line of the stage."""
        print(f"   {text}", flush=True)


class _Slices:
    """Shows on standard error which slice of how many an evaluation has done."""

    def __init__(self, name: str) -> None:
        self._name, self._terminal = name, sys.stderr.isatty()

    def __call__(self, line: str) -> None:
        text = f"{self._name}: {line}"
        if not self._terminal:
            print(text, file=sys.stderr, flush=True)
            return
        done, _, total = line.rpartition(" ")[2].partition("/")
        # One line that is written over, as the other stages have, until the last slice.
        print(
            f"\r\x1b[K{text}", end="\n" * (done == total), file=sys.stderr, flush=True
        )


def _counts(made: Manifest, *names: str) -> str:
    return ", ".join(f"{made.counts[n]:,} {n.replace('_', ' ')}" for n in names)


def train_arm(plan: Recipe, arm: Arm, stage: _Stage) -> str:
    """Trains an arm, at each of its rates where it has several.

    Of several rates the one with the fewest bits per byte on the dev split is taken;
    `choice.json` beside the model tells them all.

    Returns:
      The folder of the trained model.
    """
    if not arm.rates:
        return _train(plan.train(arm), plan, stage)
    scores: dict[float, float] = {}
    trials: dict[float, str] = {}
    for rate in arm.rates:
        trials[rate] = _train(plan.train(arm, rate), plan, stage)
        found = evaluate.evaluate_model(
            plan.evaluate(f"{arm.name}.{rate:g}", trials[rate], "dev"),
            _Slices(f"evaluate {arm.name} on dev"),
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
    return folder


def _train(config: TrainConfig, plan: Recipe, stage: _Stage) -> str:
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


def evaluate_all(
    plan: Recipe, models: Mapping[str, str], stage: _Stage
) -> dict[str, Any]:
    """Evaluates every model on the held-out split."""
    found = {}
    for name, model in models.items():
        config = plan.evaluate(name.replace(":", "."), model, "heldout")
        found[name] = evaluate.evaluate_model(config, _Slices(f"evaluate {name}"))
        cost = evaluate.bits_per_byte(found[name])[evaluate.ALL]
        stage.say(f"{name}: {cost:.4f} bits per byte")
    return evaluate.summarize(found)


def taught_table(fused: Manifest) -> str:
    """Writes which share of a domain's windows each source taught most."""
    table: dict[str, dict[str, int]] = {}
    for domain, name, count in rows.taught(fused.counts):
        table.setdefault(domain, {})[name] = count
    names = list(dict.fromkeys(name for row in table.values() for name in row))
    lines = [f"{'taught by':<18}" + "".join(f"{name:>14}" for name in names)]
    for domain, row in sorted(table.items()):
        total = sum(row.values()) or 1
        shares = "".join(f"{row.get(name, 0) / total:>14.0%}" for name in names)
        lines.append(f"{domain:<18}{shares}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="fusebeam run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=launch.RUNNER_FLAGS,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", help="the TOML file")
    parser.add_argument("--output", help="takes the place of the recipe's output")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="write anew what other settings have written, in every stage",
    )
    words, unseen = launch.behind_hyphens(sys.argv[1:] if argv is None else argv)
    ours, flags = launch.part_runner_flags(settings.snake_case_flags(words))
    given, rest = parser.parse_known_args(ours)
    launch.refuse_unknown(rest, ["output", "overwrite"])
    plan = recipe.read(given.recipe, given.output, given.overwrite)
    run(plan, flags + unseen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
