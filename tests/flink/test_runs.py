from pathlib import Path

import pytest

from deploy.flink.cluster import BOOT, SHORT_LIVED, Cluster
from tests.flink import road

pytestmark = [pytest.mark.flink, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    road.make_demo(folder)
    return folder


@pytest.fixture(scope="module")
def locally(tmp_path_factory: pytest.TempPathFactory, inputs: Path) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("locally")
    # As a command, as the others are: threads, say, are settled where it starts.
    for words in road.commands(road.read(inputs, folder)).values():
        done = road.call("pipelines.cli", words, folder)
        assert done.returncode == 0, done.stderr
    return road.contents(folder)


def flags(environment: str, cluster: Cluster, jar: Path) -> list[str]:
    """Returns the words that lead a job to the cluster, as docs/running.md has them."""
    common = [
        *("--runner=FlinkRunner", "--flink_version=1.19", "--parallelism=4"),
        f"--flink_master={cluster.master}",
        f"--environment_type={environment}",
    ]
    stays = f"--job_endpoint={cluster.job_server}"
    return {
        "LOOPBACK": [
            *common,
            f"--flink_job_server_jar={jar}",
            *(f"--job_server_jvm_properties={word}" for word in SHORT_LIVED.split()),
        ],
        "EXTERNAL": [*common, stays, f"--environment_config={cluster.pool}"],
        "PROCESS": [*common, stays, f'--environment_config={{"command": "{BOOT}"}}'],
    }[environment]


@pytest.mark.parametrize("environment", ["LOOPBACK", "EXTERNAL", "PROCESS"])
def test_the_tiny_demo_on_flink_leaves_the_bytes_of_a_local_run(
    environment: str,
    cluster: Cluster,
    jar: Path,
    inputs: Path,
    locally: dict[str, str],
    tmp_path: Path,
) -> None:
    for words in road.commands(road.read(inputs, tmp_path)).values():
        given = [*words, *flags(environment, cluster, jar)]
        done = road.call("pipelines.cli", given, tmp_path)
        assert done.returncode == 0, done.stderr
    assert road.contents(tmp_path) == locally
    assert cluster.ask("/overview")["jobs-running"] == 0
    assert not list(tmp_path.rglob("*.parquet.*"))  # nothing temporary is left
