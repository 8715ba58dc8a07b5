"""A stage: skip what is whole, do the slices that are missing, describe the result."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import apache_beam as beam

from pipelines import launch, tally
from pipelines.watchdog import Watch
from schemas import files, manifest, parquet, plan, version
from schemas.errors import FusionError
from schemas.manifest import FileEntry, Manifest
from schemas.plan import Slice
from transforms import ledger, slices
from transforms.attempts import Guards
from transforms.slices import QUARANTINED, SliceWork

_TRIES = 9
_OURS = re.compile(r"(part|slice)-\d{6,}\.(parquet|jsonl)")


def whole(
    folder: str,
    stage: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Any],
    *,
    overwrite: bool,
    dry: bool = False,
) -> bool:
    """Says whether a folder is finished and was made by these settings and inputs.

    One that will be written anew loses its manifest, unless this is a dry run.

    Raises:
      SchemaError: if it was made by others and `overwrite` is off.
    """
    if not manifest.present(folder):
        return False
    found = manifest.read(folder, stage)
    wanted = identity(stage, settings, inputs)
    if found.fingerprint == manifest.sealed(wanted, found.quarantined):
        return True
    if not overwrite:
        manifest.refuse_other(folder, found, {**settings, **inputs})
    if not dry:
        # What follows is written beside old files: it is not whole till the end.
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


def refuse_others(work: SliceWork, windows: str) -> None:
    """Looks whether slices of other work are in the way, before anything is written.

    One of them tells, as a folder is one work's; each is looked at when it is done.

    Raises:
      SchemaError: if there is one and `work.overwrite` is off.
    """
    there = set(files.names(work.output, ".parquet"))
    for piece in plan.read(windows) if there and not work.overwrite else ():
        if piece.output in there:
            parquet.done(files.join(work.output, piece.output), work.fingerprint(piece))
            return


def do_slices(
    name: str,
    work: SliceWork,
    windows: str,
    chosen: str | None,
    runner_flags: Sequence[str],
    *,
    describe: Callable[[], Any],
    reads: Sequence[str] = (),
    hints: Mapping[str, str] | None = None,
    guards: Guards | None = None,
) -> bool:
    """Does the slices of a plan that are missing, and shows how far it is.

    Where none is missing no job is started.

    Args:
      name: of the stage, for people.
      work: what to do with a slice.
      windows: the windows folder whose plan it is.
      chosen: "A-B" for these slices alone, without a runner; None for all.
      runner_flags: Beam's own.
      describe: writes the manifest; a job that nobody awaits does it as its last step.
      reads: what workers open besides the windows: folders and models, as named.
      hints: what a worker needs to do a slice.
      guards: when the job, or a slice, is given up.

    Returns:
      Whether all slices of the plan are there now, made by this work: then the caller
      describes them.

    Raises:
      FusionError: if a job over all slices ended without some of them.
      SchemaError: if slices beside the chosen ones are there, made by other settings,
        and `work.overwrite` is off.
    """
    pieces, guards = plan.read(windows), guards or Guards()
    mine = plan.select(pieces, chosen)
    prints = {piece.output: work.fingerprint(piece) for piece in mine}
    done = tally.Tally(work.output, prints, tally.in_parquet)
    missing = done.missing()
    with launch.Progress(name, len(mine), done):
        if chosen is not None:
            for piece in mine:
                slices.do_slice(work, piece, guards)
        elif missing or launch.left_alone(runner_flags):
            job = name >> slices.DoSlices(windows, work, hints or {}, guards)
            launch.run(
                lambda root: ending(root | job, describe, runner_flags),
                runner_flags,
                Watch(name, (work.output,), work.output, guards.stall_timeout),
                reads=(windows, *reads),
            )
            if launch.left_alone(runner_flags):
                return False
    if chosen is not None:
        return _others_are_there(work, pieces)
    if left := done.missing():
        raise FusionError(
            f"all {len(pieces)} slices must be in {work.output} when the job has ended,"
            f" but only {len(pieces) - len(left)} are; do the workers write to the"
            " folder that is read here? The same command does those that are missing"
        )
    return True


def ending(
    names: beam.PCollection[str],
    describe: Callable[[], Any],
    runner_flags: Sequence[str],
) -> beam.PCollection[str]:
    """Lets a job that nobody awaits write its manifest itself."""
    if launch.left_alone(runner_flags):
        return names | "Describe" >> slices.Afterwards(describe)
    return names


def unfinished(chosen: str | None, runner_flags: Sequence[str]) -> str:
    """Returns what to say where a command ends without a manifest."""
    if chosen is None:
        return launch.parting_words(runner_flags)
    return f"slices {chosen} done; others are missing, so no manifest yet"


def _others_are_there(work: SliceWork, pieces: Sequence[Slice]) -> bool:
    """Says whether all slices are there, done by several commands, one after another.

    Raises:
      SchemaError: if some were made by other work and `work.overwrite` is off.
    """
    if not {piece.output for piece in pieces} <= set(files.names(work.output)):
        return False  # cheaper than a look into hundreds of files after each command

    def done(piece: Slice) -> bool:
        path = files.join(work.output, piece.output)
        return parquet.done(path, work.fingerprint(piece), overwrite=work.overwrite)

    return all(files.each(done, pieces))


def remove_others(folder: str, names: Collection[str]) -> None:
    """Removes the files of ours that are not among `names`.

    An earlier run had more of them, and they were not written anew. What is not called
    as our files are is left alone.
    """
    for name in _ours(folder):
        if name not in names:
            files.remove_tree(files.join(folder, name))


def _ours(folder: str) -> list[str]:
    return [name for name in files.names(folder) if _OURS.fullmatch(name)]


def describe(
    folder: str, names: Sequence[str], footers: Sequence[Mapping[str, Any]]
) -> list[FileEntry]:
    """Returns the entries of files: as their writers noted them, or by reading them."""
    fingerprints = {
        name: footer.get("fingerprint")
        for name, footer in zip(names, footers, strict=True)
    }
    noted = manifest.noted_entries(folder, fingerprints)
    return files.each(lambda name: noted.get(name) or entry(folder, name), names)


def entry(folder: str, name: str) -> FileEntry:
    """Returns the entry of a file, by reading it; rows and tokens are of Parquet."""
    path, rows, tokens = files.join(folder, name), 0, None
    if name.endswith(".parquet"):
        rows = parquet.metadata(path).num_rows
        tokens = parquet.footer(path).get("tokens")
    return FileEntry(
        name=name,
        rows=rows,
        tokens=tokens,
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
    """Writes the manifest of a folder whose files are all there, and no others of ours.

    Args:
      folder: the folder.
      stage: the command that wrote it.
      settings: those that shape the output.
      inputs: fingerprints of what it was made from.
      origins: where that was found, as the command named it.
      names: the files, in the order of the plan.
      count: makes the folder's counts of its files' footers.
    """
    wanted = identity(stage, settings, inputs)

    def made() -> Manifest:
        footers = files.each(
            lambda name: parquet.footer(files.join(folder, name)), names
        )
        quarantined = _quarantined(folder, stage, wanted, names, footers)
        found = Manifest(
            stage=stage,
            fingerprint=manifest.sealed(wanted, quarantined),
            settings=settings,
            inputs=inputs,
            origins={n: _seen_from(folder, n, at) for n, at in origins.items()},
            counts=count(footers),
            files=describe(folder, names, footers),
            code_version=version.VERSION,
            quarantined=quarantined,
        )
        remove_others(folder, set(names))
        return found

    return at_rest(folder, names, made)


def at_rest(
    folder: str, names: Sequence[str], made: Callable[[], Manifest]
) -> Manifest:
    """Writes the manifest of a folder whose files are not written meanwhile.

    Args:
      folder: the folder.
      names: the files that others may write.
      made: looks into them and returns the manifest.

    Raises:
      FusionError: if they never are at rest.
    """
    for _ in range(_TRIES):
        stamps = _stamps(folder, names)
        found = made()
        manifest.write(folder, found)
        if _stamps(folder, names) == stamps:
            manifest.forget_entries(folder)
            ledger.forget(folder)
            files.tidy(folder)
            return found
        # Another command writes here: what was described is not what is there.
        files.remove_tree(files.join(folder, manifest.NAME))
    raise FusionError(
        f"{folder} must be at rest when it is described, but its files were written"
        f" {_TRIES} times meanwhile; let the other command that works in it end, and"
        " repeat this one"
    )


def _quarantined(
    folder: str,
    stage: str,
    wanted: str,
    names: Sequence[str],
    footers: Sequence[Mapping[str, Any]],
) -> dict[str, str]:
    """Returns why which slices were given up.

    Raises:
      FusionError: if a slice was made by other settings; names it.
    """
    found = {}
    for name, footer in zip(names, footers, strict=True):
        if "digest" in footer:  # a slice, and not a part of a corpus
            own = files.digest([stage, wanted, footer["digest"]])
            if footer["fingerprint"] != own:
                raise FusionError(
                    f"{folder}/{name} must be of this command's settings when its"
                    " folder is described, but another command wrote it anew meanwhile;"
                    " give each its own folder, and repeat this one"
                )
        if QUARANTINED in footer:
            found[name] = str(footer[QUARANTINED])
    return found


def _stamps(folder: str, names: Sequence[str]) -> dict[str, tuple[int, str]]:
    found = files.stamps(folder)
    return {name: found[name] for name in names if name in found}


def _seen_from(folder: str, name: str, found: Any) -> Any:
    """Writes where folders of the same run lie as seen from one of them.

    So a run may be moved, and its manifests do not depend on where it was made. Corpus,
    models and tokenizers are not of the run, and stay as the command named them.
    """
    if name in ("windows", "target"):
        return files.relative(found, folder)
    if name == "sources":
        pairs = [entry.partition("=") for entry in found]
        return [f"{n}={files.relative(path, folder)}" for n, _, path in pairs]
    return found


def total(footers: Sequence[Mapping[str, Any]], *keys: str) -> dict[str, int]:
    """Sums counts over footers."""
    return {key: sum(int(footer[key]) for footer in footers) for key in keys}
