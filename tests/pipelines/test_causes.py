"""Why a job stands still or has failed, and how it is ended on a cluster."""

import concurrent.futures
import itertools
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from apache_beam.options import pipeline_options

from pipelines import cluster, launch, watchdog
from tests.pipelines.flinks import JOB, managers


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
