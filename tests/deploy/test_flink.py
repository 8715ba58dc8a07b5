import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from apache_beam.portability.api import (
    beam_fn_api_pb2,
    beam_fn_api_pb2_grpc,
    endpoints_pb2,
)

from deploy.flink import boot, cluster, layout, pool, processes
from deploy.flink.cluster import Cluster
from pipelines import launch
from pipelines.score import ScoreConfig

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


def waiting() -> dict[str, Any]:
    """Returns the container that the command of the Job is begun after."""
    (one,) = parts()["Job", "fusebeam-score"]["spec"]["template"]["spec"][
        "initContainers"
    ]
    return one


def test_the_job_begins_once_there_are_its_slots_and_its_job_server(
    tmp_path: Path,
) -> None:
    (slots,) = waiting()["env"]
    assert slots == {"name": "SLOTS", "value": flags(job())["parallelism"]}
    python, option, program = waiting()["command"]
    assert (python, option) == ("python", "-c")
    assert f"http://{flags(job())['flink_master']}/overview" in program
    host, _, port = flags(job())["job_endpoint"].partition(":")
    assert f'("{host}", {port})' in program

    there = {"slots-total": 3}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(there).encode())
            there["slots-total"] += 1

        def log_message(self, *_: object) -> None:
            """Stays silent."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        at = f"127.0.0.1:{server.server_port}"
        mended = program.replace(flags(job())["flink_master"], at)
        mended = mended.replace(f'("{host}", {port})', f"{server.server_address!r}")
        done = subprocess.run(
            [sys.executable, "-c", mended.replace("sleep(10)", "sleep(0.1)")],
            env={"SLOTS": "4"},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        server.shutdown()
    assert done.stdout == "3 of 4 slots are there\n"


def test_a_lost_worker_does_not_end_the_job() -> None:
    given = properties("flink-jobmanager", "jobmanager")
    assert given["restart-strategy.type"] == "fixed-delay"
    assert given["restart-strategy.fixed-delay.attempts"] > 1


def test_the_pool_of_the_kubernetes_example_is_mounted_with_its_boot_script() -> None:
    pod = parts()["Deployment", "flink-taskmanager"]["spec"]["template"]["spec"]
    workers = containers("flink-taskmanager")["workers"]
    (mount,) = workers["volumeMounts"]
    (volume,) = pod["volumes"]
    assert mount["name"] == volume["name"]
    assert workers["command"][1] == f"{mount['mountPath']}/{cluster.POOL.name}"
    made = volume["configMap"]["name"]
    command = (
        f"kubectl create configmap {made} \\\n    --from-file=deploy/flink/pool.py"
        " --from-file=deploy/flink/boot.py\n"
    )
    assert command in (cluster.ROOT / "docs" / "running.md").read_text()


def test_all_versions_of_flink_are_one() -> None:
    line = ".".join(layout.VERSION.split(".")[:2])
    assert flags(job())["flink_version"] == line
    images = [
        one["image"]
        for name in ("flink-jobmanager", "flink-taskmanager", "flink-jobserver")
        for one in containers(name).values()
        if "REPOSITORY" not in one["image"]
    ]
    flinks = [image for image in images if image.startswith("flink:")]
    assert len(flinks) == 2
    assert all(image.startswith(f"flink:{layout.VERSION}-") for image in flinks)
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
    assert there / f"{name}-{version}.jar" == cluster.JOB_SERVER


@pytest.mark.parametrize("program", [cluster.BOOT, cluster.POOL])
def test_a_program_can_be_started_by_its_own_name(program: Path) -> None:
    assert program.stat().st_mode & 0o111 == 0o111
    assert program.read_text().startswith("#!/usr/bin/env -S python3 -P\n")


class Workers:
    """Programs that a pool starts, each of which notes its number and its runner."""

    def __init__(self, folder: Path) -> None:
        self.boot = folder / "boot.py"
        self.boot.write_text(
            "import os, sys, time\n"
            f"open(f'{folder}/{{os.getpid()}}.pid', 'w').write(sys.argv[2])\n"
            "time.sleep(600)\n"
        )
        self._folder = folder

    def alive(self) -> list[str]:
        """Returns the provision endpoints of the workers that live."""
        found = [p for p in self._folder.glob("*.pid") if p.read_text()]
        return sorted(
            path.read_text().partition("=")[2]
            for path in found
            if Path(f"/proc/{path.stem}/cmdline").exists()
        )


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_pool_ends_a_worker_that_nobody_listens_to_and_no_other_of_its_name(
    tmp_path: Path,
) -> None:
    workers = Workers(tmp_path)
    made = pool.Pool(workers.boot, grace_s=0.5)
    server = pool.serve(made, port := cluster.free_port())
    runners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    controls = [f"127.0.0.1:{runner.getsockname()[1]}" for runner in runners]
    try:
        with grpc.insecure_channel(f"localhost:{port}") as channel:
            stub = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel)
            for control in controls:
                at = endpoints_pb2.ApiServiceDescriptor(url=control)
                told = stub.StartWorker(
                    beam_fn_api_pb2.StartWorkerRequest(
                        worker_id="1-1", control_endpoint=at, provision_endpoint=at
                    )
                )
                assert not told.error
            until(lambda: workers.alive() == sorted(controls))
            stub.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id="1-1"))
            time.sleep(1.5)
            assert workers.alive() == sorted(controls)
            runners[0].close()
            until(lambda: workers.alive() == [controls[1]])
    finally:
        made.end()
        server.stop(None)
        for runner in runners:
            runner.close()
    until(lambda: not workers.alive())


def test_a_pool_needs_a_port_of_its_own_and_ends_when_told(tmp_path: Path) -> None:
    port = cluster.free_port()
    words = [sys.executable, str(cluster.POOL), f"--service_port={port}"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert f"localhost:{port}" in first.stdout.readline()
        second = subprocess.run(words, capture_output=True, text=True, check=False)
        assert second.returncode == 1
        assert f"error: --service_port={port} must be free" in second.stderr
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 0


def test_the_boot_script_refuses_what_it_would_have_to_install() -> None:
    boot.refuse_artifacts([boot.ALWAYS_STAGED])
    with pytest.raises(SystemExit, match=r"got workflow\.tar\.gz; install it on"):
        boot.refuse_artifacts([boot.ALWAYS_STAGED, "workflow.tar.gz"])


def test_a_cluster_needs_java_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FileNotFoundError, match=r"Java 17 must be on PATH"):
        layout.find_java()


def test_a_cluster_needs_flink_and_says_how_to_lay_it_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(layout, "find_java", lambda: "java")
    missing = Cluster(tmp_path / "folder", home=tmp_path / "flink")
    with pytest.raises(FileNotFoundError, match=re.escape("cluster install")):
        missing.start()


def laid_out(folder: Path, jobmanager: str) -> Path:
    """Lays out a stand-in for Flink; its TaskManagers do nothing."""
    (folder / "bin").mkdir(parents=True)
    (folder / "conf").mkdir()
    (folder / "conf" / "config.yaml").write_text("env:\n  java:\n    all: -Dx=1\n")
    (folder / "bin" / "jobmanager.sh").write_text(jobmanager)
    (folder / "bin" / "taskmanager.sh").write_text("exec sleep 600")
    return folder


def test_a_cluster_that_cannot_start_says_so_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(layout, "find_java", lambda: "java")
    failing = Cluster(tmp_path / "folder", home=laid_out(tmp_path / "flink", "exit 7"))
    with pytest.raises(RuntimeError, match=r"a process ended with 7; see .*/log$"):
        failing.start()
    assert failing.processes() == []


def test_a_process_that_a_signal_ended_is_no_failure_of_what_comes_next(
    tmp_path: Path,
) -> None:
    made, words = Cluster(tmp_path), ("kill -TERM $$", "exit 143", "exit 137", "exit 0")
    for number, word in enumerate(words):
        log = tmp_path / str(number)
        child = processes.start(["sh", "-c", word], str(tmp_path), "pool", {}, log)
        child.wait()
        made._children.append(child)
    looks = iter([False, False, True])
    made._until(lambda: next(looks), "the next must come")


def test_a_process_is_seen_from_its_first_moment_on(tmp_path: Path) -> None:
    for number in range(40):
        mark, words = f"{tmp_path}/{number}", ["sh", "-c", "exec sleep 600"]
        child = processes.start(words, mark, "pool", {}, tmp_path / "out")
        try:
            assert [one.pid for one in processes.marked(mark)] == [child.pid]
        finally:
            child.kill()
            child.wait()


@pytest.mark.parametrize("words", [["env", "-i", "sleep", "600"], ["true"]])
def test_what_has_no_environment_is_not_waited_for(
    words: list[str], tmp_path: Path
) -> None:
    child = processes.start(words, f"{tmp_path}", "pool", {}, tmp_path / "out")
    try:
        until(lambda: not processes.marked(f"{tmp_path}"))
    finally:
        child.kill()
        child.wait()


def test_a_program_that_has_put_its_environment_away_keeps_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "PERIOD_S", 0.05)
    real = Path.read_bytes

    def read(path: Path) -> bytes:
        return b"" if path.name == "environ" else real(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    assert processes._environment(os.getpid()) == b""


COMMANDS = [
    (["start"], "Java 17 must be on PATH or in JAVA_HOME"),
    (["taskmanager"], "none was started there; run python -m deploy.flink.cluster"),
    (["pool"], "none was started there; run python -m deploy.flink.cluster"),
    (["jobserver"], "none was started there; run python -m deploy.flink.cluster"),
]


@pytest.mark.parametrize(("words", "told"), COMMANDS)
def test_what_a_cluster_lacks_is_told_in_one_line(
    words: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert cluster.main([*words, str(tmp_path / "folder")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert told in line


def test_a_job_server_that_is_not_there_is_told_with_the_cure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "jobmanager.address").write_text("127.0.0.1:1\n")
    assert cluster.main(["jobserver", str(tmp_path), f"{tmp_path}/none.jar"]) == 1
    told = capsys.readouterr().err
    assert f"must be in {tmp_path}/none.jar, but is not; run make flink" in told


def test_stop_says_what_it_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["stop", str(tmp_path)]
    child = processes.start(["sleep", "600"], words[1], "pool", {}, tmp_path / "out")
    threading.Thread(target=child.wait, daemon=True).start()  # else it stays a zombie
    assert cluster.main(words) == 0
    assert cluster.main(words) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}: 1 processes were ended",
        f"{tmp_path}: nothing runs here",
    ]


def test_stopping_a_cluster_ends_what_it_started_and_nothing_else(
    tmp_path: Path,
) -> None:
    mine, others = tmp_path / "mine", tmp_path / "others"
    sleep = ["sh", "-c", "sleep 600 & wait"]
    children = []
    try:
        for folder in (mine, others):
            folder.mkdir()
            log = folder / "out"
            children.append(processes.start(sleep, str(folder), "pool", {}, log))
        while len(found := Cluster(mine).processes()) < 2:
            assert children[0].poll() is None
        assert [one.leads for one in found] == [True, False]
        assert Cluster(mine).workers() == [found[1].pid]
        Cluster(mine).stop()
        children[0].wait()
        assert Cluster(mine).processes() == []
        assert children[1].poll() is None
    finally:
        for child, folder in zip(children, (mine, others), strict=False):
            processes.end(str(folder))
            child.wait()
