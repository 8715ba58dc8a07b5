"""A stage's beginning and end: skip what is whole, describe what was written."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from schemas import files, manifest, parquet, version
from schemas.manifest import FileEntry, Manifest
from schemas.plan import Slice


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


def slices_present(folder: str, slices: Sequence[Slice]) -> int:
    """Counts the slices whose file is there."""
    there = set(files.names(folder, ".parquet"))
    return sum(piece.output in there for piece in slices)


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
