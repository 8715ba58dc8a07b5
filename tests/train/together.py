"""Trainings one after another in the processes that torchrun started.

    torchrun --nproc_per_node=2 -m tests.train.together RUNS.json

The file lists settings of the trainer. A run whose `stop` is a step ends, on every
process, when the checkpoint of that step is whole.
"""

import json
import sys
from pathlib import Path
from typing import Any

from train import trainer
from train.config import TrainConfig
from train.saving import SavingTrainer


class Stopped(BaseException):
    """Stands for a kill that meets all processes at once."""


def main() -> None:
    original = SavingTrainer._save_checkpoint
    for run in json.loads(Path(sys.argv[1]).read_text()):
        stop = run.pop("stop", None)
        targets = {k: tuple(v) for k, v in run.items() if isinstance(v, list)}

        def save(self: Any, *args: Any, at: int | None = stop) -> None:
            original(self, *args)
            if self.state.global_step == at:
                raise Stopped

        SavingTrainer._save_checkpoint = save
        try:
            trainer.train(TrainConfig(**run | targets), lambda _: None)
        except Stopped:
            continue


if __name__ == "__main__":
    main()
