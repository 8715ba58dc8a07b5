import logging
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from deploy.flink.cluster import JOB_SERVER, Cluster
from tests import tiny

# `auto` is float32 on every CPU here, and in what tests start: figures and bytes are
# those of float32. oneDNN reads this when torch first multiplies.
os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_VNNI"

# Laws are not timed: machines are slow, and a process's first example may compile.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


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


@pytest.fixture(scope="session")
def jar() -> Path:
    """Returns Beam's job server, which `make test-flink` puts together."""
    assert JOB_SERVER.exists(), f"{JOB_SERVER} must be there; run make test-flink"
    return JOB_SERVER


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, jar: Path) -> Iterator[Cluster]:
    """Returns a cluster of two TaskManagers, with a pool and a job server."""
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        made.start()
        made.add_pool()
        made.add_job_server(jar)
        yield made
    finally:
        made.stop()
