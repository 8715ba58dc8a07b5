"""fusebeam verify: prove from the files that nothing was lost between two stages.

Every finished folder under the given ones is read whole:

    windows  the windows of a document, end to end, are a document from its first byte
             to its last; documents read = documents kept + left out
    scores   the same windows in the same order, scored or failed with a reason
    fused    every window that the target scored stands in one row, once

and every file has the size, rows and checksum that its manifest states.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from schemas import documents, files, fused, manifest, parquet, plan, scores, windows
from schemas.documents import Fields
from schemas.errors import FusionError, SchemaError
from schemas.manifest import Manifest
from schemas.plan import Slice
from transforms import prepare
from transforms.functional import windows as cutting


def verify(folders: Sequence[str]) -> list[str]:
    """Verifies all finished folders at or below the given ones.

    Returns:
      A line for each, saying what was proved.

    Raises:
      SchemaError: at the first law that does not hold; names file, row and law.
      FileNotFoundError: if there is no finished folder.
    """
    found = [path for folder in folders for path in files.find(folder, manifest.NAME)]
    lines = []
    for path in found:
        folder = files.parent(path)
        stage = files.read_json(path).get("stage")
        if stage in CHECKS:
            made = manifest.read(folder, stage)
            check_files(folder, made)
            lines.append(f"{folder}: {CHECKS[stage](folder, made)}")
    if not lines:
        raise FileNotFoundError(
            f"there must be a {manifest.NAME} at or below {', '.join(folders)}; none is"
        )
    return lines


def check_files(folder: str, made: Manifest) -> None:
    """Compares every file with what the manifest states, and nothing else is there."""
    for entry in made.files:
        path = files.join(folder, entry.name)
        if not files.exists(path):
            raise SchemaError(f"{path} is named in the manifest but is not there")
        for law, stated, found in (
            ("bytes", entry.bytes, files.size(path)),
            ("SHA-256", entry.sha256, files.checksum(path)),
            ("rows", entry.rows, parquet.metadata(path).num_rows),
        ):
            if stated != found:
                raise SchemaError(f"{path} must have {law} {stated}, has {found}")
    stated_names = sorted(entry.name for entry in made.files)
    if (found_names := files.names(folder, ".parquet")) != stated_names:
        extra = sorted(set(found_names) - set(stated_names))
        raise SchemaError(f"{folder} holds files that its manifest does not: {extra}")


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
        _equal(folder, name, made.counts[name], found)
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


def check_left_out(folder: str, splits: Sequence[Manifest]) -> str:
    """Checks that what prepare read is what it kept and what it left out."""
    kept = sum(made.counts["documents"] for made in splits)
    reasons: Counter[str] = Counter()
    listed = files.join(folder, prepare.REJECTS)
    for name in files.names(listed, ".jsonl"):
        for line in files.read_bytes(files.join(listed, name)).splitlines():
            reasons[prepare.reason_of(line)] += 1
    for made in splits:
        for reason, count in reasons.items():
            _equal(folder, reason, made.counts.get(f"left_out_{reason}", 0), count)
    read = _records_in_corpus(splits[0])
    if read != kept + sum(reasons.values()):
        raise SchemaError(
            f"{folder}: the corpus holds {read} documents, of which {kept} were kept"
            f" and {sum(reasons.values())} left out: {read - kept} must be left out"
        )
    left = ", ".join(f"{n:,} {reason}" for reason, n in sorted(reasons.items()))
    return f"{read:,} documents read = {kept:,} kept + left out: {left or 'none'}"


def _records_in_corpus(made: Manifest) -> int:
    """Counts the records of the corpus anew."""
    fields = Fields(
        text=made.settings["text_field"],
        id=made.settings["id_field"],
        domain=made.settings["domain_field"],
        split=made.settings["split_field"],
    )
    return sum(
        1
        for path in files.expand(made.origins["corpus"])
        for _ in documents.read(path, fields, "")
    )


def check_scores(folder: str, made: Manifest) -> str:
    """Checks that the scores are of the plan's windows, in order, and tile them."""
    source = manifest.origin(folder, made, "windows")
    _check_input(folder, made, source)
    scored = failed = 0
    for window, score in _pairs(folder, source):
        place = f"{folder}: window {window.window_id}"
        if score.window_id != window.window_id:
            raise SchemaError(f"{place} must stand where {score.window_id} does")
        if score.error is not None:
            failed += 1
            continue
        scored += 1
        n_bytes = len(window.text.encode())
        if score.byte_ends[-1] != n_bytes:
            raise SchemaError(
                f"{place} must end at byte {n_bytes}, its tokens end at byte"
                f" {score.byte_ends[-1]}"
            )
    _equal(folder, "windows", made.counts["windows"], scored + failed)
    _equal(folder, "failed", made.counts["failed"], failed)
    return f"{scored:,} windows scored + {failed:,} failed = all of {source}"


