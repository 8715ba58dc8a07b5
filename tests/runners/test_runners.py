import functools
import queue
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import apache_beam as beam
import grpc
import pytest
from apache_beam.options import pipeline_options
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.portability.fn_api_runner import fn_runner, worker_handlers
from apache_beam.runners.worker import worker_pool_main

from pipelines import (
    fuse,
    launch,
    merge,
    prepare,
    refusals,
    runners,
    score,
    verify,
    workers,
)
from schemas.errors import FusionError
from tests import merging
from tests.kill import rounds
from tests.runners import steps
from tests.runners.conftest import (
    RUNNERS,
    contents,
    fuse_config,
    prepare_config,
    score_config,
)


def test_windows_are_the_same_on_every_runner(
    runner: list[str],
    made: Path,
    tmp_path: Path,
    corpus: list[str],
    models: dict[str, str],
) -> None:
    prepare.prepare_corpus(prepare_config(tmp_path, corpus, models), runner)
    assert contents(tmp_path / "windows") == contents(made / "windows")


def test_scores_are_the_same_on_every_runner_and_are_made_once(
    runner: list[str], made: Path, tmp_path: Path, models: dict[str, str]
) -> None:
    config = score_config(made, tmp_path, models, "llama")
    score.score_windows(config, runner)
    out = tmp_path / "scores"
    assert contents(out) == {
        name: digest
        for name, digest in contents(made / "scores").items()
        if name.startswith("llama/")
    }
    before = rounds.stamps(out)
    (out / "llama" / "manifest.json").unlink()
    score.score_windows(config, runner)
    after = rounds.stamps(out)
    assert {name for name in after if after[name] != before[name]} == {
        "llama/manifest.json"
    }


def test_fused_rows_are_the_same_on_every_runner(
    runner: list[str], made: Path, tmp_path: Path
) -> None:
    fuse.fuse_scores(fuse_config(made, tmp_path), runner)
    assert contents(tmp_path / "fused") == contents(made / "fused")
    verify.verify([str(tmp_path / "fused")])


def test_merged_models_are_the_same_on_every_runner(
    runner: list[str], tmp_path: Path
) -> None:
    made = merging.several(tmp_path / "models")
    for name, flags in (("none", []), ("runner", runner)):
        given = merging.given(
            made,
            str(tmp_path / name),
            "varm",
            settings={"granularity": "model"},
            shard_bytes=3_000,
        )
        merge.merge_models(given, flags)
    assert contents(tmp_path / "runner") == contents(tmp_path / "none")


def test_a_refusal_is_told_in_its_own_words_on_every_runner(runner: list[str]) -> None:
    with pytest.raises(FusionError, match=r"^part-3 must hold windows, it holds soup$"):
        launch.run(
            lambda root: root | beam.Create([3]) | beam.Map(steps.refuse), runner
        )


@pytest.fixture
def unheard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets no job be long enough for a line of progress, on however slow a machine."""
    monkeypatch.setattr(launch.Progress, "LINE_PERIOD_S", 3600.0)


SILENT = [
    "none",
    "FnApiRunner",
    "DirectRunner",
    *(
        pytest.param(name, marks=pytest.mark.prism)
        for name in ("PrismRunner", "DirectRunner with Prism")
    ),
]


@pytest.mark.usefixtures("unheard")
@pytest.mark.parametrize("name", SILENT)
def test_a_job_says_nothing_but_what_we_say(
    name: str,
    request: pytest.FixtureRequest,
    made: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    fuse.fuse_scores(fuse_config(made, tmp_path), RUNNERS[name](request))
    assert capfd.readouterr() == ("", "")


def test_prism_is_built_of_the_version_of_beam() -> None:
    text = Path(__file__).parents[2].joinpath("Makefile").read_text()
    assert f"/cmd/prism@v{beam.__version__}\n" in text


def settled(*flags: str) -> str:
    made = pipeline_options.PipelineOptions(runners.settle(flags, "FnApiRunner"))
    return str(made.view_as(pipeline_options.StandardOptions).runner)


@pytest.fixture
def no_prism(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Returns the folder that Beam keeps Prism in, which is empty."""
    kept = tmp_path / "kept"
    monkeypatch.setattr(runners.prism_runner.PrismJobServer, "BIN_CACHE", str(kept))
    return kept


@pytest.mark.usefixtures("no_prism")
def test_beams_own_local_runner_downloads_no_program() -> None:
    assert settled("--runner=DirectRunner") == "FnApiRunner"
    assert settled("--runner", "SwitchingDirectRunner") == "FnApiRunner"
    assert settled() == "FnApiRunner"


@pytest.mark.usefixtures("no_prism")
def test_a_runner_that_is_named_is_taken() -> None:
    assert settled("--runner=FlinkRunner") == "FlinkRunner"
    assert settled("--runner=PrismRunner") == "PrismRunner"
    assert settled("--runner=DirectRunner", "--prism_location=x") == "DirectRunner"


