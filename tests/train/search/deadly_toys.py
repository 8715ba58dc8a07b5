"""A search that is killed at each of its instants, and once more, in processes.

    python -m tests.train.search.deadly_toys FOLDER

The instants are those at which a trial is proposed or measured, and a file is written,
synced or renamed. It fails unless every search ends with the bytes of one that nobody
killed.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from schemas import files
from tests.train.search import toys
from train.search import strategies

BUDGET = 9
"""A population and the first of the next."""


def counted(
    call: Callable[..., Any], done: list[int], fatal: int
) -> Callable[..., Any]:
    """Returns a call that kills its process where it is the fatal one of all."""

    def counting(*args: Any, **more: Any) -> Any:
        done[0] += 1
        if done[0] == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **more)

    return counting


def die(path: Path, fatal: int) -> None:
    """Searches till the fatal instant."""
    done = [0]
    for owner, name in (
        (strategies.Evolution, "propose"),
        (strategies.Evolution, "learn"),
        (toys, "bowl"),
        (os, "fsync"),
        (os, "replace"),
        (files, "write_json"),
    ):
        setattr(owner, name, counted(getattr(owner, name), done, fatal))
    toys.run(path, budget=BUDGET)


def killed(path: Path, fatal: int) -> bool:
    """Searches in a process of its own; says whether it was killed."""
    child = os.fork()
    if not child:
        die(path, fatal)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def main(folder: Path) -> int:
    """Returns how many instants there were; fails where one did harm."""
    toys.run(folder / "whole.json", budget=BUDGET)
    wanted = (folder / "whole.json").read_bytes()
    fatal = 0
    while True:
        fatal += 1
        path = folder / f"killed-{fatal}.json"
        if not killed(path, fatal):
            break
        killed(path, 11)  # a trial and a half later
        assert not killed(path, sys.maxsize)
        assert path.read_bytes() == wanted, f"killed at instant {fatal}"
    return fatal - 1


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
