"""Kills the stages of a small recipe on the local runner.

A stage is the command that a user types, in a process group of its own, and the whole
group gets SIGKILL. The process is a fork of one that has imported everything: so the
instants fall into the stage's work, and not into the seconds that imports take.
"""

import dataclasses
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import transformers  # noqa: F401, the forks shall not import it each anew
from transformers.models.gpt_neox import modeling_gpt_neox  # noqa: F401
from transformers.models.llama import modeling_llama  # noqa: F401

from pipelines import clean, cli, fuse, prepare, recipe, score  # noqa: F401
from pipelines.recipe import Recipe
from tests import small_run
from tests.kill import rounds
from tests.kill.rounds import Round
from train import evaluate, trainer  # noqa: F401

STAGES = ("prepare", "score", "fuse", "train", "evaluate")
FOLDERS = {
    "prepare": "windows",
    "score": "scores",
    "fuse": "fused",
    "train": "models",
    "evaluate": "evaluation",
}
"""What each stage writes, below the run's folder."""

SPLITS = ("fusion", "dev", "heldout")
RUN = "run"
_FILES = 6


def make_inputs(folder: Path) -> None:
    """Writes corpus, models and recipe."""
    small_run.write_inputs(folder, _FILES)
    text = small_run.recipe(
        [f"{folder}/corpus"],
        f"{folder}/llama",
        {"other": f"{folder}/neox"},
        output="run",
        slice_bytes=6000,
        train={
            "epochs": 1,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "threads": 1,
            "save_steps": 2,
            "logging_steps": 1,
        },
        arms={"fused": {"clm_weight": 0.5}, "clm": {"clm_weight": 1.0}},
        evaluate={"threads": 1},
    )
    (folder / "recipe.toml").write_text(text)


def commands(plan: Recipe, stage: str) -> list[list[str]]:
    """Returns the command lines of a stage of a recipe."""
    sources = {"target": plan.target, **plan.sources}
    models = {"untouched": plan.target}
    models |= {arm.name: plan.folder("models", arm.name) for arm in plan.arms}
    made: dict[str, Callable[[], Sequence[Any]]] = {
        "prepare": lambda: [plan.prepare],
        "score": lambda: [plan.score(name) for name in sources],
        "fuse": lambda: [plan.fuse],
        "train": lambda: [plan.train(arm) for arm in plan.arms],
        "evaluate": lambda: [
            plan.evaluate(name, model, "heldout") for name, model in models.items()
        ],
    }
    return [[stage, *flags(config)] for config in made[stage]()]


def flags(config: Any) -> list[str]:
    """Writes settings as a user types them."""
    return list(_words(config))


def _words(config: Any) -> Iterator[str]:
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if value == f.default:
            continue
        if isinstance(value, tuple):
            yield from (f"--{f.name}", *map(str, value))
        else:
            yield f"--{f.name}" if value is True else f"--{f.name}={value}"


