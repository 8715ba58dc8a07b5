import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kill import flink, page, rounds
from tests.kill.rounds import Round

ROOT = Path(__file__).parents[2]
SOUND = Round(
    round=0,
    seed=0,
    target="process",
    stage="fuse",
    killed_after_s=0.5,
    done_before=3,
    landed=True,
    same_bytes=True,
    untouched=True,
    strays=0,
    orphans=2,
    kept=0,
    seconds=1.0,
)


@pytest.mark.slow
def test_stages_that_are_killed_end_with_the_same_bytes_when_repeated(
    tmp_path: Path,
) -> None:
    # In a process of its own, as it forks: this one has threads.
    log = tmp_path / "log.jsonl"
    command = [sys.executable, "-m", "tests.kill", "--rounds=5", f"--log={log}"]
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
    )
    assert ended.returncode == 0, ended.stderr + ended.stdout
    landed = [made for made in rounds.read(log) if made.landed]
    assert {made.stage for made in landed} == {
        "prepare",
        "score",
        "fuse",
        "train",
        "evaluate",
    }


def kills(fates: list[Round]) -> rounds.Kill:
    """Returns what makes rounds of given fates, one after another."""
    waiting = iter(fates)

    def kill(number: int, stage: str, draw: random.Random) -> Round:
        return dataclasses.replace(next(waiting), round=number, stage=stage)

    return kill


def test_only_kills_that_landed_count_and_stages_share_them(tmp_path: Path) -> None:
    late = dataclasses.replace(SOUND, landed=False)
    fates = [SOUND, late, SOUND, SOUND, SOUND]
    done = rounds.go_on(kills(fates), ["score", "fuse"], 4, 0, tmp_path / "log")
    assert [made.stage for made in done if made.landed] == ["score", "fuse"] * 2
    assert done == rounds.read(tmp_path / "log")


def test_a_log_goes_on_where_it_stopped_even_in_the_middle_of_a_line(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    rounds.go_on(kills([SOUND]), ["fuse"], 1, 0, log)
    log.write_text(log.read_text() + '{"round": 1, "se')
    done = rounds.go_on(kills([SOUND]), ["fuse"], 2, 0, log)
    assert [made.round for made in done] == [0, 1]
    assert len(log.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "fate", [{"same_bytes": False}, {"untouched": False}, {"strays": 1}, {"kept": 1}]
)
def test_a_round_that_lost_something_ends_the_rounds(
    fate: dict[str, int], tmp_path: Path
) -> None:
    bad = dataclasses.replace(SOUND, **fate)  # type: ignore[arg-type]
    done = rounds.go_on(kills([SOUND, bad, SOUND]), ["fuse"], 3, 0, tmp_path / "log")
    assert [made.sound for made in done] == [True, False]


def test_contents_leave_out_what_is_in_work_and_how_fast_it_went(
    tmp_path: Path,
) -> None:
    whole = tmp_path / "models" / "metrics.jsonl"
    for path in (whole, tmp_path / "a.partial" / "x", tmp_path / ".tmp" / "n" / "y"):
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"step": 1, "train/tokens_per_s": 1.0}) + "\n")
    before = rounds.contents(tmp_path)
    assert before.keys() == {"models/metrics.jsonl"}
    whole.write_text(json.dumps({"step": 1, "train/tokens_per_s": 2.0}) + "\n")
    assert rounds.contents(tmp_path) == before
    whole.write_text(json.dumps({"step": 2, "train/tokens_per_s": 2.0}) + "\n")
    assert rounds.contents(tmp_path) != before
    assert len(rounds.orphans(tmp_path)) == 2


class Writing:
    """A cluster whose one worker writes to the end."""

    def __init__(self, folder: Path, worker: int) -> None:
        self._folder, self._worker = folder, worker

    def workers(self) -> list[int]:
        (self._folder / "just-before").touch()
        return [self._worker]

    taskmanagers = workers


@pytest.mark.parametrize("target", ["worker", "taskmanager"])
def test_what_a_kill_leaves_is_looked_at_after_the_kill(
    target: str, tmp_path: Path
) -> None:
    bench = object.__new__(flink.Flink)
    with subprocess.Popen(["sleep", "600"]) as worker:
        bench.cluster = Writing(tmp_path, worker.pid)  # type: ignore[assignment]
        struck = bench._strike(target, 0, tmp_path, random.Random(0))
    assert worker.returncode == -signal.SIGKILL
    assert struck is not None
    assert struck.keys() == {"just-before"}


def test_the_page_states_the_counts_of_each_stage(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("<!-- kills: begin -->\n<!-- kills: end -->\n")
    done = [SOUND, dataclasses.replace(SOUND, landed=False)]
    table = rounds.table(done, {"fuse": 2.25})
    page.write(path, "kills", table, done, ["tests.kill", "--rounds", "1"])
    written = path.read_text()
    assert "| fuse | 2.2 | 1 | 0 / 1 | 1 of 1 | 1 of 1 | 0 | 2 | 0 |" in written
    assert "1 kills landed; 1 more" in written
    assert "`python -m tests.kill --rounds 1`" in written
