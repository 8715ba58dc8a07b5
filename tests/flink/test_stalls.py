"""Jobs on a real Flink that cannot make progress: each ends, and says why."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.flink.cluster import BOOT, Cluster, free_port
from pipelines import cluster
from schemas import files
from tests import tiny
from tests.flink import road
from transforms import ledger

pytestmark = [pytest.mark.flink, pytest.mark.timeout(3600)]

STALL_S = 120.0
"""Longer than a job takes to reach a cluster that does much else."""

UNITS = 6


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Returns a cluster of this module's own, as its processes are harmed."""
    made = Cluster(tmp_path_factory.mktemp("harmed"))
    made.start()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Returns the command of a small job: `prepare`, which needs no model."""
    tiny.corpus(tmp_path / "corpus", UNITS)
    return [
        *("prepare", "--inputs", str(tmp_path / "corpus"), "--max_bytes=300"),
        f"--output={tmp_path / 'windows'}",
        f"--stall_timeout={STALL_S}",
        *("--runner=FlinkRunner", "--flink_version=1.19"),
    ]


def start(words: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", *words],
        cwd=road.ROOT,
        env={**os.environ, "PYTHONPATH": str(road.ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def error_of(process: "subprocess.Popen[str]") -> str:
    """Awaits the end of a command, which must be an error in one line."""
    told = process.communicate(timeout=1800)[1]
    assert process.returncode == 1, told
    lines = [line for line in told.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, told
    return lines[0]


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 900
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def pool(own: Cluster, folder: Path, python: str) -> tuple[str, Path]:
    """Starts a pool whose workers run by a `python` of ours; returns where, and log."""
    (folder / "bin").mkdir()
    (folder / "bin" / "python").write_text(python)
    (folder / "bin" / "python").chmod(0o755)
    port, log = free_port(), folder / "pool.log"
    module = "apache_beam.runners.worker.worker_pool_main"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", module, f"--service_port={port}"],
            env={**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}"},
            cwd=folder,
            stderr=file,
        )
    until(lambda: b"Started worker pool" in log.read_bytes())
    own._children.append(process)  # ended with the cluster, by its own handle
    return f"localhost:{port}", log


@pytest.fixture
def ends(own: Cluster) -> Iterator[None]:
    """Ends what a test has started beside the cluster, and its jobs."""
    before = list(own._children)
    yield
    for child in own._children:
        if child not in before:
            child.kill()
            child.wait()
    own._children[:] = before
    # A job that a failed test has left would hold the slots of those after it.
    for job in cluster.unfinished_jobs(f"http://{own.master}"):
        cluster.end_flink_job(f"http://{own.master}", job["name"])
    until(lambda: not cluster.unfinished_jobs(f"http://{own.master}"))


def jobs(own: Cluster, state: str) -> list[str]:
    found = own.ask("/jobs/overview")["jobs"]
    return [job["jid"] for job in found if job["state"] == state]


def external(own: Cluster, at: str) -> list[str]:
    return [
        f"--job_endpoint={own.job_server}",
        f"--flink_master={own.master}",
        "--parallelism=2",
        "--environment_type=EXTERNAL",
        f"--environment_config={at}",
    ]


def process(own: Cluster, parallelism: int, **environment: str) -> list[str]:
    return [
        f"--job_endpoint={own.job_server}",
        f"--flink_master={own.master}",
        f"--parallelism={parallelism}",
        "--environment_type=PROCESS",
        "--environment_config="
        + json.dumps({"command": str(BOOT), "env": environment}),
    ]


@pytest.mark.usefixtures("ends")
def test_workers_that_cannot_import_anything_end_the_job_by_name(
    own: Cluster, jar: Path, words: list[str], tmp_path: Path
) -> None:
    own.add_job_server(jar)
    bare = f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n'
    at, log = pool(own, tmp_path, bare)
    told = error_of(start([*words, *external(own, at)]))
    assert "no worker gave a sign of life" in told
    assert f"the worker pool at {at} starts workers that do not report" in told
    assert "ModuleNotFoundError" in log.read_text()
    # What was ended is ended on the cluster too.
    until(lambda: not jobs(own, "RUNNING"))


@pytest.mark.usefixtures("ends")
def test_a_wrong_address_of_the_pool_is_refused_by_name(
    own: Cluster, jar: Path, words: list[str]
) -> None:
    own.add_job_server(jar)
    at = f"localhost:{free_port()}"
    told = error_of(start([*words, *external(own, at)]))
    assert f"a worker pool must answer at --environment_config={at}" in told


@pytest.mark.usefixtures("ends")
def test_a_job_server_that_is_killed_ends_the_job_by_name(
    own: Cluster, jar: Path, words: list[str], tmp_path: Path
) -> None:
    # Workers that wait for ever keep the job on the cluster while its server dies.
    own.add_job_server(jar)
    at, _ = pool(own, tmp_path, "#!/bin/sh\nexec sleep 3600\n")
    process = start([*words, "--stall_timeout=inf", *external(own, at)])
    until(lambda: jobs(own, "RUNNING"))
    (server,) = (p.pid for p in own.processes() if p.role == "jobserver" and p.leads)
    os.kill(server, signal.SIGKILL)
    told = error_of(process)
    assert f"the job server {own.job_server} must live until the job has ended" in told


def loopback(own: Cluster, parallelism: int, server: str) -> list[str]:
    return [
        f"--flink_master={own.master}",
        f"--parallelism={parallelism}",
        "--environment_type=LOOPBACK",
        server,
    ]


def test_more_parallelism_than_slots_is_refused_by_name(
    own: Cluster, jar: Path, words: list[str]
) -> None:
    flags = loopback(own, 5, f"--flink_job_server_jar={jar}")
    told = error_of(start([*words, *flags]))
    assert "must have a slot for each of --parallelism=5, it has 4" in told


@pytest.mark.usefixtures("ends")
def test_slots_that_other_jobs_hold_are_named_as_the_cause(
    own: Cluster, jar: Path, words: list[str], tmp_path: Path
) -> None:
    # A job server of the cluster's: a command that is killed would leave its own.
    own.add_job_server(jar)
    flags = loopback(own, 4, f"--job_endpoint={own.job_server}")
    # A command whose slice gives signs of life holds all slots as long as it is there.
    other = [
        w.replace(str(tmp_path / "windows"), str(tmp_path / "other")) for w in words
    ]
    holder = start([*other, "--stall_timeout=inf", *flags])
    try:
        until(lambda: jobs(own, "RUNNING"))
        until(lambda: own.ask("/overview")["slots-available"] == 0)
        holder.send_signal(signal.SIGSTOP)
        told = error_of(start([*words, *flags]))
    finally:
        holder.kill()
        holder.communicate()
    assert "too few slots: " in told
    assert "has 4, 0 of them free, on 2 TaskManagers" in told
    assert not files.names(ledger.folder(str(tmp_path / "windows")))


@pytest.mark.usefixtures("ends")
def test_a_job_without_any_known_cause_is_ended_and_says_where_to_look(
    own: Cluster, jar: Path, words: list[str], tmp_path: Path
) -> None:
    own.add_job_server(jar)
    # Workers report, and then do nothing that they are asked for.
    deaf = (
        f"#!/bin/sh\nexec {sys.executable} -c '"
        "import sys, time, grpc; from apache_beam.portability.api import"
        " beam_fn_api_pb2_grpc as api; code = sys.argv[2];"
        ' place = code.split("SdkHarness(")[1].split(",")[0].strip(chr(34));'
        ' name = code.split("worker_id=")[1].split(",")[0].strip(chr(34));'
        " stub = api.BeamFnControlStub(grpc.insecure_channel(place));"
        " wait = iter(lambda: time.sleep(3600), 1);"
        ' call = stub.Control(wait, metadata=[("worker_id", name)])'
        '; time.sleep(3600)\' "$@"\n'
    )
    at, _ = pool(own, tmp_path, deaf)
    told = error_of(start([*words, *external(own, at)]))
    assert "What holds it is unknown: all that could be asked answers" in told
    assert f"http://{own.master}/#/job/running/" in told
    assert "the logs of the TaskManagers" in told
    assert f"the log of the worker pool at {at}" in told


BARE = f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n'
"""A Python without packages, as on a machine where nothing was installed."""


@pytest.mark.usefixtures("ends")
def test_a_command_that_becomes_no_worker_ends_the_job_by_name(
    own: Cluster, jar: Path, words: list[str], tmp_path: Path
) -> None:
    own.add_job_server(jar)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(BARE)
    (tmp_path / "bin" / "python3").chmod(0o755)
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    # It takes the cluster's twenty restarts, some minutes.
    told = error_of(start([*words, *process(own, 2, PATH=path)]))
    assert f"the command of --environment_config, {BOOT}, must become a worker" in told
    assert "it ended with status 1 before it reported" in told
    assert f"Run `{BOOT} --help` there" in told


@pytest.fixture
def made_whole(own: Cluster) -> Iterator[None]:
    """Replaces TaskManagers that a test has killed, and waits till they are known."""
    before = len(own.taskmanagers())
    yield
    for _ in range(before - len(own.taskmanagers())):
        own.add_taskmanager()
    until(lambda: own._started() == own._known())


@pytest.mark.usefixtures("ends", "made_whole")
def test_slots_that_are_lost_in_the_middle_of_a_job_are_named_as_the_cause(
    own: Cluster, jar: Path, words: list[str]
) -> None:
    own.add_job_server(jar)
    launched = start([*words, *process(own, 4)])
    until(own.workers)  # they have seconds of imports before them
    os.kill(own.taskmanagers()[0], signal.SIGKILL)
    told = error_of(launched)
    assert "no worker gave a sign of life" in told
    assert "too few slots: " in told
    assert "has 2, " in told
    assert "on 1 TaskManagers" in told
    until(lambda: not jobs(own, "RUNNING"))
