"""A small target, rows for it, and a run of both."""

import json
from pathlib import Path

import pytest

from tests import tiny
from tests.train import shards
from train.config import TrainConfig


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-NeoX with dropout, so that the state of random numbers matters."""
    folder = tiny.neox(tmp_path_factory.mktemp("target"))
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"hidden_dropout": 0.2}))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards.write(tmp_path_factory.mktemp("data") / "fused", vocabulary=400)


@pytest.fixture
def config(target: Path, data: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        data=str(data),
        model=str(target),
        output=str(tmp_path / "out"),
        batch_size=4,
        accumulation=2,
        max_steps=6,
        learning_rate=1e-3,
        save_steps=2,
        logging_steps=1,
        threads=1,
        device="cpu",
    )
