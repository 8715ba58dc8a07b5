import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from schemas import files
from tests.transforms import deadly
from transforms import attempts, ledger
from transforms.attempts import Guards

NAME = "slice-000007.parquet"


@pytest.fixture
def calls(tmp_path: Path) -> str:
    """Returns a file that gets a line for each call."""
    return str(tmp_path / "calls")


def processes(calls: str) -> list[int]:
    return [int(line) for line in Path(calls).read_text().splitlines()]


def suspect(out: str, times: int = 1) -> None:
    """Leaves what attempts leave whose process died."""
    for number in range(times):
        path = files.join(ledger.folder(out), f"{NAME}.{number:032x}.json")
        ledger._write(path, NAME, 0.0)


def run(out: str, call: object, *args: object, **guards: object) -> str | None:
    return attempts.run(
        call,  # type: ignore[arg-type]
        *args,
        output=out,
        name=NAME,
        guards=Guards(**guards),  # type: ignore[arg-type]
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
    told = run(out, deadly.hang, calls, max_slice_attempts=1, element_timeout=20.0)
    assert told is not None
    assert "took longer than 20 seconds: 1 of 1 times" in told
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
