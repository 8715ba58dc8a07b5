"""The script of Slurm that trains, with stubs in the place of Slurm's programs."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "slurm" / "train.sbatch"


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """A folder of programs that print what they are called with."""
    for name, line in (
        ("srun", 'printf "%s\\n" "$@"'),
        ("scontrol", 'printf "gpu-3\\ngpu-4\\n"'),
    ):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
    return tmp_path


def call(stub: Path, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), *flags],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": f"{stub}{os.pathsep}/usr/bin:/bin", **variables},
    )


def test_every_machine_gets_one_launcher_that_meets_at_the_first(stub: Path) -> None:
    done = call(
        stub,
        *("--data", "a folder"),
        SLURM_JOB_NODELIST="gpu-[3-4]",
        SLURM_JOB_NUM_NODES="2",
        SLURM_GPUS_ON_NODE="8",
        SLURM_JOB_ID="17",
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert words[:2] == ["--kill-on-bad-exit=1", "torchrun"]
    assert {"--nnodes=2", "--nproc_per_node=8", "--rdzv_id=17"} <= set(words)
    assert "--rdzv_endpoint=gpu-3:29500" in words
    assert words[-4:] == ["-m", "train", "--data", "a folder"]


def test_no_flags_are_refused_with_the_usage(stub: Path) -> None:
    done = call(stub)
    assert done.returncode == 2
    assert "usage: sbatch" in done.stderr


def test_a_job_without_gpus_is_refused(stub: Path) -> None:
    done = call(
        stub,
        "--data=x",
        SLURM_JOB_NODELIST="gpu-[3-4]",
        SLURM_JOB_NUM_NODES="2",
        SLURM_JOB_ID="17",
    )
    assert done.returncode != 0
    assert "give --gpus-per-node" in done.stderr
