"""A plugin of pytest: kernels run in Triton's interpreter, and must have been run."""

import pytest
import triton  # noqa: F401 `gradient` looks whether it is loaded

launched = 0


def pytest_collection_finish() -> None:
    def counting(*given: object) -> None:
        global launched
        launched += 1
        run(*given)  # type: ignore[arg-type]

    # Not before shapes are checked: pytest's plugin for that must see the import.
    from train import kernels

    run, kernels._run = kernels._run, counting  # type: ignore[assignment]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not launched:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
