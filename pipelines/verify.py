"""fusebeam verify: prove from the files that nothing was lost between two stages.

Every folder that a stage left at or below the given ones is read whole:

    windows     the windows of a document, end to end, are a document from its first
                byte to its last; where all splits are there, the corpus is read again:
                each document is kept byte for byte, or listed as left out
    scores      the same windows in the same order, whose tokens tile their bytes, or
                failed with a reason; no drawn id is one that was kept, or the next
    counts      of co-occurrences: every window, of the scores that are there
    fused       every window that the target scored stands in one row, once, token for
                token; the scores are those that it was made of, and give what the row
                says of each source and of the chosen one's chunks
    models      trained on the fused rows that are there; merged ones hold every tensor
                as planned, of the models that are there
    evaluation  every byte of a split was measured

and every file has the size, rows and checksum that its manifest states. A folder that
a stage has begun and not finished is refused.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pipelines import corpus, counting, evaluations, scored, shards, ways
from schemas import (
    cooccurrences,
    files,
    fused,
    manifest,
    parquet,
    plan,
    scores,
    windows,
)
from schemas.errors import FusionError, SchemaError
from schemas.manifest import Manifest
from schemas.plan import Slice
from train.merge import plan as merges
from transforms import prepare
from transforms.functional import windows as cutting
from transforms.slices import QUARANTINED

TRAINED, MERGED = "train", "merge"
"""Stages of models' manifests; `train` names them too, but loads torch."""

_PARTIAL = ".partial"
_OURS = re.compile(r"(slice|part)-\d{6,}\.parquet")


def verify(folders: Sequence[str]) -> list[str]:
    """Verifies all folders that stages left at or below the given ones, one by one.

    Returns:
      A line for each, saying what was proved.

    Raises:
      SchemaError: at the first law that does not hold; names file, row and law.
      FileNotFoundError: if there is no finished folder.
    """
    found = finished(folders)
    lines = []
    for folder, stage in found.items():
        made = manifest.read(folder, stage)
        check_files(folder, made)
        _check_quarantine(folder, made)
        lines.append(f"{folder}: {CHECKS[stage](folder, made)}")
        lines += manifest.losses(folder, made)
        lines += ways.mixed(folder, made) if stage == scores.STAGE else ()
    return lines


def finished(folders: Sequence[str]) -> dict[str, str]:
    """Returns the stage of every finished folder at or below the given ones.

    Raises:
      SchemaError: if a stage has begun a folder and not finished it.
      FileNotFoundError: if there is none.
    """
    found: dict[str, str] = {}
    for given in folders:
        for folder, names in _tree(given).items():
            if manifest.NAME in names:
                path = files.join(folder, manifest.NAME)
                stage = files.read_json(path).get("stage")
                if stage in CHECKS:
                    found[folder] = stage
            elif _begun(folder, names):
                raise SchemaError(
                    f"{folder} must be finished, but has no {manifest.NAME}: run the"
                    " command that writes it to its end (a repeated command goes on"
                    " where it stopped), or remove it"
                )
    if not found:
        raise FileNotFoundError(
            f"there must be a {manifest.NAME} at or below {', '.join(folders)}; none is"
        )
    return found


def _tree(folder: str) -> dict[str, list[str]]:
    """Returns the names of the files in a folder and in all below it, sorted."""
    found: dict[str, list[str]] = {}
    for path in files.tree(folder):
        found.setdefault(files.parent(path), []).append(files.name_of(path))
    return {k: v for k, v in found.items() if files.name_of(k) != files.TEMPORARY}


def _begun(folder: str, names: Sequence[str]) -> bool:
    """Says whether a stage has written into a folder that has no manifest."""
    model, partial, _ = f"{folder}/".partition(f"{_PARTIAL}/")
    if partial:
        return not manifest.present(model)
    if plan.NAME in names and merges.is_begun(folder):
        return True
    ours = [name for name in names if _OURS.fullmatch(name)]
    if not ours or files.name_of(folder) == prepare.INDEX:
        return False
    # A corpus may be of files called so too: ours say in the footer what they are.
    return bool(parquet.footer(files.join(folder, ours[0])))


def check_files(folder: str, made: Manifest) -> None:
    """Compares every file with what the manifest states, and nothing else is there."""
    for entry in made.files:
        path = files.join(folder, entry.name)
        if not files.exists(path):
            raise SchemaError(f"{path} is named in the manifest but is not there")
        laws = [
            ("bytes", entry.bytes, files.size(path)),
            ("SHA-256", entry.sha256, files.checksum(path)),
        ]
        for law, stated, found in laws:
            if stated != found:
                raise SchemaError(f"{path} must have {law} {stated}, has {found}")
        if entry.name.endswith(".parquet"):
            rows = parquet.metadata(path).num_rows
            if rows != entry.rows:
                raise SchemaError(f"{path} must have rows {entry.rows}, has {rows}")
    stated_names = sorted(e.name for e in made.files if e.name.endswith(".parquet"))
    if (found_names := files.names(folder, ".parquet")) != stated_names:
        extra = sorted(set(found_names) - set(stated_names))
        raise SchemaError(f"{folder} holds files that its manifest does not: {extra}")


