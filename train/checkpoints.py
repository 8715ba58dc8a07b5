"""The work folder of a run, and checkpoints that are whole or not there.

While a run trains, all it writes lies in one local folder beside its output::

    OUTPUT.partial/settings.json             what the run is
    OUTPUT.partial/metrics.jsonl             one line a logged step
    OUTPUT.partial/checkpoints/checkpoint-N  whole once it holds complete.json
    OUTPUT.partial/model                     the output, before it is renamed

A checkpoint is whole when its marker is there; the one before it is removed after that.
So a run killed at any instant goes on from the last whole one.
"""

import json
import os
import pathlib
import shutil
import sys

from schemas import files
from schemas.errors import SchemaError

MARKER = "complete.json"
METRICS = "metrics.jsonl"
_SETTINGS = "settings.json"
_PREFIX = "checkpoint-"


def open_work(work: pathlib.Path, identity: dict[str, object], *, anew: bool) -> None:
    """Makes the work folder, or goes on in that of an interrupted run.

    Args:
      work: the folder.
      identity: settings and inputs of the run, flat.
      anew: whether to remove what a run of other settings left.

    Raises:
      SchemaError: if another run left it and `anew` is off; names the first key that
        differs.
    """
    path = work / _SETTINGS
    if path.exists():
        had = dict(files.read_json(str(path)))
        keys = sorted({*had, *identity})
        differing = [key for key in keys if had.get(key) != identity.get(key)]
        if not differing:
            return
        if not anew:
            key = differing[0]
            raise SchemaError(
                f"{work} is of an unfinished run with {key} = {had.get(key)!r}, and now"
                f" it is {identity.get(key)!r}; choose another output, or pass"
                " --overwrite to start anew"
            )
    shutil.rmtree(work, ignore_errors=True)
    (work / "checkpoints").mkdir(parents=True)
    files.write_json(str(path), identity)


def latest(work: pathlib.Path) -> pathlib.Path | None:
    """Returns the last whole checkpoint, and removes those that are not whole."""
    whole = []
    for folder in sorted((work / "checkpoints").glob(f"{_PREFIX}*"), key=step_of):
        if (folder / MARKER).exists():
            whole.append(folder)
        else:
            shutil.rmtree(folder)
    return whole[-1] if whole else None


def step_of(folder: pathlib.Path) -> int:
    """Returns the optimizer step that a checkpoint was written after."""
    return int(folder.name.removeprefix(_PREFIX))


def complete(folder: pathlib.Path) -> None:
    """Marks a checkpoint as whole, then removes those before it."""
    flush(folder)
    files.write_json(str(folder / MARKER), {"step": step_of(folder)})
    for other in folder.parent.glob(f"{_PREFIX}*"):
        if step_of(other) < step_of(folder):
            # Without its marker first, a removal that is interrupted leaves no
            # checkpoint that looks whole.
            (other / MARKER).unlink(missing_ok=True)
            shutil.rmtree(other)


def flush(folder: pathlib.Path) -> None:
    """Makes sure that the files of a folder are on the disk, not in memory only."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def rewind_metrics(work: pathlib.Path, resume: pathlib.Path | None) -> None:
    """Drops the lines of metrics that come after a checkpoint: they will come again."""
    path, step = work / METRICS, step_of(resume) if resume else 0
    if not path.exists():
        return
    kept = [
        line for line in path.read_text().splitlines() if _step_of_line(line) <= step
    ]
    files.write_bytes(str(path), "".join(f"{line}\n" for line in kept).encode())


def _step_of_line(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except ValueError:  # the line that was being written when the run was killed
        return sys.maxsize
