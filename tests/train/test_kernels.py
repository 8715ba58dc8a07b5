import os
import subprocess
import sys
from pathlib import Path

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
