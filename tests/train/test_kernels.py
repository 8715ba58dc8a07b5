import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from train import gradient

ROOT = Path(__file__).parents[2]


def pytest_of(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs tests in a process that interprets Triton's kernels."""
    options = ["-p", "tests.train.interpreted", "-p", "no:cacheprovider", "-q"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )


def test_the_kernels_pass_the_tests_of_the_loss_in_tritons_interpreter() -> None:
    ended = pytest_of("tests/train/test_loss.py", "-k", "small")
    assert ended.returncode == 0, ended.stdout
    assert "9 passed" in ended.stdout


@pytest.mark.parametrize("interprets", [None, False, True])
def test_on_a_cpu_kernels_are_used_where_triton_says_that_it_interprets(
    interprets: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton = types.ModuleType("triton")
    if interprets is not None:  # older versions have no knobs
        runtime = types.SimpleNamespace(interpret=interprets)
        monkeypatch.setattr(
            triton, "knobs", types.SimpleNamespace(runtime=runtime), raising=False
        )
    monkeypatch.setitem(sys.modules, "triton", triton)
    assert gradient.has_kernels(torch.device("cpu")) == bool(interprets)