def test_beams_own_local_runner_takes_a_prism_that_is_here(no_prism: Path) -> None:
    no_prism.mkdir()
    (no_prism / "apache_beam-v2.77.0-prism-linux-amd64").touch()
    assert settled("--runner=DirectRunner") == "DirectRunner"


def awaited_s(*flags: str) -> int:
    """Returns the seconds that Beam listens for the end of a job."""
    made = pipeline_options.PipelineOptions(runners.settle(flags, "FnApiRunner"))
    return int(made.view_as(pipeline_options.PortableOptions).job_server_timeout)


@pytest.mark.parametrize(
    "flags",
    [
        ["--runner=PrismRunner"],
        ["--runner=DirectRunner", "--prism_location=x"],
        ["--runner", "SwitchingDirectRunner", "--prism_location=x"],
        ["--runner=PortableRunner", "--job_endpoint=localhost:1"],
    ],
)
def test_a_job_may_take_years_where_beam_would_listen_for_minutes(
    flags: list[str],
) -> None:
    assert 365 * 24 * 3600 < awaited_s(*flags) < 2**31  # gRPC takes no more
    assert awaited_s(*flags, "--job_server_timeout=7") == 7
    assert awaited_s("--job-server-timeout=7", *flags) == 7


def test_a_prism_that_dies_is_told_by_name() -> None:
    for flags in (["--runner=PrismRunner"], ["--runner=DirectRunner"]):
        options = pipeline_options.PipelineOptions(flags)
        told = launch.causes.failure(grpc.RpcError("closed"), options)
        assert told is not None
        assert told.startswith("Prism must live until the job has ended, but it died")


def test_a_loopback_worker_is_not_ended_when_its_namesake_is_done() -> None:
    workers.attend()
    asked: queue.SimpleQueue[object] = queue.SimpleQueue()
    pool = worker_pool_main.BeamFnExternalWorkerPoolServicer()
    pool._worker_threads["1-1"] = types.SimpleNamespace(_responses=asked)
    pool.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id="1-1"), None)
    assert asked.empty()


def test_a_worker_that_ends_by_itself_is_told_with_its_status() -> None:
    told = workers.said("worker_3", "Worker subprocess exited with return code 1")
    assert "worker_3 did not (Worker subprocess exited with return code 1)" in told
    assert refusals.told(RuntimeError(told)) == told.partition(": ")[2]


Attend = Callable[[str], workers.Attended]


@pytest.fixture
def attend() -> Iterator[Attend]:
    """Returns a function that makes a worker of a command, none of which reports."""
    told = fn_runner.ExtendedProvisionInfo()
    manager = worker_handlers.WorkerHandlerManager({}, told)
    state = manager.state_servicer
    server = worker_handlers.GrpcServer(state, told, manager)
    yield lambda command: workers.Attended(command.encode(), state, told, server)
    server.close()


def test_a_worker_that_has_not_reported_when_its_job_ends_is_ended(
    attend: Attend,
) -> None:
    worker = attend("sleep 3600")
    worker.start_worker()
    worker.close()
    assert not worker.worker_thread.is_alive()


def test_a_worker_that_has_ended_is_not_killed_as_its_id_may_be_anothers(
    attend: Attend, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []
    monkeypatch.setattr(workers.os, "kill", lambda pid, _: killed.append(pid))
    ended, mate = attend("true"), attend("sleep 3600")
    mate._pid.write_text("4711")
    ended.start_worker()
    ended.worker_thread.join()
    assert set(killed) == {4711}


def test_a_worker_that_is_killed_ends_the_job_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(FusionError, match=r"worker_\d+ was killed by SIGKILL"):
        run_in_two_processes(steps.die_once_all_are_there, tmp_path)
    assert living(tmp_path) == []


def test_an_error_of_one_worker_ends_the_job_while_others_are_at_work(
    tmp_path: Path,
) -> None:
    with pytest.raises(FusionError, match=r"^part-7 must hold windows, it holds soup$"):
        run_in_two_processes(steps.refuse_once_all_are_there, tmp_path)
    assert living(tmp_path) == []


JOB = """
import sys
from pathlib import Path
from tests.runners import steps, test_runners
test_runners.run_in_two_processes(steps.sleep_once_all_are_there, Path(sys.argv[1]))
"""


def test_workers_end_when_their_command_is_killed(tmp_path: Path) -> None:
    words = [sys.executable, "-c", JOB, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == "all are there\n"
        command.kill()
        # The workers hold the other end of the pipe as long as they live.
        assert command.stdout.read() == ""


def run_in_two_processes(step: Callable[..., None], folder: Path) -> None:
    """Runs a step of `steps` in a job of two worker processes."""
    call = functools.partial(step, str(folder), workers=2)
    launch.run(
        lambda root: root | beam.Create(range(8)) | beam.Reshuffle() | beam.Map(call),
        ["--direct_running_mode=multi_processing", "--direct_num_workers=2"],
    )


def living(folder: Path) -> list[str]:
    """Returns the processes that have begun in a step of `steps`, and live."""
    return [p.name for p in folder.iterdir() if Path("/proc", p.name).exists()]
