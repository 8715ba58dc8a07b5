"""manifest.json: what a folder holds, how it was made, and what to check it by.

Written last, so that a folder with a manifest is whole. It holds no time, host name or
path but those in `origins`: without these, the same inputs and settings give the same
bytes.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from schemas import files
from schemas.errors import SchemaError

VERSION = 1
NAME = "manifest.json"
_NOTES = "entries"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One data file of a folder; `tokens` is None where the stage counts none."""

    name: str
    rows: int
    tokens: int | None
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The description of a folder.

    Attributes:
      stage: the command that wrote it: windows, scores or fused.
      fingerprint: digest of all that shapes the folder's bytes: settings and inputs.
      settings: the settings of the stage that shape its output, by name.
      inputs: fingerprints of what it was made from, by name (windows, model, ...).
      origins: where the inputs were found, as the command named them, and folders of
        the same run, or models that were merged, as seen from this one (see `origin`);
        of no weight.
      counts: documents, windows, tokens, ... in and out, by name.
      files: the data files by name, in the order of the plan.
      code_version: version of FuseBeam that wrote it.
      quarantined: slices that were given up and are errors throughout, by the name of
        the file, and why; not in the file where there are none.
    """

    stage: str
    fingerprint: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, Any]
    origins: Mapping[str, Any]
    counts: Mapping[str, int]
    files: Sequence[FileEntry]
    code_version: str
    quarantined: Mapping[str, str] = dataclasses.field(default_factory=dict)


def write(folder: str, manifest: Manifest) -> None:
    """Publishes the manifest of a folder."""
    value = {"schema_version": VERSION, **dataclasses.asdict(manifest)}
    if not manifest.quarantined:
        del value["quarantined"]
    files.write_json(files.join(folder, NAME), value)


def present(folder: str) -> bool:
    """Says whether a folder has a manifest, which means that it is whole."""
    return files.exists(files.join(folder, NAME))


def remove_other(folder: str, identity: str) -> bool:
    """Removes the manifest of a folder that other work than this has finished.

    Who has published a file calls it: a command of other settings may have ended the
    folder while the file was in work, and its manifest would not be true any more.

    Args:
      folder: the folder.
      identity: fingerprint of this work, before slices are quarantined.

    Returns:
      Whether there was one.
    """
    path = files.join(folder, NAME)
    if not files.exists(path):
        return False
    with contextlib.suppress(FileNotFoundError):
        found = files.read_json(path)
        told = sealed(identity, found.get("quarantined", {}))
        if found.get("fingerprint") != told:
            files.remove_tree(path)
            return True
    return False


def sealed(identity: str, quarantined: Mapping[str, str]) -> str:
    """Returns the fingerprint of a folder, by what shapes it and what was given up.

    Slices that were given up may be made later: what was made of their errors until
    then must be told from what is made of the rest.
    """
    if not quarantined:
        return identity
    return files.digest([identity, dict(quarantined)])


def losses(folder: str, made: Manifest) -> list[str]:
    """Names the slices that were given up, with the reason and the cure; or nothing."""
    return [
        f"quarantined: {files.join(folder, name)}: {reason}. All its windows count as"
        f" failed; to try again, remove it and {files.join(folder, NAME)}, and"
        " repeat the command"
        for name, reason in made.quarantined.items()
    ]


def read(folder: str, stage: str) -> Manifest:
    """Reads the manifest of a folder that `stage` must have written.

    Raises:
      SchemaError: if there is none, it is of another version or stage, or lacks a
        field; names the folder and the cure.
    """
    path = files.join(folder, NAME)
    if not files.exists(path):
        raise SchemaError(
            f"{folder} must be a finished {stage} folder, but has no {NAME};"
            " run the command that writes it to its end (a repeated command goes on"
            " where it stopped)"
        )
    value = dict(files.read_json(path))
    version = value.pop("schema_version", None)
    if version != VERSION:
        raise SchemaError(
            f"{path} must be of schema version {VERSION}, got {version};"
            " read it with the FuseBeam that wrote it, or write it again"
        )
    if value.get("stage") != stage:
        raise SchemaError(
            f"{folder} must be a {stage} folder, got one of {value.get('stage')!r}"
        )
    try:
        value["files"] = tuple(FileEntry(**entry) for entry in value["files"])
        return Manifest(**value)
    except (KeyError, TypeError) as error:
        raise SchemaError(f"{path} lacks or misspells a field: {error}") from error


def entries(folder: str) -> dict[str, FileEntry]:
    """Returns what a manifest states of a folder's files, whatever stage wrote it.

    Empty where there is none, or one that is not of this version of ours: others call
    files of their own so.
    """
    path = files.join(folder, NAME)
    try:
        found = files.read_json(path) if files.exists(path) else None
        if not isinstance(found, dict) or found.get("schema_version") != VERSION:
            return {}
        return {str(entry["name"]): FileEntry(**entry) for entry in found["files"]}
    except (SchemaError, KeyError, TypeError):
        return {}


def origin(folder: str, made: Manifest, name: str) -> str:
    """Returns where an input of a folder lies, if all was moved together.

    Args:
      folder: the folder, where it is now.
      made: its manifest.
      name: windows, target, ...

    Raises:
      SchemaError: if the manifest names no such input.
    """
    if not isinstance(stored := made.origins.get(name), str):
        raise SchemaError(f"{folder}/{NAME} must say where its {name} came from")
    return files.resolve(folder, stored)


def check_input(folder: str, made: Manifest, key: str, source: str, stage: str) -> None:
    """Checks that what a folder was made of is what is there now.

    Args:
      folder: the folder.
      made: its manifest.
      key: of the input among `inputs`.
      source: where it lies now.
      stage: what wrote it.

    Raises:
      SchemaError: if it is another.
    """
    if made.inputs[key] != read(source, stage).fingerprint:
        raise SchemaError(f"{folder} must be made of the {stage} now in {source}")


def check_count(folder: str, made: Manifest, name: str, found: int) -> None:
    """Checks that as many of something were found as the manifest states.

    Raises:
      SchemaError: if there were more or fewer.
    """
    if made.counts[name] != found:
        raise SchemaError(
            f"{folder}: the manifest states {made.counts[name]} {name}, the files hold"
            f" {found}"
        )


def note_entry(folder: str, entry: FileEntry, fingerprint: str) -> None:
    """Notes what is known of a file just written, until the manifest takes it over.

    Two attempts at one file leave two notes, each named by the content it describes.

    Args:
      folder: the folder of the file.
      entry: what is known of it.
      fingerprint: that of the work which wrote it, as in the file's footer.
    """
    note = f"{entry.name}.{entry.sha256[:16]}.json"
    # Another command may finish the folder now, and with it remove the notes.
    with contextlib.suppress(FileNotFoundError):
        files.write_json(
            files.join(_notes(folder), note),
            {**dataclasses.asdict(entry), "fingerprint": fingerprint},
        )


def noted_entries(
    folder: str, fingerprints: Mapping[str, str | None]
) -> dict[str, FileEntry]:
    """Returns the notes of files that describe, beyond doubt, what is there now.

    A note is in doubt where the file has another size, where other work wrote it, or
    where another attempt's note says otherwise; its file must then be read.

    Args:
      folder: the folder.
      fingerprints: those of the files' footers, by name.
    """
    sizes = {name: size for name, (size, _) in files.stamps(folder).items()}
    found: dict[str, set[FileEntry]] = {}
    for note in files.each(
        lambda name: _note(folder, name), files.names(_notes(folder))
    ):
        if note is None:
            continue
        entry, fingerprint = note
        ours = fingerprints.get(entry.name) == fingerprint
        if ours and sizes.get(entry.name) == entry.bytes:
            found.setdefault(entry.name, set()).add(entry)
    return {name: notes.pop() for name, notes in found.items() if len(notes) == 1}


def _note(folder: str, name: str) -> tuple[FileEntry, str] | None:
    """Reads a note; None where it is gone, as another command finished the folder."""
    try:
        value = dict(files.read_json(files.join(_notes(folder), name)))
    except FileNotFoundError:
        return None
    fingerprint = value.pop("fingerprint")
    return FileEntry(**value), fingerprint


def forget_entries(folder: str) -> None:
    """Drops all notes of a folder whose manifest is written."""
    # A note that comes too late stays, and harms nobody.
    with contextlib.suppress(OSError):
        files.remove_tree(_notes(folder))


def folder_of_note(path: str) -> str | None:
    """Returns the folder that a note is about; None where the path is no note's."""
    notes = files.parent(path)
    temporary = files.parent(notes)
    names = files.name_of(temporary), files.name_of(notes)
    return files.parent(temporary) if names == (files.TEMPORARY, _NOTES) else None


def _notes(folder: str) -> str:
    return files.join(folder, files.TEMPORARY, _NOTES)


def refuse_other(folder: str, found: Manifest, wanted: Mapping[str, Any]) -> None:
    """Refuses to go on in a folder that other settings or inputs have filled.

    Args:
      folder: the folder, for the message.
      found: its manifest.
      wanted: `settings` and `inputs` as they would be written now, flat.

    Raises:
      SchemaError: always, naming the first key that differs, settings before inputs,
        both values and the cure.
    """
    had = {**found.settings, **found.inputs}
    cure = "choose another folder, or pass --overwrite to write this one anew"
    for key in sorted(
        {*had, *wanted}, key=lambda key: (key not in found.settings, key)
    ):
        if key not in had or key not in wanted or had[key] != wanted[key]:
            raise SchemaError(
                f"{folder} was written with {key} = {_shown(had, key)}, and now it is"
                f" {_shown(wanted, key)}; {cure}"
            )
    raise SchemaError(
        f"{folder} was written by another format of the same settings (fingerprint"
        f" {found.fingerprint}, code version {found.code_version}); {cure}"
    )


def _shown(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "not set"
