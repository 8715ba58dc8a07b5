"""The GPU scripts run from a bare checkout; here, on the CPU, in their tiny sizes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ABSENT = ("accelerate", "apache_beam", "jaxtyping", "numba", "pyarrow", "zstandard")

RUN = f"""
import runpy, sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {ABSENT}:
            return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def printed(script: str, folder: Path, *flags: str) -> Any:
    """Runs a script elsewhere, with torch, transformers and numpy and little else."""
    path = str(HERE / script)
    words = [sys.executable, "-c", RUN, path, "--size=tiny", *flags]
    ended = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.timeout(300)
def test_steps_are_measured_without_an_installation(tmp_path: Path) -> None:
    found = printed("gpu_train.py", tmp_path, "--rounds=1")
    assert found["matmul_tflops"] > 0
    for part in (found["kernel"], found["steps"]["tiny"]):
        assert part["time_of_plain"] == pytest.approx(
            part["seconds"]["fused"] / part["seconds"]["plain"]
        )
