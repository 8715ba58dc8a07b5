from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.flink.cluster import Cluster
from tests.flink import road


@pytest.fixture(scope="session")
def jar() -> Path:
    """Returns Beam's job server, which `make test-flink` puts together."""
    assert road.JAR.exists(), f"{road.JAR} must be there; run make test-flink"
    return road.JAR


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, jar: Path) -> Iterator[Cluster]:
    """Returns a cluster of two TaskManagers, with a pool and a job server."""
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    made.start()
    try:
        made.add_pool()
        made.add_job_server(jar)
        yield made
    finally:
        made.stop()
