"""Kills TaskManagers, Python workers and launchers of jobs on a real Flink.

    python -m tests.kill.flink --rounds 20 --seed 0 --log build/kill/flink.jsonl

The first round needs what `make test-flink` sets up. What is killed, with which
environment and on how many slots follows from the round's number; the instant is drawn:
so many finished files, and a part of a second more. A TaskManager that was killed is
replaced, and a launcher's command is given again, while the first job may still run.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

# One thread, so that a fork of this process has all of it.
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

from deploy.flink.cluster import BOOT, Cluster
from pipelines import cli
from tests.flink import road
from tests.kill import local, page, rounds
from tests.kill.rounds import Round

TARGETS = ("taskmanager", "worker", "launcher")
ENVIRONMENTS = ("PROCESS", "EXTERNAL")
SLOTS = (4, 2)
STAGES = {"prepare": "windows", "score": "scores/target", "fuse": "fused"}
END_S = 1800.0
PERIOD_S = 0.1


class Flink:
    """A cluster, a small recipe run locally on it, and the kills of its stages."""

    def __init__(self, folder: Path) -> None:
        """Makes inputs and the undisturbed local run, and starts a cluster."""
        self._folder = folder
        self._reference = folder / "reference"
        if not (self._reference / "whole").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _succeed(lambda: road.make_inputs(folder / "inputs") or 0, folder)
            _succeed(self._run_all, self._reference)
            (self._reference / "whole").touch()
        self._contents = rounds.contents(self._reference / local.RUN)
        self.cluster = Cluster(folder / "cluster")
        self.cluster.start()
        self.cluster.add_job_server()
        self.cluster.add_pool()

    def _run_all(self) -> int:
        return max(
            cli.main(words) for words in self._commands(self._reference).values()
        )

    def _commands(self, folder: Path) -> dict[str, list[str]]:
        return road.commands(road.read(self._folder / "inputs", folder / local.RUN))

    def flags(self, number: int) -> list[str]:
        """Returns the runner's flags of a round."""
        environment = ENVIRONMENTS[number // len(TARGETS) % len(ENVIRONMENTS)]
        config = {
            "PROCESS": f'{{"command": "{BOOT}"}}',
            "EXTERNAL": self.cluster.pool,
        }
        return [
            *("--runner=FlinkRunner", "--flink_version=1.19"),
            f"--flink_master={self.cluster.master}",
            f"--job_endpoint={self.cluster.job_server}",
            f"--parallelism={SLOTS[number // 2 % len(SLOTS)]}",
            f"--environment_type={environment}",
            f"--environment_config={config[environment]}",
        ]

    def kill(self, number: int, stage: str, draw: random.Random) -> Round:
        """Kills once while a stage is at work, lets it end, and compares."""
        begun = time.monotonic()
        target = TARGETS[(number + number // len(STAGES)) % len(TARGETS)]
        folder = self._folder / "round"
        run, mine = folder / local.RUN, folder / local.RUN / STAGES[stage]
        expected = self._lay_out(stage, folder)
        words = self._commands(folder)[STAGES[stage]] + self.flags(number)
        after_files = draw.randrange(_finished(self._reference / local.RUN, stage))
        later = draw.uniform(0, 1)
        launcher = local.start(lambda: cli.main(words), folder)
        self._await_instant(launcher, target, run, stage, after_files)
        time.sleep(later)
        before = rounds.stamps(run)
        instant = time.monotonic() - begun
        struck = None if _ended(launcher) else self._strike(target, launcher, run, draw)
        if struck is not None and target == "taskmanager":
            self.cluster.add_taskmanager()
        status = self._wait(launcher)
        if struck is not None and target == "launcher":
            status = self._wait(local.start(lambda: cli.main(words), folder))
        self._await_quiet()
        left, now = rounds.orphans(run), rounds.stamps(run)
        same = status == 0 and rounds.contents(run) == expected
        _succeed(local.do_clean, folder)
        return Round(
            round=number,
            seed=number,
            target=target,
            stage=stage,
            killed_after_s=round(instant, 3),
            done_before=sum(n.startswith(STAGES[stage]) for n in before),
            landed=struck is not None,
            same_bytes=same,
            untouched=all(now.get(n) == before[n] for n in _units(before)),
            strays=len((struck or before).keys() - expected.keys()),
            orphans=len(left),
            kept=len(rounds.orphans(mine)),
            seconds=round(time.monotonic() - begun, 1),
        )

    def _lay_out(self, stage: str, folder: Path) -> dict[str, str]:
        """Copies what a stage reads; returns what shall lie there when it is done."""
        shutil.rmtree(folder, ignore_errors=True)
        inputs = {"prepare": (), "score": ("windows",), "fuse": ("windows", "scores")}
        for name in inputs[stage]:
            shutil.copytree(
                self._reference / local.RUN / name, folder / local.RUN / name
            )
        places = tuple(f"{name}/" for name in (*inputs[stage], STAGES[stage]))
        return {n: d for n, d in self._contents.items() if n.startswith(places)}

    def _await_instant(
        self, launcher: int, target: str, run: Path, stage: str, after_files: int
    ) -> None:
        """Waits until so many files are finished, and there is somebody to kill."""

        def come() -> bool:
            if _ended(launcher):
                return True
            if _finished(run, stage) < after_files:
                return False
            if target == "worker":
                return bool(self.cluster.workers())
            return target == "launcher" or bool(self._running())

        _until(come, "the stage must come so far")

    def _strike(
        self, target: str, launcher: int, run: Path, draw: random.Random
    ) -> dict[str, rounds.Stamp] | None:
        """Kills one, unless all have ended since they were last seen.

        Returns:
          What lies there right after; None if nothing was killed.
        """
        alive = {
            "taskmanager": self.cluster.taskmanagers,
            "worker": self.cluster.workers,
            "launcher": lambda: [launcher],
        }[target]()
        if not alive:
            return None
        try:
            os.kill(draw.choice(alive), signal.SIGKILL)
        except ProcessLookupError:
            return None
        return rounds.stamps(run)

    def _wait(self, launcher: int) -> int:
        _until(lambda: _ended(launcher), "the command must end")
        return local.wait(launcher)

    def _running(self) -> list[str]:
        jobs = self.cluster.ask("/jobs/overview")["jobs"]
        over = ("FINISHED", "FAILED", "CANCELED")
        return [job["jid"] for job in jobs if job["state"] not in over]

    def _await_quiet(self) -> None:
        """Waits until no job runs and no worker is left, as a round must leave it."""
        _until(
            lambda: (
                not self._running()
                and not self.cluster.workers()
                and _is_settled(self.cluster)
            ),
            "jobs and workers must end when nobody waits for them",
        )


def _is_settled(cluster: Cluster) -> bool:
    """Says whether the JobManager knows the TaskManagers that run, and no others.

    It takes a lost one for there until `heartbeat.timeout`.
    """
    return cluster._started() == cluster._known()


def _finished(run: Path, stage: str) -> int:
    """Counts the finished files of data of a stage."""
    return len([p for p in rounds.final(run / STAGES[stage]) if p.suffix == ".parquet"])


def _units(names: dict[str, rounds.Stamp]) -> set[str]:
    return local._done(names.keys())


def _ended(pid: int) -> bool:
    """Says whether a child has ended, without taking its status."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _until(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + END_S
    while not holds():
        if time.monotonic() > end:
            raise RuntimeError(f"{what}, but has not within {END_S:g} s")
        time.sleep(PERIOD_S)


def _succeed(work: Callable[[], int], folder: Path) -> None:
    local._succeed(work, folder)


def table(done: list[Round]) -> str:
    """Writes the counts of each target."""
    lines = [
        "| killed | kills | prepare / score / fuse | finished files at the kill |"
        " same bytes | finished files untouched | orphans | left by `clean` |",
        "| --- |" + " ---: |" * 7,
    ]
    landed = [r for r in done if r.landed]
    for name in (*TARGETS, "all"):
        mine = [r for r in landed if name in (r.target, "all")]
        stages = " / ".join(str(sum(r.stage == s for r in mine)) for s in STAGES)
        files = [r.done_before for r in mine] or [0]
        cells = [
            name,
            str(len(mine)),
            stages,
            f"{min(files)} to {max(files)}",
            f"{sum(r.same_bytes for r in mine)} of {len(mine)}",
            f"{sum(r.untouched for r in mine)} of {len(mine)}",
            str(sum(r.orphans for r in mine)),
            str(sum(r.kept for r in mine)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Does the rounds that are missing; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", nargs="+", choices=tuple(STAGES))
    parser.add_argument("--rounds", type=int, default=20, help="that landed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, default=Path("build/kill/flink.jsonl"))
    parser.add_argument("--page", type=Path, help="write the table into this page")
    given = parser.parse_args()
    folder = given.log.absolute().with_suffix("")
    bench = Flink(folder)
    try:
        done = rounds.go_on(
            bench.kill,
            given.stage or tuple(STAGES),
            given.rounds,
            given.seed,
            given.log,
        )
    finally:
        bench.cluster.stop()
    print(table(done))
    if not all(made.sound for made in done):
        print(
            f"error: round {done[-1].round} is not sound: {done[-1]}; what it left is"
            f" in {folder}/round",
            file=sys.stderr,
        )
        return 1
    if given.page is not None:
        command = ["tests.kill.flink", *sys.argv[1:]]
        page.write(given.page, "flink kills", table(done), done, command)
    return 0


if __name__ == "__main__":
    sys.exit(main())
