"""A merge on a real Flink: two passes over files that workers share."""

from pathlib import Path

import pytest

from deploy.flink.cluster import BOOT, Cluster
from tests import merging
from tests.flink import road

pytestmark = [pytest.mark.flink, pytest.mark.timeout(1800)]


def test_a_merge_on_flink_leaves_the_bytes_of_a_local_one(
    cluster: Cluster, tmp_path: Path
) -> None:
    made = merging.several(tmp_path / "models")
    given = merging.table(
        made,
        "unused",
        method="varm",
        settings={"granularity": "layer"},
        rules=[{"pattern": "*norm*", "method": "dare_ties", "settings": WEIGHT}],
        shard_bytes=3_000,
    )
    recipe = merging.recipe(tmp_path, given)
    flink = [
        *("--runner=FlinkRunner", "--flink_version=1.19", "--parallelism=4"),
        f"--flink_master={cluster.master}",
        f"--job_endpoint={cluster.job_server}",
        "--environment_type=PROCESS",
        f'--environment_config={{"command": "{BOOT}"}}',
    ]
    for name, flags in (("local", []), ("flink", flink)):
        words = ["merge", recipe, f"--output={tmp_path / name}", *flags]
        done = road.call("pipelines.cli", words, tmp_path)
        assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "flink").glob("model-*.safetensors"))) > 4
    assert road.contents(tmp_path / "flink") == road.contents(tmp_path / "local")
    assert not (tmp_path / "flink" / ".tmp").exists()


WEIGHT = {"weight": 0.5, "density": 0.5}
