from pathlib import Path
from typing import Any

import pytest
from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner

from pipelines import cli
from tests import merging
from tests.deploy.jobs import FLAGS, HINTS, Job, Translate, count
from tests.pipelines.conftest import contents, road

__all__ = ["contents", "road"]


@pytest.fixture
def translate(monkeypatch: pytest.MonkeyPatch) -> Translate:
    """Returns a function that gives the job of a command."""
    translated: list[Job] = []
    run = DataflowRunner.run_pipeline

    def keep(self: DataflowRunner, *args: Any, **more: Any) -> Any:
        result = run(self, *args, **more)
        translated.append(self.proto_pipeline)
        return result

    monkeypatch.setattr(DataflowRunner, "run_pipeline", keep)

    def of(command: str, *words: str) -> Job:
        translated.clear()
        if command == "count":
            count(*words)
        else:
            assert cli.main([command, *words, *FLAGS]) == 0
        (job,) = translated
        return job

    return of


@pytest.fixture
def words(
    road: str, models: dict[str, str], corpus: list[str], out: str, tmp_path: Path
) -> dict[str, list[str]]:
    """Returns the flags of each stage."""
    merged = {
        "models": [models["llama"]],
        "base": models["llama"],
        "method": "varm",
        "output": out,
        "settings": {"granularity": "layer"},
    }
    source = f"--windows={road}/windows/fusion"
    return {
        "prepare": [
            "--inputs",
            *corpus,
            "--max_bytes=300",
            "--splits=fusion=.8,dev=.2",
            f"--output={out}",
        ],
        "score": [
            source,
            f"--model={models['llama']}",
            f"--output={out}",
            "--worker_hints",
            *(f"{name}={value}" for name, value in HINTS.items()),
        ],
        "fuse": [
            source,
            f"--target={road}/scores/llama",
            f"--sources=neox={road}/scores/neox",
            f"--output={out}",
        ],
        "count": [
            f"{road}/scores/neox",
            f"{road}/scores/llama",
            out,
            f"{road}/windows/fusion",
        ],
        "merge": [merging.recipe(tmp_path, merged)],
    }
