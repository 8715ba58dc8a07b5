"""Trainings one after another in the processes that torchrun started.

    torchrun --nproc_per_node=2 -m tests.train.together RUNS.json

The file lists settings of the trainer, and beside them what else is done to a run:

    stop         step whose checkpoint ends the run, on every process, when it is whole
    least_bytes  size from which activations are kept by the host; how many bytes of
                 them there were is written to OUTPUT.moved-PROCESS
    fault        process, module, name, after: on that process that function raises an
                 OSError, but for its first calls; the error that each process ends with
                 is written to OUTPUT.ends-PROCESS
"""

import contextlib
import functools
import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor

from train import offload, trainer
from train.config import TrainConfig
from train.saving import SavingTrainer


class Stopped(BaseException):
    """Stands for a kill that meets all processes at once."""


@contextlib.contextmanager
def stopped(step: int | None) -> Iterator[None]:
    """Ends the training in its block when the checkpoint of a step is whole."""

    def save(self: Any, *args: Any) -> None:
        original(self, *args)
        if self.state.global_step == step:
            raise Stopped

    original = SavingTrainer._save_checkpoint
    with (
        mock.patch.object(SavingTrainer, "_save_checkpoint", save),
        contextlib.suppress(Stopped),
    ):
        yield


@contextlib.contextmanager
def failing(fault: dict[str, Any] | None, output: str) -> Iterator[None]:
    """Lets a function fail in its block, and notes the error that comes of it."""
    process = int(os.environ["RANK"])
    if fault is None:
        yield
        return

    def fail(*args: Any, **more: Any) -> Any:
        calls.append(None)
        if process == fault["process"] and len(calls) > fault["after"]:
            raise OSError("the disk is gone")
        return original(*args, **more)

    calls: list[None] = []
    *path, name = fault["name"].split(".")
    owner = functools.reduce(getattr, path, importlib.import_module(fault["module"]))
    original, ends = getattr(owner, name), "no error"
    try:
        with mock.patch.object(owner, name, fail):
            yield
    except Exception as error:
        ends = f"{type(error).__name__}: {error}"
    Path(f"{output}.ends-{process}").write_text(ends)


@contextlib.contextmanager
def moving(least_bytes: int | None, output: str) -> Iterator[None]:
    """Has activations of a size moved in its block, and counts their bytes."""
    if least_bytes is None:
        yield
        return

    def on_host(value: Tensor) -> Tensor:
        moved.append(value.nbytes)
        return original(value)

    original, moved = offload._on_host, list[int]()
    kept = functools.partial(offload.activations, least_bytes=least_bytes)
    with (
        mock.patch.object(offload, "_on_host", on_host),
        mock.patch.object(offload, "activations", kept),
    ):
        yield
    Path(f"{output}.moved-{os.environ['RANK']}").write_text(str(sum(moved)))


def main() -> None:
    for run in json.loads(Path(sys.argv[1]).read_text()):
        stop, fault = run.pop("stop", None), run.pop("fault", None)
        least_bytes = run.pop("least_bytes", None)
        lists = {k: tuple(v) for k, v in run.items() if isinstance(v, list)}
        config = TrainConfig(**run | lists)
        with (
            moving(least_bytes, config.output),
            stopped(stop),
            failing(fault, config.output),
        ):
            trainer.train(config, lambda _: None)


if __name__ == "__main__":
    main()
