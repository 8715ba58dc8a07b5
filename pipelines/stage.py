"""A stage: skip what is whole, do the slices that are missing, describe the result."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipelines import launch
from schemas import files, manifest, parquet, plan, version
from schemas.manifest import FileEntry, Manifest
from schemas.plan import Slice
from transforms import slices
from transforms.slices import SliceWork


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
    return Tally(work.output, pieces)()[0] == len(pieces)


class Tally:
    """Counts the slices that are there, and their tokens; reads each footer once."""

    def __init__(self, folder: str, pieces: Sequence[Slice]) -> None:
        self._folder = folder
        self._missing = {piece.output for piece in pieces}
        self._slices = self._tokens = 0

    def __call__(self) -> tuple[int, int]:
        """Returns slices and tokens as of now."""
        there = self._missing & set(files.names(self._folder, ".parquet"))
        self._missing -= there
        self._slices += len(there)
        for name in there:
            footer = parquet.footer(files.join(self._folder, name))
            self._tokens += int(footer.get("tokens", 0))
        return self._slices, self._tokens


def describe(folder: str, names: Sequence[str]) -> list[FileEntry]:
    """Returns the entries of files: as their writers noted them, or by reading them."""
    return [manifest.entry_of(folder, name) or _read(folder, name) for name in names]


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
    """
    footers = [parquet.footer(files.join(folder, name)) for name in names]
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
    for name in names:
        manifest.forget_entry(folder, name)
    files.tidy(folder)
    return made


def total(footers: Sequence[Mapping[str, Any]], *keys: str) -> dict[str, int]:
    """Sums counts over footers."""
    return {key: sum(int(footer[key]) for footer in footers) for key in keys}
