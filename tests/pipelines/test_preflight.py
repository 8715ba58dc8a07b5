"""What is refused before a job is sent, and causes that a cluster itself tells."""

import concurrent.futures
import contextlib
import http.server
import itertools
import json
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from apache_beam.options import pipeline_options

from deploy.flink.cluster import free_port
from pipelines import cluster, launch, watchdog
from schemas.errors import FusionError


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

            def do_PATCH(self) -> None:
                answers.setdefault("cancelled", []).append(self.path)
                self.send_response(202)
                self.end_headers()

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


PROCESS = [
    *("--runner=FlinkRunner", "--environment_type=PROCESS"),
    '--environment_config={"command": "/opt/boot.py"}',
]


def explained(master: str, job: str | None = "BeamApp-somebody") -> Any:
    """Returns what is found out of a job of that name in Flink, and where to look."""
    words = [*PROCESS, f"--flink_master={master}", "--parallelism=4"]
    options = launch.pipeline_options.PipelineOptions(words)
    result = types.SimpleNamespace(_job_id=f"{job}_7f3a") if job else None
    return launch.causes.explain(options, result, [])


def test_too_few_slots_are_named_as_the_cause(flink: Callable[..., str]) -> None:
    found, look = explained(flink())
    assert "too few slots: 3 tasks wait for one" in found[0]
    assert "has 4, 0 of them free, on 2 TaskManagers" in found[0]
    assert "#/job/running/abc/exceptions, where the job is RUNNING: no slot" in look[0]


@pytest.mark.parametrize("job", [None, "BeamApp-another"])
def test_another_commands_job_is_not_taken_for_this_ones(
    job: str | None, flink: Callable[..., str]
) -> None:
    found, look = explained(master := flink(), job)
    assert found == []
    assert look[0].startswith(f"http://{master}/#/job/running, which may have this")
    assert "abc" not in look[0]


NAMESAKE = {**JOB, "jid": "def"}


def test_jobs_of_one_name_are_not_told_apart(flink: Callable[..., str]) -> None:
    found, look = explained(flink(**{"jobs/overview": {"jobs": [JOB, NAMESAKE]}}))
    assert found == []
    assert "2 jobs are called BeamApp-somebody" in look[0]
    assert "none is cancelled there; give each a --job_name of its own" in look[0]


ENDED = {**NAMESAKE, "state": "FINISHED"}


@pytest.mark.parametrize(
    ("jobs", "cancelled", "ends"),
    [
        ([JOB], ["/jobs/abc"], True),
        ([JOB, NAMESAKE], [], False),
        ([JOB, {**NAMESAKE, "name": "BeamApp-another"}], ["/jobs/abc"], True),
        ([JOB, ENDED], ["/jobs/abc"], True),
        ([ENDED], [], True),
        ([], [], False),
    ],
)
def test_a_job_is_cancelled_only_if_no_other_has_its_name(
    jobs: list[dict[str, Any]],
    cancelled: list[str],
    ends: bool,
    flink: Callable[..., str],
) -> None:
    asked: list[str] = []
    master = flink(**{"jobs/overview": {"jobs": jobs}, "cancelled": asked})
    assert cluster.end_flink_job(f"http://{master}", "BeamApp-somebody") is ends
    assert asked == cancelled


def cancelled(
    monkeypatch: pytest.MonkeyPatch, master: str, pause: Callable[[], None]
) -> None:
    """Lets a watchdog cancel a job whose server never answers; a look takes 25 s."""
    now, answer = itertools.count(step=25), threading.Event()
    clock = types.SimpleNamespace(monotonic=lambda: next(now), sleep=lambda _: pause())
    monkeypatch.setattr(watchdog, "time", clock)
    words = ["--runner=FlinkRunner", f"--flink_master={master}"]
    guard = watchdog.Watchdog(None, pipeline_options.PipelineOptions(words))
    guard.result = types.SimpleNamespace(
        _job_id="BeamApp-somebody_1", cancel=answer.wait
    )
    guard._cancel()
    answer.set()