def start(work: Callable[[], int], folder: Path) -> int:
    """Forks a process group that does `work` in a folder; returns its id.

    What it prints goes to the file `out` there.
    """
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.setsid()
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        shown = os.open("out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(shown, 1)
        os.dup2(shown, 2)
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(pid: int) -> int:
    """Waits for a process; returns its exit status, or minus the signal it died of."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def do_stage(stage: str) -> int:
    """Gives the commands of a stage, as one process; the folder is the current one."""
    plan = recipe.read("../inputs/recipe.toml")
    return max(cli.main(words) for words in commands(plan, stage))


def do_clean() -> int:
    """Removes what killed runs left."""
    return cli.main(["clean", RUN])


class Local:
    """A recipe, its undisturbed run, and the kills of its stages.

    Attributes:
      undisturbed: seconds of each stage, the shortest seen.
    """

    def __init__(self, folder: Path) -> None:
        """Makes inputs and the undisturbed run in an empty folder."""
        self._folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        _succeed(lambda: make_inputs(folder / "inputs") or 0, folder)
        self._reference = folder / "reference"
        self.undisturbed: dict[str, float] = {}
        for stage in STAGES:
            begun = time.monotonic()
            _succeed(lambda stage=stage: do_stage(stage), self._reference)
            self.undisturbed[stage] = time.monotonic() - begun
        self._contents = rounds.contents(self._reference / RUN)
        assert not rounds.orphans(self._reference / RUN)

    def kill(self, number: int, stage: str, draw: random.Random) -> Round:
        """Kills a stage at a random instant, repeats it, cleans, and compares."""
        begun = time.monotonic()
        folder = self._folder / "round"
        shutil.rmtree(folder, ignore_errors=True)
        run, mine = folder / RUN, folder / RUN / FOLDERS[stage]
        for earlier in STAGES[: STAGES.index(stage)]:
            place = f"{RUN}/{FOLDERS[earlier]}"
            shutil.copytree(self._reference / place, folder / place)
        after = draw.uniform(0, self.undisturbed[stage])
        status, took = _kill_after(lambda: do_stage(stage), folder, after)
        if status == 0:  # on a busy machine the undisturbed run took longer than this
            self.undisturbed[stage] = min(took, self.undisturbed[stage])
        elif status != -signal.SIGKILL:
            raise RuntimeError(_said(folder, f"{stage} ended with {status}"))
        before = rounds.stamps(run)
        ended = wait(start(lambda: do_stage(stage), folder))
        left, now = rounds.orphans(run), rounds.stamps(run)
        _succeed(do_clean, folder)
        done = self._expected(stage)
        return Round(
            round=number,
            seed=number,
            target="process",
            stage=stage,
            killed_after_s=round(after, 3),
            done_before=sum(name.startswith(FOLDERS[stage]) for name in before),
            landed=status != 0,
            same_bytes=ended == 0 and rounds.contents(run) == done,
            untouched=all(
                now.get(name) == before[name] for name in _done(before.keys())
            ),
            strays=len(before.keys() - done.keys()),
            orphans=len(left),
            kept=len(rounds.orphans(mine)),
            seconds=round(time.monotonic() - begun, 1),
        )

    def _expected(self, stage: str) -> dict[str, str]:
        """Returns what lies there when a stage and those before it are done."""
        upto = [FOLDERS[s] for s in STAGES[: STAGES.index(stage) + 1]]
        return {n: d for n, d in self._contents.items() if n.split("/")[0] in upto}


def _kill_after(
    work: Callable[[], int], folder: Path, seconds: float
) -> tuple[int, float]:
    """Kills a process group after some seconds, unless it has ended before.

    Returns:
      Its exit status, or minus the signal it died of; and how long it lived.
    """
    begun = time.monotonic()
    pid = start(work, folder)
    while (lived := time.monotonic() - begun) < seconds:
        time.sleep(min(0.01, seconds - lived))
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), time.monotonic() - begun
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # it has no group of its own yet
        os.kill(pid, signal.SIGKILL)
    return wait(pid), lived


def _done(names: Collection[str]) -> set[str]:
    """Returns the files of units of work that are whole: no command does them twice.

    A unit of prepare is an input file, which gives a part to each split. Lists and
    manifests are written anew by the command that ends a folder.
    """
    return {
        name
        for name in names
        if name.endswith((".parquet", ".safetensors")) or name.startswith("evaluation/")
        if all(other in names for other in _parts_beside(name))
    }


def _parts_beside(name: str) -> list[str]:
    stage, folder, *_ = name.split("/")
    if stage != "windows" or folder not in SPLITS:
        return []
    return [f"windows/{split}/{Path(name).name}" for split in SPLITS]


def _succeed(work: Callable[[], int], folder: Path) -> None:
    if status := wait(start(work, folder)):
        raise RuntimeError(_said(folder, f"it ended with {status}"))


def _said(folder: Path, what: str) -> str:
    said = (folder / "out").read_text().splitlines()[-20:]
    return "\n".join([f"the work in {folder} must end well, but {what}:", *said])
