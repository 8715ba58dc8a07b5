import os
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from schemas import files, locks
from tests import ledgers
from tests.transforms import deadly
from transforms import attempts, ledger
from transforms.attempts import Guards

NAME = "slice-000007.parquet"
NFS_S = 60.0
"""Seconds that a client of NFS may keep what it knows of a folder: acdirmax."""


@pytest.fixture
def calls(tmp_path: Path) -> str:
    """Returns a file that gets a line for each call."""
    return str(tmp_path / "calls")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Lets nobody wait for memory, nor for the suspects of other tests."""
    monkeypatch.setattr(attempts, "_PAUSE_S", 0.0)
    monkeypatch.setattr(locks, "_SHARED", tmp_path)


def processes(calls: str) -> list[int]:
    return [int(line) for line in Path(calls).read_text().splitlines()]


def suspect(out: str, times: int = 1) -> None:
    """Leaves what attempts leave whose process died."""
    for number in range(times):
        ledgers.leave_dead(out, NAME, number)


def run(
    out: str,
    call: object,
    *args: object,
    load: Callable[[], object] = deadly.nothing,
    done: Callable[[], bool] = lambda: False,
    **guards: object,
) -> str | None:
    return attempts.run(
        call,  # type: ignore[arg-type]
        *args,
        output=out,
        name=NAME,
        guards=Guards(**guards),  # type: ignore[arg-type]
        load=load,
        done=done,
    )


def test_work_that_ends_leaves_nothing_in_the_ledger(out: str, calls: str) -> None:
    assert run(out, deadly.note, calls) is None
    assert processes(calls) == [os.getpid()]
    assert files.names(ledger.folder(out)) == []


def test_an_error_is_no_death(out: str, calls: str) -> None:
    with pytest.raises(ValueError, match="a window must hold text"):
        run(out, deadly.refuse, calls)
    assert files.names(ledger.folder(out)) == []


def test_work_after_a_death_has_a_process_of_its_own(out: str, calls: str) -> None:
    suspect(out)
    assert run(out, deadly.note, calls) is None
    assert len(processes(calls)) == 1
    assert processes(calls) != [os.getpid()]
    assert files.names(ledger.folder(out)) == []


def test_work_that_was_on_many_lost_machines_is_not_given_up(
    out: str, calls: str
) -> None:
    suspect(out, times=20)
    assert run(out, deadly.note, calls, max_slice_attempts=1) is None
    assert files.names(ledger.folder(out)) == []


def test_work_that_kills_its_process_each_time_is_given_up(
    out: str, calls: str
) -> None:
    suspect(out)
    told = run(out, deadly.die, calls, max_slice_attempts=2)
    assert told is not None
    assert "was killed by SIGKILL: 2 of 2 times" in told
    assert len(processes(calls)) == 2


def test_work_that_kills_fewer_than_so_many_processes_is_done(
    out: str, calls: str
) -> None:
    suspect(out)
    assert run(out, deadly.die, calls, 1, max_slice_attempts=2) is None
    assert len(processes(calls)) == 2


def test_work_that_hangs_is_ended_and_counts_as_a_death(out: str, calls: str) -> None:
    suspect(out)
    told = run(out, deadly.hang, calls, max_slice_attempts=1, element_timeout=0.5)
    assert told is not None
    assert "took longer than 0.5 seconds: 1 of 1 times" in told
    with pytest.raises(ProcessLookupError):
        os.kill(processes(calls)[0], 0)


def test_an_error_in_a_process_of_its_own_is_that_error(out: str, calls: str) -> None:
    suspect(out)
    with pytest.raises(ValueError, match="a window must hold text"):
        run(out, deadly.refuse, calls)
    assert len(processes(calls)) == 1


def test_an_error_that_cannot_travel_is_told_and_is_no_death(
    out: str, calls: str
) -> None:
    suspect(out)
    with pytest.raises(RuntimeError, match="StubbornError: 1 2"):
        run(out, deadly.refuse_stubbornly, calls)
    assert len(processes(calls)) == 1


def test_signs_of_life_are_renewed_while_work_lasts(out: str) -> None:
    with ledger.attempt(out, NAME, beat_s=0.05):
        seen = {str(files.stamps(ledger.folder(out)))}
        deadline = time.monotonic() + 60
        while len(seen) < 3:
            seen.add(str(files.stamps(ledger.folder(out))))
            assert time.monotonic() < deadline
        (told,) = ledger.in_work(out)
    assert told["file"] == NAME
    assert told["pid"] == os.getpid()


def test_what_is_loaded_for_the_work_is_not_of_its_time(out: str, calls: str) -> None:
    load = partial(time.sleep, 1.0)
    limits = {"max_slice_attempts": 1, "element_timeout": 0.5}
    assert run(out, deadly.note, calls, load=load, **limits) is None
    suspect(out)
    assert run(out, deadly.note, calls, load=load, **limits) is None
    assert len(processes(calls)) == 2


def test_an_attempt_whose_process_lives_here_is_no_suspicion(
    out: str, calls: str
) -> None:
    with ledger.attempt(out, NAME, beat_s=20.0):
        begun = time.monotonic()
        assert run(out, deadly.note, calls) is None
        assert time.monotonic() - begun < 5
        assert processes(calls) == [os.getpid()]
        assert len(ledger.left(out, NAME)) == 1


def test_an_attempt_elsewhere_that_gives_signs_of_life_is_no_suspicion(
    out: str, calls: str
) -> None:
    path = ledgers.leave_far(out, NAME, beat_s=5.0)
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.1):
            files.write_bytes(path, files.read_bytes(path) + b" ")

    beats = threading.Thread(target=beat)
    beats.start()
    try:
        assert run(out, deadly.note, calls) is None
    finally:
        over.set()
        beats.join()
    assert processes(calls) == [os.getpid()]
    assert files.exists(path)


def test_an_attempt_elsewhere_that_is_silent_is_a_suspicion(
    out: str, calls: str
) -> None:
    ledgers.leave_far(out, NAME, beat_s=1.0)
    watching = threading.Thread(target=run, args=(out, deadly.note, calls))
    watching.start()
    deadline = time.monotonic() + 60
    while len(ledger.left(out, NAME)) < 2:  # who waits gives signs of life
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not Path(calls).exists()
    watching.join()
    assert processes(calls) != [os.getpid()]
    assert files.names(ledger.folder(out)) == []


def test_work_that_somebody_else_has_done_meanwhile_is_not_done_again(
    out: str, calls: str
) -> None:
    assert run(out, deadly.note, calls, done=lambda: True) is None
    suspect(out)
    assert run(out, deadly.note, calls, done=lambda: True) is None
    suspect(out)
    done = lambda: Path(calls).exists()  # noqa: E731 - after its first death
    assert run(out, deadly.die, calls, done=done) is None
    assert len(processes(calls)) == 1


def test_who_is_killed_is_tried_again_after_ever_longer_pauses(
    out: str, calls: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "_PAUSE_S", 30.0)
    pauses: list[float] = []
    clock = types.SimpleNamespace(sleep=pauses.append)
    monkeypatch.setattr(attempts, "time", clock)
    suspect(out)
    told = run(out, deadly.die, calls)
    assert pauses == [30.0, 60.0]
    assert told is not None
    assert "memory runs out" in told
    assert "start fewer workers" in told


def test_suspects_of_a_machine_go_one_at_a_time(
    out: str, calls: str, caplog: pytest.LogCaptureFixture
) -> None:
    suspect(out)
    file = locks.open_for_all(attempts._lock())
    assert locks.take(file)
    os.write(file, b"4711")
    waiting = threading.Thread(target=run, args=(out, deadly.note, calls))
    waiting.start()
    deadline = time.monotonic() + 60
    while not caplog.records:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not Path(calls).exists()
    assert len(ledger.left(out, NAME)) == 2  # it gives signs of life while it waits
    os.close(file)
    waiting.join()
    assert len(processes(calls)) == 1
    assert "process 4711" in caplog.text


def test_suspects_meet_at_one_lock_whatever_their_jobs_call_temporary(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(tempfile, "tempdir", f"{tmp_path}/{name}")
        found.add(attempts._lock())
    assert len(found) == 1


def test_an_attempt_elsewhere_is_watched_for_longer_than_nfs_may_hide_its_signs() -> (
    None
):
    hidden_s = NFS_S + attempts.MAX_BEAT_S
    assert hidden_s < ledger._SILENT_BEATS * attempts.MAX_BEAT_S


def test_a_child_goes_but_little_before_its_parent_where_memory_runs_out(
    tmp_path: Path,
) -> None:
    score = tmp_path / "oom_score_adj"
    for parent, child in (("0", "20"), ("-998", "-978"), ("995", "1000")):
        score.write_text(f"{parent}\n")
        attempts._go_before_parent(score)
        assert score.read_text() == child


class ClientError(Exception):
    """An error that no module of ours knows."""


def test_signs_of_life_go_on_after_one_failed_whatever_the_error(
    out: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fails = threading.Event()
    write = files.write_bytes
    failed: list[str] = []

    def flaky(path: str, content: bytes) -> None:
        if fails.is_set():
            failed.append(path)
            raise ClientError("401")
        write(path, content)

    monkeypatch.setattr(files, "write_bytes", flaky)
    with ledger.attempt(out, NAME, beat_s=0.05):
        fails.set()
        deadline = time.monotonic() + 60
        while len(failed) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        before = files.stamps(ledger.folder(out))
        fails.clear()
        while files.stamps(ledger.folder(out)) == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    told = [r.getMessage() for r in caplog.records]
    assert len(told) == 1, told
    assert "ClientError: 401" in told[0]


def test_who_works_alone_waits_for_the_others_and_they_for_it() -> None:
    turns = attempts._Turns()
    order: list[str] = []
    begun = threading.Event()

    def alone() -> None:
        begun.set()
        with turns.take(alone=True):
            order.append("alone")

    def beside() -> None:
        with turns.take(alone=False):
            order.append("beside")

    with turns.take(alone=False):
        threads = [threading.Thread(target=alone)]
        threads[0].start()
        begun.wait()
        while not turns._alone:
            time.sleep(0.001)
        threads.append(threading.Thread(target=beside))
        threads[1].start()
        order.append("first")
    for thread in threads:
        thread.join()
    assert order == ["first", "alone", "beside"]


HANGS = """
import sys
from tests.transforms import deadly
from transforms import attempts
attempts.run(deadly.hang, sys.argv[1], output=sys.argv[2], name="slice-000007.parquet",
    guards=attempts.Guards(element_timeout=0.5))
"""


def test_a_process_in_which_work_hangs_ends_and_says_so(out: str, calls: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", HANGS, calls, out],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 1
    assert "slice-000007.parquet must be done within --element_timeout" in ended.stderr
    assert len(ledger.left(out, NAME)) == 1


@pytest.mark.parametrize(
    "wrong",
    [{"max_slice_attempts": 0}, {"element_timeout": 0.0}, {"stall_timeout": -1.0}],
)
def test_guards_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Guards(**wrong)  # type: ignore[arg-type]
