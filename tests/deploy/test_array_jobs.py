import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.score import ScoreConfig
from schemas import plan, settings
from schemas.plan import Slice

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
SIZES = [(1, 1), (1, 7), (4, 10), (16, 1200), (16, 5)]


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """Returns a folder with a fusebeam that prints its words."""
    tool = tmp_path / "bin" / "fusebeam"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    tool.chmod(0o755)
    return tool.parent


@pytest.fixture
def windows(tmp_path: Path) -> Path:
    folder = tmp_path / "windows of a run"
    folder.mkdir()
    return folder


def write_plan(folder: Path, slices: int) -> list[Slice]:
    pieces = [
        Slice(
            index=index,
            file="part-000000.parquet",
            row_group_start=index,
            row_group_stop=index + 1,
            windows=1,
            text_bytes=1,
            digest="",
        )
        for index in range(slices)
    ]
    plan.write(str(folder), pieces)
    return pieces


def call(
    command: list[str], stub: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": f"{stub}:/usr/bin:/bin", **variables},
    )


def slurm(tasks: int, task: int, windows: Path, stub: Path) -> list[str]:
    """Returns the words that a task of Slurm calls fusebeam with."""
    script = str(DEPLOY / "slurm" / "slices.sbatch")
    words = [str(tasks), str(windows), "score", "--model", "a model"]
    done = call(["bash", script, *words], stub, SLURM_ARRAY_TASK_ID=str(task))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def chosen(words: list[str]) -> str:
    return words[words.index("--slices") + 1]


def indexed_job() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "kubernetes" / "score.yaml").read_text())


def container() -> dict[str, Any]:
    (one,) = indexed_job()["spec"]["template"]["spec"]["containers"]
    return one


def kubernetes(tasks: int, task: int, slices: int, stub: Path) -> list[str]:
    """Returns the words that an index of the Job calls fusebeam with."""
    done = call(
        [*container()["command"], *container()["args"]],
        stub,
        TASKS=str(tasks),
        SLICES=str(slices),
        JOB_COMPLETION_INDEX=str(task),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(("tasks", "slices"), SIZES)
@pytest.mark.parametrize("scheduler", ["slurm", "kubernetes"])
def test_tasks_share_all_slices_and_none_twice(
    scheduler: str, tasks: int, slices: int, windows: Path, stub: Path
) -> None:
    pieces = write_plan(windows, slices)
    done: list[Slice] = []
    shares = []
    for task in range(tasks):
        if scheduler == "slurm":
            words = slurm(tasks, task, windows, stub)
        else:
            words = kubernetes(tasks, task, slices, stub)
        if "--slices" in words:
            share = plan.select(pieces, chosen(words))
            done += share
            shares.append(len(share))
    assert done == pieces
    assert max(shares) - min(shares) <= 1


def test_a_task_of_slurm_hands_the_command_on_whole(windows: Path, stub: Path) -> None:
    write_plan(windows, 8)
    assert slurm(4, 3, windows, stub) == [
        *("score", "--model", "a model", "--windows", str(windows)),
        *("--slices", "6-7"),
    ]


def test_a_task_beyond_those_that_share_is_refused(windows: Path, stub: Path) -> None:
    write_plan(windows, 8)
    script = str(DEPLOY / "slurm" / "slices.sbatch")
    done = call(
        ["bash", script, "4", str(windows), "score"], stub, SLURM_ARRAY_TASK_ID="4"
    )
    assert done.returncode == 2
    assert "--array must lie in 0-3" in done.stderr
    assert done.stdout == ""


def test_a_task_without_a_plan_fails(windows: Path, stub: Path) -> None:
    script = str(DEPLOY / "slurm" / "slices.sbatch")
    done = call(
        ["bash", script, "4", str(windows), "score"], stub, SLURM_ARRAY_TASK_ID="0"
    )
    assert done.returncode != 0
    assert "plan.jsonl" in done.stderr
    assert done.stdout == ""


def test_slurm_without_words_shows_the_usage(stub: Path) -> None:
    done = call(["bash", str(DEPLOY / "slurm" / "slices.sbatch")], stub)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: sbatch")


def test_the_command_of_the_kubernetes_job_is_one_of_ours() -> None:
    stage, *flags = container()["args"]
    assert stage == "score"
    config = settings.parse_flags(ScoreConfig, flags, prog="", description="")
    assert config.device == "cuda"  # what is auto is settled on a machine without one


def test_an_index_of_the_kubernetes_job_is_tried_again_alone_and_not_as_root() -> None:
    spec = indexed_job()["spec"]
    given = {one["name"]: one["value"] for one in container()["env"]}
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == int(given["TASKS"])
    assert spec["backoffLimitPerIndex"] > 0
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # what backoffLimitPerIndex asks for
    assert pod["securityContext"]["runAsNonRoot"] is True
    user = pod["securityContext"]["runAsUser"]
    image = (DEPLOY / "dataflow" / "cuda.Dockerfile").read_text()
    assert f"useradd --uid {user} " in image


@pytest.mark.parametrize(
    ("conditions", "ends"),
    [
        ("SuccessCriteriaMet Complete", True),
        ("FailureTarget Failed", True),
        ("", False),
    ],
)
@pytest.mark.parametrize("example", ["score.yaml", "flink.yaml"])
def test_who_waits_for_a_job_hears_of_either_end(
    example: str, conditions: str, ends: bool, tmp_path: Path
) -> None:
    page = DEPLOY.parent.joinpath("docs", "running.md").read_text()
    told = DEPLOY.joinpath("kubernetes", example).read_text()
    (wait,) = re.findall(r"^#   (until .*\n#  .*)$", told, re.MULTILINE)
    wait = wait.replace("\n#  ", "\n  ")
    assert " ".join(wait.split()) in " ".join(page.split())
    tool = tmp_path / "kubectl"
    tool.write_text(f"#!/bin/sh\necho '{conditions}'\n")
    tool.chmod(0o755)
    once = wait.replace("do sleep 10; done", "do exit 3; done")
    assert once != wait
    done = call(["bash", "-c", once], tmp_path)
    assert done.returncode == (0 if ends else 3)
