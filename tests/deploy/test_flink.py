import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.flink import boot, cluster
from pipelines import launch
from pipelines.score import ScoreConfig
from tests.flink import road

KUBERNETES = Path(__file__).parent.parent.parent / "deploy" / "kubernetes"
POM = cluster.HERE / "pom.xml"
SPACE = {"m": "http://maven.apache.org/POM/4.0.0"}


def parts() -> dict[tuple[str, str], dict[str, Any]]:
    """Returns the objects of the Kubernetes example, by kind and name."""
    found = yaml.safe_load_all((KUBERNETES / "flink.yaml").read_text())
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


def containers(name: str, kind: str = "Deployment") -> dict[str, dict[str, Any]]:
    pod = parts()[kind, name]["spec"]["template"]["spec"]
    return {one["name"]: one for one in pod["containers"]}


def properties(name: str, container: str) -> dict[str, Any]:
    (one,) = containers(name)[container]["env"]
    assert one["name"] == "FLINK_PROPERTIES"
    return yaml.safe_load(one["value"])


def flags(words: list[str]) -> dict[str, str]:
    pairs = [word.removeprefix("--").partition("=") for word in words if "=" in word]
    return {name: value for name, _, value in pairs}


def job() -> list[str]:
    return containers("fusebeam-score", "Job")["fusebeam"]["args"]


def ports(service: str) -> set[int]:
    return {one["port"] for one in parts()["Service", service]["spec"]["ports"]}


@pytest.mark.parametrize("service", ["flink-jobmanager", "flink-jobserver"])
def test_a_service_leads_to_the_pods_of_its_deployment(service: str) -> None:
    made = parts()
    wanted = made["Service", service]["spec"]["selector"]
    spec = made["Deployment", service]["spec"]
    assert spec["selector"]["matchLabels"] == wanted
    assert spec["template"]["metadata"]["labels"] == wanted


def test_the_command_of_the_kubernetes_example_is_one_of_ours() -> None:
    stage, *words = job()
    assert stage == "score"
    config, runner = launch.parse(ScoreConfig, words, prog="", description="")
    assert config.device == "cuda"  # what is auto is settled on a machine without one
    assert {word.partition("=")[0] for word in runner} >= {"--runner", "--job_endpoint"}


def test_every_address_of_the_kubernetes_example_is_somebodys() -> None:
    given = flags(job())
    server = flags(containers("flink-jobserver")["jobserver"]["args"])
    pool = flags(containers("flink-taskmanager")["workers"]["command"])
    named = {
        given["flink_master"],
        given["job_endpoint"],
        given["artifact_endpoint"],
        server["flink-master"].removeprefix("http://"),
    }
    for address in named:
        service, _, port = address.partition(":")
        assert int(port) in ports(service)
    assert given["environment_config"] == f"localhost:{pool['service_port']}"
    assert int(server["job-port"]) in ports("flink-jobserver")
    assert int(server["artifact-port"]) in ports("flink-jobserver")
    for name, container in [
        ("flink-jobmanager", "jobmanager"),
        ("flink-taskmanager", "taskmanager"),
    ]:
        address = properties(name, container)["jobmanager.rpc.address"]
        assert address == "flink-jobmanager"


def test_there_are_as_many_slots_as_the_job_asks_for() -> None:
    each = properties("flink-taskmanager", "taskmanager")
    replicas = parts()["Deployment", "flink-taskmanager"]["spec"]["replicas"]
    slots = replicas * each["taskmanager.numberOfTaskSlots"]
    assert slots == int(flags(job())["parallelism"])


def test_a_lost_worker_does_not_end_the_job() -> None:
    given = properties("flink-jobmanager", "jobmanager")
    assert given["restart-strategy.type"] == "fixed-delay"
    assert given["restart-strategy.fixed-delay.attempts"] > 1


def test_the_pool_of_the_kubernetes_example_starts_the_mounted_boot_script() -> None:
    pod = parts()["Deployment", "flink-taskmanager"]["spec"]["template"]["spec"]
    pool = containers("flink-taskmanager")["workers"]
    (mount,) = pool["volumeMounts"]
    (volume,) = pod["volumes"]
    assert mount["name"] == volume["name"]
    assert volume["configMap"]["defaultMode"] & 0o111 == 0o111
    started = flags(pool["command"])["container_executable"]
    assert started == f"{mount['mountPath']}/{cluster.BOOT.name}"


def test_all_versions_of_flink_are_one() -> None:
    line = ".".join(cluster.VERSION.split(".")[:2])
    assert flags(job())["flink_version"] == line
    images = [
        one["image"]
        for name in ("flink-jobmanager", "flink-taskmanager", "flink-jobserver")
        for one in containers(name).values()
        if "REPOSITORY" not in one["image"]
    ]
    flinks = [image for image in images if image.startswith("flink:")]
    assert len(flinks) == 2
    assert all(image.startswith(f"flink:{cluster.VERSION}-") for image in flinks)
    (server,) = set(images) - set(flinks)
    assert server.startswith(f"apache/beam_flink{line}_job_server:")
    pom = ET.parse(POM).getroot()
    runner = [one.text for one in pom.iterfind("m:dependencies/*/m:artifactId", SPACE)]
    assert f"beam-runners-flink-{line}" in runner


def test_the_job_server_of_the_pom_is_the_one_that_the_tests_take() -> None:
    pom = ET.parse(POM).getroot()
    name = pom.findtext("m:artifactId", namespaces=SPACE)
    version = pom.findtext("m:version", namespaces=SPACE)
    folder = pom.findtext("m:build/m:directory", namespaces=SPACE)
    assert folder is not None
    there = Path(folder.replace("${project.basedir}", str(POM.parent))).resolve()
    assert there / f"{name}-{version}.jar" == road.JAR


def test_the_boot_script_can_be_started_by_its_own_name() -> None:
    assert cluster.BOOT.stat().st_mode & 0o111 == 0o111
    assert cluster.BOOT.read_text().startswith("#!/usr/bin/env -S python3 -P\n")


def test_the_boot_script_refuses_what_it_would_have_to_install() -> None:
    boot.refuse_artifacts([boot.ALWAYS_STAGED])
    with pytest.raises(SystemExit, match=r"got workflow\.tar\.gz; install it on"):
        boot.refuse_artifacts([boot.ALWAYS_STAGED, "workflow.tar.gz"])


def test_a_cluster_needs_java_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FileNotFoundError, match=r"Java 17 must be on PATH"):
        cluster.find_java()


def test_a_cluster_needs_flink_and_says_how_to_lay_it_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cluster, "find_java", lambda: "java")
    missing = cluster.Cluster(tmp_path / "folder", home=tmp_path / "flink")
    with pytest.raises(FileNotFoundError, match=re.escape("cluster install")):
        missing.start()