def _pairs(folder: str, source: str) -> Iterator[tuple[windows.Window, scores.Score]]:
    for piece in plan.read(source):
        found = scores.read(files.join(folder, piece.output))
        groups = zip(windows.read_slice(source, piece), found, strict=True)
        for group, scored in groups:
            yield from zip(group, scored, strict=True)


def _check_input(folder: str, made: Manifest, source: str) -> None:
    found = manifest.read(source, windows.STAGE).fingerprint
    if made.inputs["windows"] != found:
        raise SchemaError(f"{folder} must be made of the windows now in {source}")


def check_fused(folder: str, made: Manifest) -> str:
    """Checks that every window that the target scored stands in one row, once."""
    source, target = (manifest.origin(folder, made, n) for n in ("windows", "target"))
    _check_input(folder, made, source)
    kept = failed = 0
    for piece in plan.read(source):
        wanted = []
        for group in scores.read(files.join(target, piece.output)):
            wanted += [s.window_id for s in group if s.error is None]
            failed += sum(s.error is not None for s in group)
        path = files.join(folder, piece.output)
        rows = (row for group in fused.read(path) for row in group)
        found = [name for row in rows for name in row.window_ids]
        if sorted(found) != sorted(wanted):
            raise SchemaError(
                f"{path} must hold each of {len(wanted)} windows that the target"
                f" scored once, it holds {len(found)}, {len(set(found))} of them"
                " different"
            )
        kept += len(found)
    _equal(folder, "windows", made.counts["windows"], kept)
    _equal(folder, "failed", made.counts["failed"], failed)
    return f"{kept:,} windows fused + {failed:,} failed = all of {source}"


def _equal(folder: str, name: str, stated: int, found: int) -> None:
    if stated != found:
        raise SchemaError(
            f"{folder}: the manifest states {stated} {name}, the files hold {found}"
        )


CHECKS: dict[str, Callable[[str, Manifest], str]] = {
    windows.STAGE: check_windows,
    scores.STAGE: check_scores,
    fused.STAGE: check_fused,
}


def splits_below(folder: str) -> dict[str, list[Manifest]]:
    """Returns, for each folder that prepare wrote, the manifests of its splits."""
    found: dict[str, list[Manifest]] = {}
    for path in files.find(folder, manifest.NAME):
        if files.read_json(path).get("stage") == windows.STAGE:
            split = files.parent(path)
            made = manifest.read(split, windows.STAGE)
            found.setdefault(files.parent(split), []).append(made)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="fusebeam verify", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "folders", nargs="+", help="finished folders, or a run's folder"
    )
    given = parser.parse_args(sys.argv[1:] if argv is None else argv)
    try:
        for line in verify(given.folders):
            print(line)
        for folder in given.folders:
            for prepared, splits in splits_below(folder).items():
                print(f"{prepared}: {check_left_out(prepared, splits)}")
    except FusionError as error:
        print(f"NOT PROVED: {error}", file=sys.stderr)
        return 1
    print("nothing was lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())
