"""A corpus that went down the road once, for the tests that look at a stage of it."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines import fuse, prepare, score
from pipelines.fuse import FuseConfig
from pipelines.prepare import PrepareConfig
from pipelines.score import ScoreConfig
from schemas import files, manifest
from tests import merging
from tests.commands import Commands
from tests.merging import Made
from tests.pipelines.flinks import JOB, OVERVIEW, Flink


@pytest.fixture(scope="session")
def road(
    tmp_path_factory: pytest.TempPathFactory, corpus: list[str], models: dict[str, str]
) -> str:
    """Returns a run's folder: windows, scores of both models, and fused rows."""
    out = str(tmp_path_factory.mktemp("road"))
    prepare.prepare_corpus(prepare_config(out, corpus, models))
    for name in models:
        score.score_windows(score_config(out, models, name))
    fuse.fuse_scores(fuse_config(out, f"{out}/fused"))
    return out


def prepare_config(
    road: str, corpus: list[str], models: dict[str, str]
) -> PrepareConfig:
    return PrepareConfig(
        inputs=tuple(corpus),
        output=f"{road}/windows",
        models=tuple(models.values()),
        max_bytes=300,
        id_field="name",
        domain_field="kind",
        splits="fusion=.8,dev=.2",
        group_windows=8,
        slice_bytes=4000,
    )


def score_config(
    road: str, models: dict[str, str], name: str, **more: object
) -> ScoreConfig:
    given = {
        "windows": f"{road}/windows/fusion",
        "model": models[name],
        "output": f"{road}/scores/{name}",
        "top_k": 6,
        "batch_tokens": 1024,
        "threads": 1,
        **more,
    }
    return ScoreConfig(**given)  # type: ignore[arg-type]


def fuse_config(road: str, output: str, **more: object) -> FuseConfig:
    given = {
        "windows": f"{road}/windows/fusion",
        "target": f"{road}/scores/llama",
        "sources": (f"neox={road}/scores/neox",),
        "output": output,
        "top_k": 6,
        "seq_length": 600,
        **more,
    }
    return FuseConfig(**given)  # type: ignore[arg-type]


def prepare_words(corpus: list[str], out: str, *more: str) -> list[str]:
    words = ["prepare", "--inputs", *corpus, "--output", out, "--max_bytes=300"]
    return [*words, "--splits=fusion=.8,dev=.2", "--group_windows=8", *more]


def score_words(road: str, models: dict[str, str], out: str, *more: str) -> list[str]:
    return [
        "score",
        f"--windows={road}/windows/fusion",
        f"--model={models['llama']}",
        f"--output={out}",
        *("--top_k=6", "--batch_tokens=1024", "--threads=1", "--device=cpu"),
        *more,
    ]


def fuse_words(road: str, out: str, *more: str) -> list[str]:
    return [
        "fuse",
        f"--windows={road}/windows/fusion",
        f"--target={road}/scores/llama",
        f"--sources=neox={road}/scores/neox",
        f"--output={out}",
        "--seq_length=600",
        *more,
    ]


def train_words(road: str, models: dict[str, str], out: str, *more: str) -> list[str]:
    return [
        "train",
        f"--data={road}/fused",
        f"--model={models['llama']}",
        f"--output={out}",
        *("--batch_size=4", "--max_steps=2", "--save_steps=1", "--logging_steps=1"),
        *("--threads=1", "--device=cpu"),
        *more,
    ]


@pytest.fixture
def at_once(tmp_path: Path) -> Commands:
    """Returns what runs commands as processes, several at once if need be."""
    return Commands(tmp_path)


@pytest.fixture(scope="session")
def contents() -> Callable[[str], dict[str, str]]:
    """Returns a function that digests every file of a folder.

    Of a manifest the origins are left out: they tell where inputs lie as seen from the
    folder, which for folders at different places are different paths.
    """

    def one(path: Path) -> str:
        if path.name != manifest.NAME:
            return files.checksum(str(path))
        return files.digest({**files.read_json(str(path)), "origins": None})

    def digest(folder: str) -> dict[str, str]:
        root = Path(folder)
        found = sorted(path for path in root.rglob("*") if path.is_file())
        return {str(path.relative_to(root)): one(path) for path in found}

    return digest


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Returns a base and two models of it, small Llamas in several files."""
    return merging.several(tmp_path_factory.mktemp("merged"))


@pytest.fixture
def spoilt(made: Made, tmp_path: Path) -> Made:
    """Returns models of which m2 may be harmed."""
    copy = shutil.copytree(made["m2"], tmp_path / "m2")
    return {**made, "m2": str(copy)}


@pytest.fixture
def flink() -> Iterator[Callable[..., str]]:
    """Returns a function that starts such a Flink and returns its address."""
    with contextlib.ExitStack() as stack:

        def begin(**more: Any) -> str:
            made = Flink(
                {
                    "overview": OVERVIEW,
                    "jobmanager/config": [],
                    "jobs/overview": {"jobs": [JOB]},
                    "jobs/abc/exceptions": {"root-exception": "no slot\nat X.java"},
                    **more,
                }
            )
            stack.callback(made.close)
            return made.master

        yield begin
