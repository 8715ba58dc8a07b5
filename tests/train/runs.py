"""Trainings for tests: into other folders, broken off, and compared."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from tests.kill.rounds import SPEEDS
from train.config import TrainConfig


class Killed(BaseException):
    """Stands for SIGKILL: no handler of ours catches it."""


def silent(_: str) -> None:
    """Takes the lines of progress."""


def other(config: TrainConfig, name: str, **changes: Any) -> TrainConfig:
    """The same run into another folder."""
    output = str(Path(config.output).parent / name)
    return dataclasses.replace(config, output=output, **changes)


def weights(output: str | Path) -> bytes:
    return Path(output, "model.safetensors").read_bytes()


def curve(output: str | Path) -> list[dict[str, float]]:
    """Reads metrics.jsonl, but for what no two runs have alike."""
    lines = Path(output, "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [{k: v for k, v in line.items() if k not in SPEEDS} for line in found]
