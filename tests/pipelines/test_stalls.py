"""Jobs that cannot make progress, each with real servers and workers on loopback."""

import concurrent.futures
import contextlib
import http.server
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import grpc
import pytest

from pipelines import cluster, launch, watchdog
from pipelines.watchdog import Watch
from schemas import files
from schemas.errors import FusionError
from transforms import ledger, slices

pytestmark = [
    pytest.mark.timeout(1800),
    # Threads of Beam end by errors of their own when servers are killed.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

ROOT = Path(__file__).resolve().parents[2]
STALL_S = 10.0


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets an ending take seconds."""
    monkeypatch.setattr(watchdog, "_GRACE_S", 5.0)
    # What ends a process that cannot end itself would end the tests'.
    monkeypatch.setattr(watchdog, "leave_for_certain", lambda: None)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


Start = Callable[..., tuple[str, "subprocess.Popen[bytes]"]]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Returns a function that starts a server of Beam's and waits till it answers."""
    logs = tmp_path_factory.mktemp("logs")
    with contextlib.ExitStack() as stack:

        def begin(
            module: str, flag: str, **environment: str
        ) -> tuple[str, "subprocess.Popen[bytes]"]:
            port = free_port()
            log = stack.enter_context(open(logs / f"{port}.log", "wb"))
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    f"apache_beam.runners.{module}",
                    flag,
                    str(port),
                ],
                env={**os.environ, **environment},
                stdout=log,
                stderr=log,
                cwd=ROOT,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            deadline = time.monotonic() + 300
            while not cluster.answers_grpc(f"localhost:{port}"):
                assert process.poll() is None
                assert time.monotonic() < deadline
            return f"localhost:{port}", process

        yield begin


def job_server(start: Start) -> tuple[str, "subprocess.Popen[bytes]"]:
    return start("portability.local_job_service_main", "-p")


def pool(start: Start, path: str, **more: str) -> str:
    """Starts a pool whose `python` is the first on a path."""
    module = "worker.worker_pool_main"
    return start(module, "--service_port", PATH=path, **more)[0]


@pytest.fixture(scope="module")
def server(start: Start) -> str:
    """Returns the address of a job server."""
    return job_server(start)[0]


def sleep(path: str) -> str:
    """Begins, and gives no sign of life from then on, till the test is over."""
    Path(f"{path}.begun").write_text("")
    while not Path(f"{path}.over").exists():
        time.sleep(0.2)
    return path


@pytest.fixture(autouse=True)
def over(out: str) -> Iterator[None]:
    """Lets the steps of a test end with it."""
    yield
    Path(f"{out}.over").write_text("")


def flags(server: str, pool: str) -> list[str]:
    return [
        "--runner=PortableRunner",
        f"--job_endpoint={server}",
        "--environment_type=EXTERNAL",
        f"--environment_config={pool}",
    ]


def run(out: str, words: list[str], stall_timeout: float = STALL_S) -> None:
    launch.run(
        lambda root: root | beam.Create([out]) | beam.Map(sleep),
        words,
        Watch("test", (out,), out, stall_timeout),
    )


