"""Rounds of killing: their record, the log they are resumed from, and their table.

A round kills a stage once, at an instant drawn from its seed, repeats the command, and
looks at all that is left. Each is a line of a JSON Lines file, written when the round
is over; the same command goes on where the file ends.
"""

import dataclasses
import json
import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from schemas import files

UNFINISHED = ".partial"
"""End of the name of the folder in which a training is at work."""

METRICS = "metrics.jsonl"
SPEEDS = frozenset(
    ("train/tokens_per_s", "train/flops_per_s", "train/mfu", "eval/seconds")
)
"""Figures of METRICS that no two runs have alike."""

Stamp = tuple[int, int]
"""Modification time in ns, and inode."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What came of one kill.

    Attributes:
      round: its number in the log, from 0.
      seed: of the instant.
      target: what was killed: process, taskmanager, worker or launcher.
      stage: which stage was at work.
      killed_after_s: seconds from the stage's start to the kill.
      done_before: finished files of the stage that lay there when it was killed.
      landed: whether the stage was still at work; else the round does not count.
      same_bytes: whether the repeated command ended well and left, file for file, the
        bytes of an undisturbed run.
      untouched: whether it left alone the files that were finished.
      strays: files outside the temporary folders, right after the kill, that an
        undisturbed run does not leave.
      orphans: files left in temporary folders by kill and repetition.
      kept: those of them that `fusebeam clean` left.
      seconds: of the whole round.
    """

    round: int
    seed: int
    target: str
    stage: str
    killed_after_s: float
    done_before: int
    landed: bool
    same_bytes: bool
    untouched: bool
    strays: int
    orphans: int
    kept: int
    seconds: float

    @property
    def sound(self) -> bool:
        """Whether all holds that must hold."""
        return (
            self.same_bytes and self.untouched and self.strays == 0 and self.kept == 0
        )


Kill = Callable[[int, str, random.Random], Round]
"""Does one round: its number, its stage, and what the instant is drawn from."""


def read(log: Path) -> list[Round]:
    """Reads the rounds done so far; a last line that was cut off is no round."""
    if not log.exists():
        return []
    lines = log.read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    log.write_text("".join(whole))
    return [Round(**json.loads(line)) for line in whole]


def go_on(
    kill: Kill, stages: Sequence[str], wanted: int, seed: int, log: Path
) -> list[Round]:
    """Does rounds until `wanted` of them have landed, over all stages alike.

    The stage with the fewest landed rounds is next, so a log says by itself how it goes
    on. Stops at the first round that is not sound, which the log's last line is then.
    """
    done = read(log)
    while sum(r.landed for r in done) < wanted and all(r.sound for r in done):
        stage = min(stages, key=lambda s: sum(r.landed and r.stage == s for r in done))
        number = len(done)
        made = kill(number, stage, random.Random(f"{seed}:{number}"))
        done.append(made)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write(json.dumps(dataclasses.asdict(made)) + "\n")
    return done


def final(folder: Path) -> list[Path]:
    """Lists the files below a folder that lie under their final names."""
    return [path for path in _all(folder) if not _temporary(path, folder)]


def orphans(folder: Path) -> list[Path]:
    """Lists the files below a folder that lie in its temporary folders."""
    return [path for path in _all(folder) if _temporary(path, folder)]


def _all(folder: Path) -> list[Path]:
    return sorted(
        Path(place, name) for place, _, names in os.walk(folder) for name in names
    )


def _temporary(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts[:-1]
    return any(part == files.TEMPORARY or part.endswith(UNFINISHED) for part in parts)


def contents(folder: Path) -> dict[str, str]:
    """Digests every finished file of a folder, without the speeds of a training."""
    return {str(path.relative_to(folder)): _digest(path) for path in final(folder)}


def _digest(path: Path) -> str:
    if path.name != METRICS:
        return files.checksum(str(path))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return files.digest(
        [{k: v for k, v in line.items() if k not in SPEEDS} for line in lines]
    )


def stamps(folder: Path) -> dict[str, Stamp]:
    """Returns which version of each finished file lies there."""
    found = {str(path.relative_to(folder)): path.stat() for path in final(folder)}
    return {name: (stat.st_mtime_ns, stat.st_ino) for name, stat in found.items()}


def shortest(noted: Path, seconds: Mapping[str, float]) -> dict[str, float]:
    """Returns the shortest time of each stage that was seen yet, and notes it.

    A busy machine makes stages slower, and nothing makes them faster.
    """
    had = json.loads(noted.read_text()) if noted.exists() else {}
    found = {name: min(s, had.get(name, s)) for name, s in seconds.items()}
    noted.write_text(json.dumps(found) + "\n")
    return found


def table(rounds: Sequence[Round], undisturbed: Mapping[str, float]) -> str:
    """Writes the counts of each stage, and their sum.

    Args:
      rounds: all of the log, those that did not land among them.
      undisturbed: seconds of each stage when nothing kills it.
    """
    head = (
        "| stage | undisturbed, s | kills | by done files: none / some | same bytes"
        " | finished files untouched | strays | orphans | left by `clean` |"
    )
    lines = [head, "| --- |" + " ---: |" * 8]
    landed = [r for r in rounds if r.landed]
    for stage, seconds in undisturbed.items():
        mine = [r for r in landed if r.stage == stage]
        lines.append(_row(stage, f"{seconds:.1f}", mine))
    lines.append(_row("all", f"{sum(undisturbed.values()):.1f}", landed))
    return "\n".join(lines)


def _row(name: str, seconds: str, mine: Sequence[Round]) -> str:
    some = sum(r.done_before > 0 for r in mine)
    cells = [
        name,
        seconds,
        str(len(mine)),
        f"{len(mine) - some} / {some}",
        f"{sum(r.same_bytes for r in mine)} of {len(mine)}",
        f"{sum(r.untouched for r in mine)} of {len(mine)}",
        str(sum(r.strays for r in mine)),
        str(sum(r.orphans for r in mine)),
        str(sum(r.kept for r in mine)),
    ]
    return "| " + " | ".join(cells) + " |"