def test_a_job_that_reaches_flink_late_is_cancelled_all_the_same(
    flink: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    overview: dict[str, Any] = {"jobs": []}
    master = flink(**{"jobs/overview": overview, "cancelled": asked})
    cancelled(monkeypatch, master, lambda: overview["jobs"].append(JOB))
    assert asked == ["/jobs/abc"]


def test_a_job_that_cannot_be_cancelled_is_named(
    flink: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    asked: list[str] = []
    master = flink(**{"jobs/overview": {"jobs": [JOB, NAMESAKE]}, "cancelled": asked})
    cancelled(monkeypatch, master, lambda: None)
    assert asked == []
    told = capfd.readouterr().err
    assert (
        f"BeamApp-somebody could not be cancelled on Flink at http://{master}" in told
    )
    assert "cancel it on the JobManager's page" in told


def test_a_command_awaits_the_end_of_its_job_on_flink(
    flink: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told, left, ended = threading.Event(), threading.Event(), []

    def end(master: str, name: str) -> bool:
        left.wait(60)  # slower than the job server, for which the job is cancelled
        ended.append(name)
        return True

    monkeypatch.setattr(cluster, "end_flink_job", end)
    before = threading.enumerate()
    words = ["--runner=FlinkRunner", f"--flink_master={flink()}"]
    options = pipeline_options.PipelineOptions(words)
    watch = watchdog.Watch("test", (str(tmp_path),), str(tmp_path), 0.5)
    with watchdog.Watchdog(watch, options) as guard:
        guard.result = types.SimpleNamespace(
            _job_id="BeamApp-somebody_1", cancel=told.set
        )
        assert told.wait(60)
    # What Python awaits before a process ends.
    awaited = [t for t in threading.enumerate() if not (t in before or t.daemon)]
    left.set()
    for thread in awaited:
        thread.join(60)
    assert ended == ["BeamApp-somebody"]


STILLBORN = (
    "java.lang.IllegalStateException: Process died with exit code 1\n"
    "\tat org.apache.beam.runners.fnexecution.environment.ProcessManager"
    "$RunningProcess.isAliveOrThrow(ProcessManager.java:75)"
)


def test_a_cause_that_the_job_restarts_for_is_named_while_it_does(
    flink: Callable[..., str],
) -> None:
    told = {"root-exception": f"org.apache.flink.X\n{STILLBORN}"}
    found, _ = explained(flink(**{"jobs/abc/exceptions": told}))
    assert "/opt/boot.py, must become a worker" in found[1]


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


def test_a_command_that_becomes_no_worker_is_named_with_the_cure() -> None:
    told = failure(
        RuntimeError(f"Pipeline failed in state FAILED: {STILLBORN}"), PROCESS
    )
    assert "the command of --environment_config, /opt/boot.py, must become a wo" in told
    assert "it ended with status 1 before it reported" in told
    assert "Run `/opt/boot.py --help` there, as the TaskManager's user" in told
    assert "python3 that it runs by (of boot.py the first on PATH)" in told
    assert "able to import apache_beam" in told


@pytest.mark.parametrize("module", ["schemas", "transforms.fuse", "train.evaluate"])
def test_a_worker_without_our_package_is_named_with_the_cure(module: str) -> None:
    error = RuntimeError(f"ModuleNotFoundError: No module named '{module}'")
    told = failure(error, POOL)
    assert "able to import this version of FuseBeam" in told
    assert f"(No module named '{module}')" in told


@pytest.mark.parametrize("module", ["gcsfs", "trainer", "schemas2.files"])
def test_a_module_that_is_not_ours_is_not_told_as_fusebeam(module: str) -> None:
    error = RuntimeError(f"ModuleNotFoundError: No module named '{module}'")
    options = launch.pipeline_options.PipelineOptions(POOL)
    assert launch.causes.failure(error, options) is None
