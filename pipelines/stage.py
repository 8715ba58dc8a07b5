"""A stage: skip what is whole, do the slices that are missing, describe the result."""

import concurrent.futures
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pipelines import launch
from schemas import files, manifest, parquet, plan, version
from schemas.errors import SchemaError
from schemas.manifest import FileEntry, Manifest
from schemas.plan import Slice
from transforms import slices
from transforms.slices import SliceWork

Item = TypeVar("Item")
Result = TypeVar("Result")

_CALLS = 32  # to a bucket, at once
_OURS = re.compile(r"(part|slice)-\d+\.parquet")


def whole(
    folder: str,
    stage: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Any],
    *,
    overwrite: bool,
) -> bool:
    """Says whether a folder is finished and was made by these settings and inputs.

    Raises:
      SchemaError: if it was made by others and `overwrite` is off.
    """
    if not manifest.present(folder):
        return False
    found = manifest.read(folder, stage)
    if found.fingerprint == identity(stage, settings, inputs):
        return True
    if not overwrite:
        manifest.refuse_other(folder, found, {**settings, **inputs})
    # What follows is written beside old files: the folder is not whole till the end.
    files.remove_tree(files.join(folder, manifest.NAME))
    return False


def identity(stage: str, settings: Mapping[str, Any], inputs: Mapping[str, Any]) -> str:
    """Digests all that shapes the bytes of a folder."""
    return files.digest(
        {
            "stage": stage,
            "schema_version": manifest.VERSION,
            "settings": dict(settings),
            "inputs": dict(inputs),
        }
    )


def do_slices(
    name: str,
    work: SliceWork,
    windows: str,
    chosen: str | None,
    runner_flags: Sequence[str],
) -> bool:
    """Does the slices of a plan that are missing, and shows how far it is.

    Args:
      name: of the stage, for people.
      work: what to do with a slice.
      windows: the windows folder whose plan it is.
      chosen: "A-B" for these slices alone, without a runner; None for all.
      runner_flags: Beam's own.

    Returns:
      Whether all slices of the plan are there now.
    """
    pieces = plan.read(windows)
    mine = plan.select(pieces, chosen)
    with launch.Progress(name, len(mine), Tally(work.output, mine)):
        if chosen is None:
            job = name >> slices.DoSlices(windows, work)
            launch.run(lambda root: root | job, runner_flags)
        else:
            for piece in mine:
                slices.do_slice(work, piece)
    missing = len(pieces) - sum(_each(functools.partial(_is_of, work), pieces))
    if missing and chosen is None:
        raise RuntimeError(
            f"all {len(pieces)} slices must be in {work.output} when the job has ended,"
            f" but {missing} are not, or are of other settings; repeat the command"
        )
    return not missing


def _is_of(work: SliceWork, piece: Slice) -> bool:
    """Says whether the file of a slice is there, and of this work."""
    path = files.join(work.output, piece.output)
    if not files.exists(path):
        return False
    return parquet.footer(path).get("fingerprint") == work.fingerprint(piece)


def _each(do: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Calls a function that waits for a bucket on each item, many at once."""
    with concurrent.futures.ThreadPoolExecutor(_CALLS) as pool:
        return list(pool.map(do, items))


class Tally:
    """Counts the slices that are there, and the tokens of those made meanwhile."""

    def __init__(self, folder: str, pieces: Sequence[Slice]) -> None:
        self._folder = folder
        self._missing = {piece.output for piece in pieces}
        self._slices = self._tokens = 0
        self._begun = False

    def __call__(self) -> tuple[int, int]:
        """Returns slices and tokens as of now."""
        there = self._missing & set(files.names(self._folder, ".parquet"))
        self._missing -= there
        self._slices += len(there)
        if self._begun:
            self._tokens += sum(_each(self._tokens_of, there))
        self._begun = True
        return self._slices, self._tokens

    def _tokens_of(self, name: str) -> int:
        return int(parquet.footer(files.join(self._folder, name)).get("tokens", 0))


def describe(folder: str, names: Sequence[str]) -> list[FileEntry]:
    """Returns the entries of files: as their writers noted them, or by reading them."""
    return _each(
        lambda name: manifest.entry_of(folder, name) or _read(folder, name), names
    )


def _read(folder: str, name: str) -> FileEntry:
    path = files.join(folder, name)
    return FileEntry(
        name=name,
        rows=parquet.metadata(path).num_rows,
        tokens=parquet.footer(path).get("tokens"),
        bytes=files.size(path),
        sha256=files.checksum(path),
    )


def finish(
    folder: str,
    stage: str,
    *,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Any],
    origins: Mapping[str, Any],
    names: Sequence[str],
    count: Callable[[Sequence[Mapping[str, Any]]], dict[str, int]],
    overwrite: bool,
) -> Manifest:
    """Writes the manifest of a folder whose files are all there.

    Args:
      folder: the folder.
      stage: the command that wrote it.
      settings: those that shape the output.
      inputs: fingerprints of what it was made from.
      origins: where that was found, as the command named it.
      names: the files, in the order of the plan.
      count: makes the folder's counts of its files' footers.
      overwrite: whether files of earlier work that are not among `names` are removed.

    Raises:
      SchemaError: if there are such files and `overwrite` is off.
    """
    _remove_others(folder, names, overwrite=overwrite)
    footers = _each(lambda name: parquet.footer(files.join(folder, name)), names)
    made = Manifest(
        stage=stage,
        fingerprint=identity(stage, settings, inputs),
        settings=settings,
        inputs=inputs,
        origins=origins,
        counts=count(footers),
        files=describe(folder, names),
        code_version=version.VERSION,
    )
    manifest.write(folder, made)
    _each(functools.partial(manifest.forget_entry, folder), names)
    files.tidy(folder)
    return made


def _remove_others(folder: str, names: Sequence[str], *, overwrite: bool) -> None:
    """Removes files of ours that an earlier, larger input has left."""
    there = [name for name in files.names(folder, ".parquet") if _OURS.fullmatch(name)]
    others = sorted(set(there) - set(names))
    if others and not overwrite:
        raise SchemaError(
            f"{folder} must hold the files of this work alone, but holds {others[0]}"
            f" ({len(others)} others in all); choose another folder, or pass"
            " --overwrite to remove them"
        )
    for name in others:
        files.remove_tree(files.join(folder, name))


def total(footers: Sequence[Mapping[str, Any]], *keys: str) -> dict[str, int]:
    """Sums counts over footers."""
    return {key: sum(int(footer[key]) for footer in footers) for key in keys}
