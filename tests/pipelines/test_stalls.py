"""Jobs that cannot make progress, each with real servers and workers on loopback."""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest

from deploy.flink.cluster import POOL, free_port
from pipelines import cluster, fuse, launch, watchdog
from pipelines.watchdog import Watch
from schemas import files, manifest, plan
from schemas.errors import FusionError
from tests.pipelines.conftest import fuse_config
from transforms import ledger, slices
from transforms.attempts import Guards

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


Start = Callable[..., tuple[str, "subprocess.Popen[bytes]"]]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Returns a function that starts a server and waits till it answers.

    It takes Python's words; the last is the flag of the port.
    """
    logs = tmp_path_factory.mktemp("logs")
    with contextlib.ExitStack() as stack:

        def begin(
            *words: str, **environment: str
        ) -> tuple[str, "subprocess.Popen[bytes]"]:
            port = free_port()
            log = stack.enter_context(open(logs / f"{port}.log", "wb"))
            process = subprocess.Popen(
                [sys.executable, *words, str(port)],
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
    module = "apache_beam.runners.portability.local_job_service_main"
    return start("-m", module, "-p")


BEAMS_POOL = ("-m", "apache_beam.runners.worker.worker_pool_main")
OUR_POOL = (str(POOL),)


def pool(start: Start, program: tuple[str, ...], path: str, **more: str) -> str:
    """Starts a pool. Beam's workers run by the first `python` on the path."""
    return start(*program, "--service_port", PATH=path, **more)[0]


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
    there = pool(start, BEAMS_POOL, f"{tmp_path}:{os.environ['PATH']}")
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
@pytest.mark.parametrize("program", [BEAMS_POOL, OUR_POOL], ids=["Beam's", "ours"])
def test_workers_that_cannot_import_the_package_end_the_job_by_name(
    program: tuple[str, ...], start: Start, server: str, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(NOTHING_OF_OURS)
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    bare.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    there = pool(start, program, path, PYTHONPATH=str(tmp_path))
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


LIMIT_S = 30.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Returns a function that sets the watchdog's clock, in seconds."""
    now = [0.0]
    told = types.SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(watchdog, "time", told)
    return lambda seconds: now.__setitem__(0, seconds)


def notices(out: str, capfd: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """Returns a function that looks once, and returns the lines that were told."""
    watch = Watch("test", (out,), out, LIMIT_S)
    slow = watchdog._Slowness(watch)

    def look() -> list[str]:
        slow.look(watch.sign(), threading.Event())
        return capfd.readouterr().err.splitlines()

    return look


def test_a_slice_in_work_for_too_long_is_named_with_the_cure(
    out: str, capfd: pytest.CaptureFixture[str], clock: Callable[[float], None]
) -> None:
    files.write_bytes(f"{out}/slice-000000.parquet", b"")
    look = notices(out, capfd)
    with ledger.attempt(out, "slice-000001.parquet", beat_s=60.0):
        told = {}
        for second in range(8 * int(LIMIT_S)):
            clock(float(second))
            if lines := look():
                told[second] = lines
    assert list(told) == [31, 63, 127]  # after ever longer pauses
    (line,) = told[31]
    assert "nothing was finished for 31 seconds" in line
    where = f"slice-000001.parquet was in work on {socket.gethostname()}"
    assert f"{where}, process {os.getpid()}, " in line
    assert "--element_timeout" in line


def test_slices_that_are_finished_are_no_reason_for_a_notice(
    out: str, capfd: pytest.CaptureFixture[str], clock: Callable[[float], None]
) -> None:
    look = notices(out, capfd)
    with ledger.attempt(out, "slice-000099.parquet", beat_s=60.0):
        for number in range(10):
            clock(number * LIMIT_S)
            files.write_bytes(f"{out}/slice-{number:06d}.parquet", b"")
            assert look() == []


def test_a_job_whose_slice_is_in_work_for_too_long_tells_so_and_goes_on(
    out: str, capfd: pytest.CaptureFixture[str]
) -> None:
    options = launch.pipeline_options.PipelineOptions([])
    with (
        ledger.attempt(out, "slice-000001.parquet", beat_s=0.1),
        watchdog.Watchdog(Watch("test", (out,), out, 5.0), options) as guard,
    ):
        told, deadline = "", time.monotonic() + 120
        while "--element_timeout" not in told and time.monotonic() < deadline:
            told += capfd.readouterr().err
            time.sleep(0.1)
    assert "slice-000001.parquet was in work" in told
    assert guard.stalled is None


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


@pytest.mark.parametrize("handled", [False, True])
def test_a_signal_of_somebody_else_ends_no_command(handled: bool, out: str) -> None:
    heard: list[int] = []
    own = (lambda number, _: heard.append(number)) if handled else signal.SIG_IGN
    before = signal.signal(signal.SIGUSR1, own)
    options = launch.pipeline_options.PipelineOptions([])
    try:
        with watchdog.Watchdog(Watch("test", (out,), out, 3600.0), options) as guard:
            signal.raise_signal(signal.SIGUSR1)
            assert guard.stalled is None
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [signal.SIGUSR1] * handled


def test_what_was_in_work_is_named_with_its_host(out: str) -> None:
    path = files.join(ledger.folder(out), "slice-000003.parquet.dead.json")
    ledger._write(path, "slice-000003.parquet", 12.0)
    with pytest.raises(FusionError, match=r"slice-000003.*was in work on .*12 seconds"):
        run(out, [], stall_timeout=2.0)


def no_job(*_: object, **__: object) -> None:
    raise AssertionError("a job was started that has nothing to do")


def test_a_command_whose_slices_are_all_there_starts_no_job(
    road: str,
    out: str,
    contents: Callable[[str], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = fuse_config(road, out)
    fuse.fuse_scores(config)
    before = contents(out)
    Path(out, manifest.NAME).unlink()
    monkeypatch.setattr(launch, "run", no_job)
    fuse.fuse_scores(config)
    assert contents(out) == before


def test_slices_that_are_only_passed_by_are_signs_of_life(
    road: str, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = fuse_config(road, out)
    fuse.fuse_scores(config)
    work = fuse.work_of(config, fuse.inputs_of(config), fuse.tokenizers_of(config))
    now = [0.0]
    told = types.SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(ledger, "time", told)
    watch = Watch("test", (out,), out, LIMIT_S)
    step = slices._DoSlice(work, Guards(stall_timeout=LIMIT_S))
    step.start_bundle()
    signs = []
    for line in files.read_bytes(f"{config.windows}/{plan.NAME}").splitlines():
        now[0] += LIMIT_S / 2  # as long as a look into a far bucket may take
        assert list(step.process(line.decode()))
        signs.append(watch.sign())
    assert len(signs) > 2
    assert all(one != next_one for one, next_one in itertools.pairwise(signs))
    assert [entry["file"] for entry in ledger.in_work(out)] == ["finished-slices"]
    assert list(step.finish_bundle()) == []
    assert ledger.in_work(out) == []


def test_slices_that_are_passed_by_fast_cost_no_sign(
    out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "time", types.SimpleNamespace(monotonic=lambda: 7.0))
    passing = ledger.Passing(out, beat_s=1.0)
    for _ in range(3):
        passing.sign()
    assert not Path(out).exists()
    passing.end()