@pytest.mark.slow
def test_workers_that_cannot_import_beam_end_the_job_by_name(
    start: Start, server: str, out: str, tmp_path: Path
) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')
    bare.chmod(0o755)
    there = pool(start, f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(FusionError) as ended:
        run(out, flags(server, there))
    told = str(ended.value)
    assert "no worker gave a sign of life" in told
    assert f"the worker pool at {there} starts workers that do not report" in told
    assert f"Look at the log of the worker pool at {there}" in told


NOTHING_OF_OURS = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("schemas", "transforms", "pipelines", "tests"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""
"""What Python runs at its start: then it is one where our package is not installed."""


@pytest.mark.slow
def test_workers_that_cannot_import_the_package_end_the_job_by_name(
    start: Start, server: str, out: str, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(NOTHING_OF_OURS)
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    bare.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    there = pool(start, path, PYTHONPATH=str(tmp_path))
    with pytest.raises(FusionError, match="able to import this version of FuseBeam"):
        launch.run(
            lambda root: root | beam.Create([7]) | beam.ParDo(slices._Call(len)),
            flags(server, there),
        )


def test_a_pool_that_is_not_there_is_refused_before_the_job(
    server: str, out: str
) -> None:
    nowhere = f"localhost:{free_port()}"
    with pytest.raises(FusionError, match=f"a worker pool must answer.*{nowhere}"):
        run(out, flags(server, nowhere))


def test_an_address_that_is_no_pool_is_refused_before_the_job(
    server: str, out: str
) -> None:
    with pytest.raises(FusionError, match=f"a worker pool must answer.*{server}"):
        run(out, flags(server, server))


def test_a_job_server_that_is_not_there_is_refused_before_the_job(
    out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "ANSWER_S", 1.0)
    nowhere = f"localhost:{free_port()}"
    with pytest.raises(FusionError, match=f"a job server must answer.*{nowhere}"):
        run(out, flags(nowhere, nowhere))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_job_server_that_dies_ends_the_job_by_name(
    start: Start, out: str, how: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "ANSWER_S", 5.0)
    there, process = job_server(start)
    words = [
        "--runner=PortableRunner",
        f"--job_endpoint={there}",
        "--environment_type=LOOPBACK",
    ]

    def harm() -> None:
        signs = 0
        while not Path(f"{out}.begun").exists():
            files.write_bytes(f"{out}/{signs}", b"")
            signs += 1
            time.sleep(0.5)
        process.send_signal(how)

    threading.Thread(target=harm, daemon=True).start()
    with pytest.raises(FusionError, match=r"the job server .*died"):
        run(out, words, stall_timeout=20.0)


def test_a_job_that_stands_still_for_no_known_cause_is_ended_all_the_same(
    out: str,
) -> None:
    with pytest.raises(FusionError) as ended:
        run(out, [], stall_timeout=2.0)
    told = str(ended.value)
    assert "no worker gave a sign of life" in told
    assert "What holds it is unknown" in told
    assert "The same command does what is missing" in told


def test_a_slice_in_work_keeps_its_job_alive(out: str) -> None:
    begun = threading.Event()

    def work() -> None:
        with ledger.attempt(out, "slice-000000.parquet", beat_s=0.1):
            begun.set()
            time.sleep(5)

    options = launch.pipeline_options.PipelineOptions([])
    threading.Thread(target=work).start()
    begun.wait()
    with watchdog.Watchdog(Watch("test", (out,), out, 1.0), options) as guard:
        time.sleep(4)
        assert guard.stalled is None


def test_a_slice_in_work_for_too_long_is_named_with_the_cure(
    out: str, capfd: pytest.CaptureFixture[str]
) -> None:
    files.write_bytes(f"{out}/slice-000000.parquet", b"")
    options = launch.pipeline_options.PipelineOptions([])
    told = ""
    with (
        ledger.attempt(out, "slice-000001.parquet", beat_s=0.1),
        watchdog.Watchdog(Watch("test", (out,), out, 1.0), options) as guard,
    ):
        begun = time.monotonic()
        while time.monotonic() - begun < 4.5:
            told += capfd.readouterr().err
            time.sleep(0.1)
        assert guard.stalled is None
    passed = time.monotonic() - begun
    lines = [line for line in told.splitlines() if "nothing was finished for " in line]
    assert 1 <= len(lines) <= math.log2(passed + 1)  # after 1, 3, 7 ... seconds
    where = f"slice-000001.parquet was in work on {socket.gethostname()}"
    assert f"{where}, process {os.getpid()}, " in lines[0]
    assert "--element_timeout" in lines[0]


def test_slices_that_are_finished_are_no_reason_for_a_notice(
    out: str, capfd: pytest.CaptureFixture[str]
) -> None:
    options = launch.pipeline_options.PipelineOptions([])
    with (
        ledger.attempt(out, "slice-000099.parquet", beat_s=0.1),
        watchdog.Watchdog(Watch("test", (out,), out, 2.0), options),
    ):
        for number in range(10):
            files.write_bytes(f"{out}/slice-{number:06d}.parquet", b"")
            time.sleep(0.3)
    assert capfd.readouterr().err == ""


class ClientError(Exception):
    """An error that no module of ours knows."""


def refuse(*_: object) -> Any:
    raise ClientError("no token")


@pytest.mark.parametrize(
    ("module", "name", "said"),
    [
        (ledger, "in_work", "cannot be listed from here (ClientError: no token)"),
        (watchdog.causes, "explain", "could not be asked (ClientError: no token)"),
        (cluster, "ask_flink", "could not be asked (ClientError: no token)"),
    ],
)
def test_a_diagnosis_that_fails_ends_no_guard_and_is_told(
    module: Any, name: str, said: str, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, refuse)
    words = ["--runner=FlinkRunner", "--flink_master=localhost:1"]
    assert said in str(stalled_of(out, words))


def test_output_that_cannot_be_listed_for_a_while_ends_no_guard(
    out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps, failed = files.stamps, []

    def flaky(*args: str) -> Any:
        if len(failed) < 3:
            failed.append(1)
            refuse()
        return stamps(*args)

    monkeypatch.setattr(files, "stamps", flaky)
    assert "no worker gave a sign of life" in str(stalled_of(out, []))
    assert len(failed) == 3


def stalled_of(out: str, words: list[str]) -> str | None:
    """Returns the verdict on a job that does nothing."""
    options = launch.pipeline_options.PipelineOptions(words)
    with watchdog.Watchdog(Watch("test", (out,), out, 1.0), options) as guard:
        deadline = time.monotonic() + 60
        while guard.stalled is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return guard.stalled


def test_what_was_in_work_is_named_with_its_host(out: str) -> None:
    path = files.join(ledger.folder(out), "slice-000003.parquet.dead.json")
    ledger._write(path, "slice-000003.parquet", 12.0)
    with pytest.raises(FusionError, match=r"slice-000003.*was in work on .*12 seconds"):
        run(out, [], stall_timeout=2.0)


def managers(*ports: int, host: str = "127.0.0.1") -> dict[str, Any]:
    """Returns what Flink says of TaskManagers."""
    paths = [f"pekko.tcp://flink@{host}:{n}/user/rpc/taskmanager_0" for n in ports]
    return {"taskmanagers": [{"id": path, "path": path} for path in paths]}


class Flink:
    """Answers as Flink's REST interface does."""

    def __init__(self, answers: dict[str, Any]) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = answers.get(self.path.lstrip("/"))
                self.send_response(404 if found is None else 200)
                self.end_headers()
                self.wfile.write(json.dumps(found).encode())

            def log_message(self, *_: object) -> None:
                """Stays silent."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.master = f"localhost:{self._server.server_port}"
        answers.setdefault("taskmanagers", managers(self._server.server_port))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


OVERVIEW = {
    "flink-version": "1.19.3",
    "slots-total": 4,
    "slots-available": 0,
    "taskmanagers": 2,
}
JOB = {
    "jid": "abc",
    "name": "BeamApp-somebody",
    "state": "RUNNING",
    "start-time": 7,
    "tasks": {"scheduled": 3},
}


@pytest.fixture
def flink() -> Iterator[Callable[..., str]]:
    """Returns a function that starts such a Flink and returns its address."""
    with contextlib.ExitStack() as stack:

        def begin(**more: Any) -> str:
            made = Flink(
                {
                    "overview": OVERVIEW,
                    "jobmanager/config": [],
                    "jobs/overview": {"jobs": [JOB]},
                    "jobs/abc/exceptions": {"root-exception": "no slot\nat X.java"},
                    **more,
                }
            )
            stack.callback(made.close)
            return made.master

        yield begin


def check(master: str, *more: str) -> None:
    words = ["--runner=FlinkRunner", "--environment_type=LOOPBACK"]
    words += [f"--flink_master={master}", *more]
    launch.preflight.check(launch.pipeline_options.PipelineOptions(words))


ELSEWHERE = [
    ["--runner=FlinkRunner", "--environment_type=EXTERNAL", "--flink_version=1.19"],
    ["--runner=FlinkRunner", "--environment_type=PROCESS", "--flink_version=1.19"],
    ["--runner=DataflowRunner"],
]


@pytest.mark.parametrize("words", ELSEWHERE)
def test_relative_paths_are_refused_where_workers_have_another_folder(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "windows").mkdir()
    options = launch.pipeline_options.PipelineOptions(words)
    cure = "gs://BUCKET/" if "DataflowRunner" in words[0] else f"{tmp_path}/out,"
    with pytest.raises(FusionError, match=rf"absolute.*got out; give {cure}"):
        launch.preflight.check(options, output="out")
    with pytest.raises(FusionError, match=r"absolute.*got windows; give"):
        launch.preflight.check(options, reads=["windows"], output="gs://b/out")


def test_relative_paths_and_names_on_a_hub_are_taken_where_they_mean_the_same(
    flink: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "windows").mkdir()
    dataflow = launch.pipeline_options.PipelineOptions(["--runner=DataflowRunner"])
    launch.preflight.check(dataflow, reads=["owner/model"], output="gs://b/out")
    loopback = [
        *("--runner=FlinkRunner", "--environment_type=LOOPBACK"),
        *(f"--flink_master={flink()}", "--flink_version=1.19"),
    ]
    for here in ([], ["--direct_running_mode=multi_processing"], loopback):
        options = launch.pipeline_options.PipelineOptions(here)
        launch.preflight.check(options, reads=["windows"], output="out")


@pytest.mark.parametrize("master", [[], ["--flink_master=[local]"]])
def test_a_flink_inside_the_job_server_has_its_workers_in_this_process(
    master: list[str],
) -> None:
    words = ["--runner=FlinkRunner", *master]
    where = cluster.of(launch.pipeline_options.PipelineOptions(words))
    assert where.environment == "LOOPBACK"
    assert not where.runs_elsewhere


@pytest.mark.parametrize("config", [[], ["apache/beam_python3.11_sdk:2.77.0"]])
def test_containers_of_beam_alone_are_refused_before_the_job(
    config: list[str], flink: Callable[..., str]
) -> None:
    words = ["--runner=FlinkRunner", f"--flink_master={flink()}"]
    words += [f"--environment_config={image}" for image in config]
    words += ["--flink_version=1.19", f"--job_server_java_launcher={sys.executable}"]
    options = launch.pipeline_options.PipelineOptions(words)
    with pytest.raises(FusionError, match=r"must have FuseBeam.*=PROCESS, EXTERNAL or"):
        launch.preflight.check(options)
    options = launch.pipeline_options.PipelineOptions(
        [*words, "--environment_config=registry.example/fusebeam/cpu:0.1.0"]
    )
    launch.preflight.check(options)


def test_the_output_of_a_job_on_dataflow_must_be_in_a_bucket(out: str) -> None:
    words = ["--runner=DataflowRunner"]
    options = launch.pipeline_options.PipelineOptions(words)
    with pytest.raises(FusionError, match=rf"in a bucket.*got {out}; give gs://BUCKET"):
        launch.preflight.check(options, output=out)
    launch.preflight.check(options, reads=["/models/in/the/image"], output="gs://b/o")
    options = launch.pipeline_options.PipelineOptions([*words, "--dry_run=True"])
    launch.preflight.check(options, output=out)


def test_more_parallelism_than_slots_is_refused_before_the_job(
    flink: Callable[..., str],
) -> None:
    with pytest.raises(
        FusionError, match=r"a slot for each of --parallelism=8, it .*4"
    ):
        check(flink(), "--flink_version=1.19", "--parallelism=8")


def test_a_cluster_that_grows_with_its_jobs_may_have_no_slot_yet(
    flink: Callable[..., str], tmp_path: Path
) -> None:
    elastic = {"jobmanager/config": [{"key": "kubernetes.cluster-id", "value": "x"}]}
    java = tmp_path / "java"
    java.write_text("")
    java.chmod(0o755)
    check(
        flink(**elastic),
        "--flink_version=1.19",
        "--parallelism=8",
        f"--job_server_java_launcher={java}",
    )


def test_another_version_of_flink_is_refused_before_the_job(
    flink: Callable[..., str],
) -> None:
    with pytest.raises(
        FusionError, match=r"--flink_version must be.* 1\.19\.3, got 2\.0"
    ):
        check(flink(), "--flink_version=2.0")


def test_a_flink_that_is_not_there_is_refused_before_the_job() -> None:
    nowhere = f"localhost:{free_port()}"
    with pytest.raises(FusionError, match=f"JobManager must answer.*{nowhere}"):
        check(nowhere, "--flink_version=1.19")


def test_a_missing_java_or_jar_is_refused_before_the_job(
    flink: Callable[..., str], tmp_path: Path
) -> None:
    master, version = flink(), "--flink_version=1.19"
    with pytest.raises(FusionError, match="needs Java"):
        check(master, version, "--job_server_java_launcher=/nowhere/java")
    java = f"--job_server_java_launcher={sys.executable}"
    with pytest.raises(FusionError, match=r"nowhere\.jar is not there"):
        check(master, version, java, f"--flink_job_server_jar={tmp_path}/nowhere.jar")


@pytest.mark.parametrize(
    ("config", "cure"),
    [
        ("boot.sh", "must be JSON"),
        ('{"command": "/nowhere/boot"}', "must be a program"),
    ],
)
def test_a_process_that_cannot_be_started_is_refused_before_the_job(
    config: str, cure: str, flink: Callable[..., str]
) -> None:
    with pytest.raises(FusionError, match=cure):
        check(
            flink(),
            "--flink_version=1.19",
            f"--job_server_java_launcher={sys.executable}",
            "--environment_type=PROCESS",
            f"--environment_config={config}",
        )


NOT_HERE = {
    "none": lambda: managers(),
    "on another machine": lambda: managers(6122, host="192.0.2.7"),
    "at the far end of a tunnel": lambda: managers(free_port(), host="localhost"),
}


@pytest.mark.parametrize("name", NOT_HERE)
@pytest.mark.parametrize(
    "workers",
    [
        ["--environment_type=EXTERNAL", "--environment_config=localhost:1"],
        [
            "--environment_type=PROCESS",
            '--environment_config={"command": "/opt/boot.py"}',
        ],
    ],
)
def test_what_starts_workers_on_other_machines_is_not_looked_for_here(
    name: str, workers: list[str], flink: Callable[..., str]
) -> None:
    words = ["--flink_version=1.19", f"--job_server_java_launcher={sys.executable}"]
    check(flink(taskmanagers=NOT_HERE[name]()), *words, *workers)
    with pytest.raises(
        FusionError, match=r"a worker pool must answer|must be a progra"
    ):
        check(flink(), *words, *workers)


def test_a_pool_on_other_machines_is_not_told_as_the_cause(
    flink: Callable[..., str],
) -> None:
    def found(**more: Any) -> list[str]:
        words = ["--runner=FlinkRunner", f"--flink_master={flink(**more)}"]
        words += ["--environment_type=EXTERNAL", "--environment_config=localhost:1"]
        options = launch.pipeline_options.PipelineOptions(words)
        return launch.causes.explain(options, None, [])[0]

    told = "no worker pool answers at --environment_config=localhost:1"
    assert any(told in one for one in found())
    assert not any(told in one for one in found(taskmanagers=managers()))


def test_too_few_slots_are_named_as_the_cause(flink: Callable[..., str]) -> None:
    options = launch.pipeline_options.PipelineOptions(
        ["--runner=FlinkRunner", f"--flink_master={flink()}", "--parallelism=4"]
    )
    found, look = launch.causes.explain(options, None, [])
    assert "too few slots: 3 tasks wait for one" in found[0]
    assert "has 4, 0 of them free, on 2 TaskManagers" in found[0]
    assert "#/job/running/abc/exceptions, where the job is RUNNING: no slot" in look[0]


PORTABLE = ["--runner=PortableRunner", "--job_endpoint=there:8099"]
POOL = [*PORTABLE, "--environment_type=EXTERNAL", "--environment_config=pool:50000"]


def answer(code: grpc.StatusCode, details: str) -> grpc.RpcError:
    """Returns the error of a call that a server answers so."""

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, _: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(
                lambda _, context: context.abort(code, details)
            )

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1), [Handler()])
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        with (
            grpc.insecure_channel(f"localhost:{port}") as channel,
            pytest.raises(grpc.RpcError) as raised,
        ):
            channel.unary_unary("/job/ask")(b"")
        return raised.value
    finally:
        server.stop(None)


def failure(error: Exception, words: list[str]) -> str:
    options = launch.pipeline_options.PipelineOptions(words)
    return str(launch.causes.failure(error, options))


@pytest.mark.parametrize("code", ["UNAVAILABLE", "DEADLINE_EXCEEDED"])
def test_a_job_server_that_does_not_answer_is_told_as_dead(code: str) -> None:
    told = failure(answer(grpc.StatusCode[code], "gone"), PORTABLE)
    assert "it died or is out of reach" in told
    assert code in told


def test_a_job_server_that_answers_with_an_error_is_told_in_its_own_words() -> None:
    error = answer(grpc.StatusCode.INTERNAL, "no room for the job\nat X.java")
    told = failure(error, PORTABLE)
    assert "job server there:8099 must do what it is asked" in told
    assert "answered INTERNAL: no room for the job; see the job server's log" in told
    assert "died" not in told
    assert "X.java" not in told


def test_workers_of_another_python_or_beam_are_named_with_the_cure() -> None:
    error = RuntimeError(
        "Pipeline construction environment and pipeline runtime environment are not"
        " compatible. If you use a custom container image, check that the Python"
        " interpreter minor version and the Apache Beam version in your image match the"
        " versions used at pipeline construction time. Submission environment:"
        " beam:version:sdk_base:apache/beam_python3.11_sdk:2.77.0. Runtime environment:"
        " beam:version:sdk_base:apache/beam_python3.12_sdk:2.77.0."
    )
    told = failure(error, POOL)
    assert "the same minor Python and the same Beam as this command" in told
    assert "which has beam:version:sdk_base:apache/beam_python3.11_sdk:2.77.0," in told
    assert "one of them has beam:version:sdk_base:apache/beam_python3.12" in told
    assert "EXTERNAL: pool:50000" in told
