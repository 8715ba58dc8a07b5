"""A plugin of pytest: kernels run in Triton's interpreter, and must have been run."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

launched = 0


def run_interpreted(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs tests in a process that interprets Triton's kernels."""
    options = ["-p", "tests.interpreted", "-p", "no:cacheprovider", "-q"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )


def pytest_collection_finish() -> None:
    # Where kernels can run is told by whether Triton is loaded, and interprets.
    from triton.runtime.interpreter import InterpretedFunction

    run = InterpretedFunction.run

    def counting(*given: Any, **more: Any) -> Any:
        global launched
        launched += 1
        return run(*given, **more)

    InterpretedFunction.run = counting


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not launched:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
