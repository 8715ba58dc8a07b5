"""Kills stages of the local runner at random instants, and counts what comes of it.

    python -m tests.kill                          100 rounds over all stages
    python -m tests.kill --stage fuse --rounds 10
    python -m tests.kill --page docs/results.md   and writes the counts there

The log is appended to after every round; the same command goes on where it stopped.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

# One thread, so that a fork of this process has all of it.
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

from tests.kill import local, page, rounds


def main() -> int:
    """Does the rounds that are missing; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", nargs="+", choices=local.STAGES)
    parser.add_argument("--rounds", type=int, default=100, help="that landed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, default=Path("build/kill/local.jsonl"))
    parser.add_argument("--page", type=Path, help="write the table into this page")
    given = parser.parse_args()
    folder = given.log.absolute().with_suffix("")
    bench = local.Local(folder)
    shown = " + ".join(f"{name} {s:.1f}" for name, s in bench.undisturbed.items())
    print(f"undisturbed: {sum(bench.undisturbed.values()):.1f} s = {shown}", flush=True)
    done = rounds.go_on(
        bench.kill, given.stage or local.STAGES, given.rounds, given.seed, given.log
    )
    seconds = rounds.shortest(given.log.with_suffix(".seconds.json"), bench.undisturbed)
    table = rounds.table(done, seconds)
    print(table)
    if not all(made.sound for made in done):
        print(
            f"error: round {done[-1].round} is not sound: {done[-1]}; what it left is"
            f" in {folder}/round",
            file=sys.stderr,
        )
        return 1
    if given.page is not None:
        page.write(given.page, "kills", table, done, ["tests.kill", *sys.argv[1:]])
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
