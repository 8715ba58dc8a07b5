"""The commands and flags of docs/running.md are those that the program takes."""

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest

from pipelines import cli, launch, merge, search
from pipelines.estimate import EstimateConfig
from pipelines.fuse import FuseConfig
from pipelines.map import MapConfig
from pipelines.merging import MergeConfig
from pipelines.prepare import PrepareConfig
from pipelines.score import ScoreConfig
from pipelines.searching import SearchConfig
from schemas import settings
from train.config import TrainConfig
from train.evaluate import EvaluateConfig

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "running.md").read_text()
JOBS = {
    "prepare": PrepareConfig,
    "score": ScoreConfig,
    "fuse": FuseConfig,
    "map": MapConfig,
}
OTHERS = {"plan": EstimateConfig, "train": TrainConfig, "evaluate": EvaluateConfig}
FOREIGN = {
    *("--array", "--gpus", "--mem", "--time", "--partition"),  # sbatch
    *("--for", "--timeout", "--from-file"),  # kubectl
    *("--staging-location", "--additional-experiments", "--max-workers"),  # gcloud
    *("--project", "--region", "--build-arg"),
    *("--service_port", "--container_executable"),  # Beam's worker pool
    *("--constraint", "--no-cache-dir"),  # pip
    *("--nproc_per_node", "--nnodes"),  # torchrun
    *("--rdzv_id", "--rdzv_backend", "--rdzv_endpoint"),
    "--num_processes",  # accelerate
    *("--nodes", "--gpus-per-node", "--kill-on-bad-exit"),  # sbatch, srun
}
"""Flags of other programs."""

JAVAS = {"--number_of_execution_retries", "--execution_retry_delay"}
"""Flags of Flink's runner, which its Java side alone knows."""

# A flag of a command's own parser, and no field of settings.
OWN = {"--help", "--output", "--dry_run", "--older_than", "--only"}


def blocks() -> list[str]:
    """Returns the page's blocks of no language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return [block for language, block in found if not language]


def commands() -> list[list[str]]:
    """Returns the words of every whole command of ours in the page's blocks."""
    lines = [
        line.strip()
        for block in blocks()
        for line in block.replace("\\\n", " ").splitlines()
    ]
    whole = [ln for ln in lines if ln.startswith("fusebeam ") and "..." not in ln]
    return [shlex.split(line, comments=True) for line in whole]


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words)[:60])
def test_the_commands_of_the_page_are_taken(words: list[str]) -> None:
    name, flags = words[1], words[2:]
    assert name in cli.COMMANDS
    if name in JOBS:
        cls: Any = JOBS[name]
        launch.parse(cls, flags, prog="", description="")
    elif name == "merge":
        launch.refuse_unknown(merge.flags_parser().parse_known_args(flags)[1], [])
    elif name == "search":
        assert not search.flags_parser().parse_known_args(flags)[1]
    elif name in OTHERS:
        cls = OTHERS[name]
        settings.parse_flags(cls, flags, prog="", description="")


def test_the_page_shows_every_stage() -> None:
    shown = {words[1] for words in commands()}
    assert shown >= {"prepare", "score", "fuse", "train", "run", "plan", "verify"}


def test_the_flags_that_the_page_names_are_there() -> None:
    ours = {
        f"--{field.name}"
        for cls in (*JOBS.values(), *OTHERS.values(), MergeConfig, SearchConfig)
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
    }
    ours |= {"--no-kernels"}  # the one that is on unless it is said
    beams = set(launch._beam_parser()._option_string_actions)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", PAGE))
    slips = {"--tpo_k"}  # the page shows one, and what is said of it
    assert named - ours - beams - FOREIGN - JAVAS - OWN == slips


def test_flags_that_java_alone_knows_stand_behind_two_hyphens() -> None:
    behind = re.findall(r"`-- (--[^`]*)`", PAGE)
    named = re.findall(rf"{'|'.join(JAVAS)}", PAGE)
    assert set(named) == JAVAS
    assert sorted(named) == sorted(
        word.partition("=")[0] for flags in behind for word in flags.split()
    )
    for flags in behind:
        words = ["--windows=w", "--model=m", "--output=o", "--", *flags.split()]
        _, runner = launch.parse(ScoreConfig, words, prog="", description="")
        assert runner == flags.split()
        with pytest.raises(SystemExit, match="Java side goes behind --"):
            launch.parse(
                ScoreConfig, [w for w in words if w != "--"], prog="", description=""
            )


def test_the_versions_that_the_page_names_are_those_of_the_project() -> None:
    assert f"of Beam ({beam.__version__})" in PAGE
    pinned = (ROOT / "tests" / "buckets" / "requirements.txt").read_text()
    clients = [line for line in pinned.splitlines() if not line.startswith("#")]
    assert f"RUN pip install --no-cache-dir {' '.join(clients)}\n" in PAGE
    images = (ROOT / "deploy" / "dataflow" / "cuda.Dockerfile").read_text()
    assert "FROM python:3.11-" in images
    assert "the images have Python 3.11" in PAGE


def test_the_places_that_the_page_leads_to_are_there() -> None:
    headings = re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    anchors = {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in headings
    }
    linked = set(re.findall(r"\]\(#([^)]+)\)", PAGE))
    assert linked <= anchors
    assert {"flink", "dataflow", "buckets", "a-laptop"} <= linked


def test_what_the_page_says_is_run_is_there() -> None:
    for path in re.findall(r"\bdeploy/[\w./]*\w", PAGE):
        assert (ROOT / path).exists() or path.endswith("STAGE.json"), path