def _check_quarantine(folder: str, made: Manifest) -> None:
    """Checks that the manifest names the slices that were given up, and no others."""
    for entry in made.files:
        if entry.name.endswith(".parquet"):
            said = parquet.footer(files.join(folder, entry.name)).get(QUARANTINED)
            if said != (stated := made.quarantined.get(entry.name)):
                raise SchemaError(
                    f"{folder}/{entry.name} must be quarantined as its manifest states:"
                    f" {stated or 'not'}, its footer says {said or 'not'}"
                )


def check_windows(folder: str, made: Manifest) -> str:
    """Checks that documents are whole and that the plan covers every window."""
    slices = plan.read(folder)
    _check_plan(folder, made, slices)
    documents = count = size = 0
    expected = None
    for window in windows.read_all(folder, slices):
        place = f"{folder}: window {window.window_id} of document {window.doc_id!r}"
        wanted = cutting.window_id(window.doc_id, window.byte_start, window.text)
        if window.window_id != wanted:
            raise SchemaError(f"{place} must have the id of its content, {wanted}")
        if expected is None:
            expected = (window.doc_id, 0)
        if (window.doc_id, window.byte_start) != expected:
            raise SchemaError(
                f"{place} must start at byte {expected[1]} of document"
                f" {expected[0]!r}, it starts at byte {window.byte_start}"
            )
        n_bytes = len(window.text.encode())
        expected = (window.doc_id, window.byte_start + n_bytes)
        if window.ends_document:
            expected, documents = None, documents + 1
        count, size = count + 1, size + n_bytes
    if expected is not None:
        raise SchemaError(f"{folder}: document {expected[0]!r} has no last window")
    for name, found in (
        ("documents", documents),
        ("windows", count),
        ("text_bytes", size),
    ):
        manifest.check_count(folder, made, name, found)
    return f"{documents:,} whole documents in {count:,} windows, {size:,} bytes"


def _check_plan(folder: str, made: Manifest, slices: Sequence[Slice]) -> None:
    """Checks that the slices hold every row group of every file once, in order."""
    planned = [
        (piece.file, group)
        for piece in slices
        for group in range(piece.row_group_start, piece.row_group_stop)
    ]
    there = [
        (entry.name, group)
        for entry in made.files
        for group in range(
            parquet.metadata(files.join(folder, entry.name)).num_row_groups
        )
    ]
    if planned != there:
        raise SchemaError(
            f"{folder}/{plan.NAME} must hold every row group of every file once, in"
            f" order: {len(there)}, it holds {len(planned)}"
        )


def check_scores(folder: str, made: Manifest) -> str:
    """Checks that the scores are of the plan's windows, in order, and tile them."""
    source = manifest.origin(folder, made, "windows")
    manifest.check_input(folder, made, "windows", source, windows.STAGE)
    done = failed = 0
    for window, score in scored.pairs(folder, source):
        place = f"{folder}: window {window.window_id}"
        if score.window_id != window.window_id:
            raise SchemaError(f"{place} must stand where {score.window_id} does")
        if score.error is not None:
            failed += 1
            continue
        done += 1
        _check_tiles(place, score, len(window.text.encode()))
        _check_draws(place, score)
    manifest.check_count(folder, made, "windows", done + failed)
    manifest.check_count(folder, made, "failed", failed)
    ways.check(folder, made)
    return f"{done:,} windows scored + {failed:,} failed = all of {source}"


def _check_tiles(place: str, score: scores.Score, n_bytes: int) -> None:
    """Checks that the tokens of a window follow each other from its start to its end.

    That there is one position less than tokens, a score itself refuses to lack.
    """
    ends = score.byte_ends
    if not len(ends):
        raise SchemaError(f"{place} must have tokens or an error, it has neither")
    if ends[0] != 0:
        raise SchemaError(f"{place} must start at byte 0, it starts at {ends[0]}")
    if (falls := np.flatnonzero(np.diff(ends) < 0)).size:
        raise SchemaError(
            f"{place} must have ends that never fall, token {falls[0] + 1} ends at byte"
            f" {ends[falls[0] + 1]}, the one before at {ends[falls[0]]}"
        )
    if ends[-1] != n_bytes:
        raise SchemaError(
            f"{place} must end at byte {n_bytes}, its tokens end at byte {ends[-1]}"
        )


