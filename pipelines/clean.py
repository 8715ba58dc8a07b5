"""fusebeam clean: remove what killed commands left behind.

    fusebeam clean runs/demo --dry_run     lists it and removes nothing
    fusebeam clean runs/demo

Everything that a stage writes has a temporary name in a folder `.tmp` until it is
whole; in a bucket it is not there before. A command that is killed leaves such files
there: orphans, which no later command reads. Finished files are never removed, nor is
the work of an interrupted training (`*.partial`), with which the same command goes on.

How it knows that no running command needs a file:

    on this machine's disks   whoever writes a file holds a lock on it, which the kernel
                              drops when the process ends, however it ends; but not
                              on a disk that it exports by NFS
    on buckets, NFS and such  other machines may write there, whose locks cannot be
                              seen: the file has not changed for --older_than hours

Notes of finished slices, by which the command that ends a folder need not read them
again, stay until the folder is finished. Attempts at slices, which a worker renews
every few seconds while it works, are given up after ten minutes without a sign.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from schemas import buckets, files, locks, manifest
from transforms import ledger

OLDER_THAN_HOURS = 24.0
"""Longer than any slice should take."""

SILENT_S = 600.0
"""Many times `attempts.MAX_BEAT_S`, the most between two signs of life."""


def orphans(folder: str) -> list[str]:
    """Finds what may be left behind in and below a folder.

    Raises:
      FileNotFoundError: if there is no such folder.
    """
    if not files.exists(folder):
        raise FileNotFoundError(f"a folder to clean must be there, got {folder!r}")
    fs, plain = files.filesystem(folder)
    below = len(plain.rstrip("/"))
    if _local(folder):
        # Beside a running job; fsspec leaves out a folder one of whose files vanishes.
        there = [f"{top}/{name}" for top, _, names in os.walk(plain) for name in names]
    else:
        there = buckets.ask(folder, fs.find, plain)
    found = [p for p in there if files.TEMPORARY in p[below:].split("/")[:-1]]
    return sorted(files.address(fs, path) for path in found)


def _local(path: str) -> bool:
    return isinstance(files.filesystem(path)[0], LocalFileSystem)


def _age_s(path: str, now: float) -> float:
    """Returns for how long a file has not changed, in seconds."""
    fs, plain = files.filesystem(path)
    return now - float(buckets.ask(path, fs.modified, plain).timestamp())


def needed_by(path: str, older_than_s: float, now: float) -> str | None:
    """Says who may need a temporary file; None where nobody does.

    Args:
      path: the file.
      older_than_s: age from which a file is given up where locks cannot be seen.
      now: the time, in seconds since the epoch.
    """
    noted = manifest.folder_of_note(path)
    if noted is not None and not manifest.present(noted):
        return "the command that ends the folder, which is not finished"
    if files.name_of(files.parent(path)) == ledger.FOLDER:
        silent_s = _age_s(path, now)
        if silent_s < SILENT_S:
            return f"a worker, which gave a sign of life {silent_s:.0f} s ago"
        return None
    if _local(path) and locks.seen_by_all(path):
        return "a running command, which holds it" if _held(path) else None
    age_s = _age_s(path, now)
    if age_s < older_than_s:
        return (
            f"perhaps a command on another machine: it changed {age_s / 3600:.1f} hours"
            f" ago, and --older_than is {older_than_s / 3600:g}"
        )
    return None


def _held(path: str) -> bool:
    try:
        with Path(path).open("r+b") as file:
            return not locks.take(file.fileno())
    except FileNotFoundError:
        return False  # published, or removed by its writer


def remove(path: str) -> bool:
    """Removes an orphan; False where a command took hold of it in the meantime."""
    if not _local(path):
        files.remove_tree(path)
        return True
    try:
        with Path(path).open("r+b") as file:
            # Held while it is removed, so that no writer begins in between.
            if not locks.take(file.fileno()):
                return False
            Path(path).unlink()
    except FileNotFoundError:
        return False
    return True


def clean(
    folders: Sequence[str], *, older_than_s: float, dry_run: bool
) -> tuple[list[str], dict[str, str]]:
    """Removes the orphans in and below folders.

    Args:
      folders: where to look.
      older_than_s: see `needed_by`.
      dry_run: whether to remove nothing.

    Returns:
      What was removed, or would be; and what was left, with who may need it.
    """
    removed, left = [], {}
    now = time.time()
    for folder in folders:
        for path in orphans(folder):
            # What its writer has published or removed meanwhile is nobody's orphan.
            with contextlib.suppress(FileNotFoundError):
                if (needs := needed_by(path, older_than_s, now)) is not None:
                    left[path] = needs
                elif dry_run or remove(path):
                    removed.append(path)
        if not dry_run:
            files.tidy(folder)
    return removed, left


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="fusebeam clean",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folders", nargs="+", help="a run's folder, or a stage's")
    parser.add_argument(
        "--dry_run", "--dry-run", action="store_true", help="list, and remove nothing"
    )
    parser.add_argument(
        "--older_than",
        "--older-than",
        type=float,
        default=OLDER_THAN_HOURS,
        metavar="HOURS",
        help="age from which a file is given up on buckets and network filesystems;"
        " 0 where no other machine is at work (default: %(default)g)",
    )
    given = parser.parse_args(sys.argv[1:] if argv is None else argv)
    removed, left = clean(
        given.folders, older_than_s=given.older_than * 3600, dry_run=given.dry_run
    )
    for path in removed:
        print(f"{'would remove' if given.dry_run else 'removed'} {path}")
    for path, needs in left.items():
        print(f"left {path}: needed by {needs}")
    verb = "to remove" if given.dry_run else "removed"
    print(f"{len(removed)} files {verb}, {len(left)} left")
    return 0


if __name__ == "__main__":
    sys.exit(main())
