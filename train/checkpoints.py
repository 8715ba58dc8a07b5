"""The work folder of a run, and checkpoints that are whole or not there.

While a run trains, all it writes lies in one local folder beside its output::

    OUTPUT.partial/settings.json             what the run is
    OUTPUT.partial/metrics.jsonl             one line a logged step
    OUTPUT.partial/checkpoints/checkpoint-N  whole once it holds complete.json
    OUTPUT.partial/model                     the output, before it is renamed
    OUTPUT.partial/adapter                   adapters, before they are merged into it
    OUTPUT.partial/old                       what it replaces, until that is done
    OUTPUT.partial/lock                      is locked by the command that is at work

With checkpoints elsewhere the last three stay beside the output, on its disk, and the
other folder has a lock of its own.

A checkpoint is whole when its marker is there; the one before it is removed after that.
So a run killed at any instant goes on from the last whole one.
"""

import contextlib
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Mapping

from schemas import files, locks
from schemas.errors import SchemaError

MARKER = "complete.json"
METRICS = "metrics.jsonl"
MODEL = "model"
STANDING = "heldout.json"
"""Beside the weights: how evaluations went, and whether the best checkpoint stays."""

OLD = "old"
ADAPTER = "adapter"
_SETTINGS = "settings.json"
_FOLDER = "checkpoints"
_PREFIX = "checkpoint-"
_OURS = frozenset((_SETTINGS, METRICS, _FOLDER, MODEL, OLD, ADAPTER, files.TEMPORARY))


def discard(folder: pathlib.Path) -> None:
    """Removes a work folder that is held, but nothing in it that is not ours."""
    _clear(folder)
    (folder / locks.NAME).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # others' files, or the next command's lock
        folder.rmdir()


def discard_left(folder: pathlib.Path) -> None:
    """Removes what a finished run left, unless another command is at work there."""
    if folder.exists() and (lock := locks.take_folder(folder)) is not None:
        discard(folder)
        os.close(lock)


def _clear(folder: pathlib.Path) -> None:
    for name in _OURS:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def open_work(work: pathlib.Path, identity: dict[str, object], *, anew: bool) -> None:
    """Lays out the work folder, or goes on in that of an interrupted run.

    Args:
      work: the folder, which is held.
      identity: settings and inputs of the run, flat. The parts of a step may be others
        than before.
      anew: whether to remove what a run of other settings left.

    Raises:
      SchemaError: if another run left it and `anew` is off; names the first key that
        differs. If it holds files of others, which would be in danger.
    """
    path = work / _SETTINGS
    if path.exists():
        had = dict(files.read_json(str(path)))
        keys = sorted({*had, *identity} - free(identity))
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
    elif others := sorted(
        {entry.name for entry in work.iterdir()} - _OURS - {locks.NAME}
    ):
        raise SchemaError(
            f"{work} must be a folder for checkpoints alone, but holds {others[0]!r};"
            " give a folder that is new or empty as --checkpoints"
        )
    _clear(work)
    (work / _FOLDER).mkdir(parents=True)
    files.write_json(str(path), identity)


def free(identity: Mapping[str, object]) -> set[str]:
    """Names the settings that may change where a run goes on.

    The parts of a step add up to it, however many: on fewer processes there must be
    more of them. But under `reference` the means are over each part.
    """
    return set() if identity.get("reference") else {"accumulation"}


def latest(work: pathlib.Path) -> pathlib.Path | None:
    """Returns the last whole checkpoint, and removes those that are not whole."""
    whole = []
    for folder in sorted((work / _FOLDER).glob(f"{_PREFIX}*"), key=step_of):
        if (folder / MARKER).exists():
            whole.append(folder)
        else:
            shutil.rmtree(folder)
    return whole[-1] if whole else None


def step_of(folder: pathlib.Path) -> int:
    """Returns the optimizer step that a checkpoint was written after."""
    return int(folder.name.removeprefix(_PREFIX))


def complete(folder: pathlib.Path) -> None:
    """Marks a checkpoint as whole, then removes those before it, but for the best."""
    flush(folder)
    files.write_json(str(folder / MARKER), {"step": step_of(folder)})
    best = _kept(folder)
    for other in folder.parent.glob(f"{_PREFIX}*"):
        if step_of(other) < step_of(folder) and step_of(other) != best:
            # Without its marker first, a removal that is interrupted leaves no
            # checkpoint that looks whole.
            (other / MARKER).unlink(missing_ok=True)
            shutil.rmtree(other)


def of_step(work: pathlib.Path, step: int) -> pathlib.Path:
    """Returns where the checkpoint after a step lies."""
    return work / _FOLDER / f"{_PREFIX}{step}"


def _kept(folder: pathlib.Path) -> int | None:
    """Returns the step of the earlier checkpoint that a checkpoint needs, if any."""
    path = folder / STANDING
    told = files.read_json(str(path)) if path.exists() else {"keep": False}
    return told["best_step"] if told["keep"] else None


def flush(folder: pathlib.Path) -> None:
    """Makes sure that the files of a folder are on the disk, not in memory only."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def rewind_metrics(work: pathlib.Path, resume: pathlib.Path | None) -> None:
    """Drops the lines of metrics that come after a checkpoint: they will come again."""
    path, step = work / METRICS, step_of(resume) if resume else -1
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
