import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Returns folders of two tiny models of different make, made once."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "llama": str(tiny.llama(folder / "llama")),
        "neox": str(tiny.neox(folder / "neox")),
    }


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Returns the files of a small corpus, made once."""
    return tiny.corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(autouse=True)
def logs_stay_as_they_are() -> Iterator[None]:
    """Undoes what a job did to the levels of loggers."""
    log = logging.getLogger("apache_beam")
    level = log.level
    yield
    log.setLevel(level)


@pytest.fixture
def out(tmp_path: Path) -> str:
    """Returns a folder to write to, as a string."""
    return str(tmp_path / "out")
