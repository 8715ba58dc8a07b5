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


def small(place: Path, name: str, model: str = "neox", **changes: Any) -> TrainConfig:
    """A run of four steps on the data in a folder, into a folder beside them."""
    settings = {
        "data": str(place / "fused"),
        "model": str(place / model),
        "output": str(place / name),
        "batch_size": 8,
        "accumulation": 2,
        "max_steps": 4,
        "save_steps": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "threads": 1,
        "device": "cpu",
    }
    return TrainConfig(**settings | changes)


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