def _check_draws(place: str, score: scores.Score) -> None:
    """Checks that draws are of what is neither kept nor the token that comes next."""
    drawn = score.sampled_ids
    if drawn is None:
        return
    known = np.column_stack([score.top_ids, score.token_ids[1:]])
    twice = (drawn[:, :, None] == known[:, None, :]).any(axis=2) & (drawn >= 0)
    if (rows := np.flatnonzero(twice.any(axis=1))).size:
        raise SchemaError(
            f"{place} must have drawn ids that are neither kept nor the next token, at"
            f" position {rows[0]} id {drawn[rows[0]][twice[rows[0]]][0]} is"
        )


def check_model(folder: str, made: Manifest) -> str:
    """Checks that a model was trained on the fused rows, if they are there.

    A model's folder is copied about without them.
    """
    data, steps = _data_of(made), made.counts["steps"]
    for key, place in data.items():
        if manifest.present(place):
            manifest.check_input(folder, made, key, place, fused.STAGE)
    spoken = " and ".join(data.values())
    return f"{len(made.files)} files whole, trained {steps:,} steps on {spoken}"


def _data_of(made: Manifest) -> dict[str, str]:
    """Returns where a model's fused rows were, by their names among its inputs."""
    return {k: v for k, v in made.origins.items() if k.partition(":")[0] == "data"}


def check_merged(folder: str, made: Manifest) -> str:
    """Checks that a merged model holds every tensor of its plan."""
    from pipelines import proof  # loads torch, which takes seconds

    return proof.check(folder, made)


CHECKS: dict[str, Callable[[str, Manifest], str]] = {
    windows.STAGE: check_windows,
    scores.STAGE: check_scores,
    cooccurrences.STAGE: counting.check,
    fused.STAGE: shards.check,
    TRAINED: check_model,
    MERGED: check_merged,
}


def between(folders: Sequence[str]) -> tuple[list[str], list[str]]:
    """Verifies what no folder shows alone: corpora and evaluations.

    Returns:
      A line for each thing proved, and one for each that could not be looked at.

    Raises:
      SchemaError: at the first law that does not hold.
    """
    found = finished(folders)
    splits = [folder for folder, stage in found.items() if stage == windows.STAGE]
    proved, left = [], []
    for prepared in dict.fromkeys(map(files.parent, splits)):
        split = next(s for s in splits if files.parent(s) == prepared)
        config = corpus.config_of(prepared, manifest.read(split, windows.STAGE))
        if away := corpus.missing(prepared, config):
            left.append(
                f"{prepared} was not compared with its corpus: for that all splits must"
                f" be there, {', '.join(away)} must be finished"
            )
        else:
            proved.append(f"{prepared}: {corpus.check(prepared, config)}")
    for folder in (folder for folder, stage in found.items() if stage == TRAINED):
        for data in _data_of(manifest.read(folder, TRAINED)).values():
            if not manifest.present(data):
                left.append(
                    f"{folder} was not compared with its rows: {data} is not there"
                )
    for folder in (folder for folder, stage in found.items() if stage == MERGED):
        left += _absent(folder)
    known = evaluations.fingerprints(splits)
    for given in folders:
        for folder, names in _tree(given).items():
            for path, line in _evaluations(folder, names, known):
                if line is None:
                    left.append(
                        f"{path} was not compared: what it speaks of is not there"
                    )
                else:
                    proved.append(f"{path}: {line}")
    return proved, left


def _absent(folder: str) -> Iterator[str]:
    """Tells the models of a merge that are not there to be compared with it."""
    from pipelines import proof  # loads torch, which takes seconds
    from train.merge import inputs

    for name, model in proof.absent(folder, manifest.read(folder, MERGED)).items():
        why = "of the hub" if inputs.is_of_hub(model) else "not there"
        yield f"{folder} was not compared with {name}: {model} is {why}"


def _evaluations(
    folder: str, names: Sequence[str], known: dict[str, str]
) -> Iterator[tuple[str, str | None]]:
    """Checks the results, or the table, that a folder holds."""
    if files.name_of(files.parent(folder)) == evaluations.FOLDER:
        for name in names:
            if name.endswith(".json"):
                path = files.join(folder, name)
                yield path, evaluations.check_result(path, known)
    if evaluations.TABLE in names:
        path = files.join(folder, evaluations.TABLE)
        yield path, evaluations.check_table(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="fusebeam verify", description=__doc__, allow_abbrev=False
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "folders", nargs="+", help="finished folders, or a run's folder"
    )
    given = parser.parse_args(sys.argv[1:] if argv is None else argv)
    try:
        lines = verify(given.folders)
        for line in lines:
            print(line)
        proved, left = between(given.folders)
    except FusionError as error:
        print(f"NOT PROVED: {error}", file=sys.stderr)
        return 1
    for line in proved:
        print(line)
    for line in left:
        print(f"not proved: {line}")
    print("nothing was lost" + (" in what is proved above" if left else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
