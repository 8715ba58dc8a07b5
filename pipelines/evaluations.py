"""Results of evaluations, compared with the windows that they speak of."""

import math
from collections.abc import Mapping
from typing import Any

from schemas import files, manifest, plan, windows
from schemas.errors import SchemaError

FOLDER = "evaluation"
TABLE = "evaluation.json"
TASKS = "tasks"
"""Folder of the results of benchmarks; `train.benchmarks` names it too, with torch."""

Sizes = dict[str, dict[str, int]]
"""By domain: windows, and bytes that count."""


def sizes_of(folder: str) -> Sizes:
    """Counts windows and bytes that count in a windows folder, by domain."""
    sizes: Sizes = {}
    for window in windows.read_all(folder, plan.read(folder)):
        name = window.domain or windows.DEFAULT_DOMAIN
        size = sizes.setdefault(name, {"windows": 0, "bytes": 0})
        size["windows"] += 1
        spans = window.loss_spans
        if spans is None:
            size["bytes"] += len(window.text.encode())
        else:
            size["bytes"] += sum(spans[1::2]) - sum(spans[::2])
    return sizes


def check_result(path: str, folders: Mapping[str, str]) -> str | None:
    """Checks that one model's result is of all bytes of a split.

    Args:
      path: the result.
      folders: windows folders by fingerprint.

    Returns:
      What was proved; None if the windows are not among the folders, or it is no
      result.

    Raises:
      SchemaError: if it was measured on fewer or other windows.
    """
    result = files.read_json(path)
    if not isinstance(result, dict) or not {"inputs", "domains"} <= result.keys():
        return None
    folder = folders.get(result["inputs"].get("windows"))
    if folder is None:
        return None
    measured = result["domains"]
    sizes = sizes_of(folder)
    failed = sum(domain["failed"] for domain in measured.values())
    for name in sorted({*sizes, *measured}):
        had, wanted = measured.get(name, {}), sizes.get(name, {})
        if had.get("windows") != wanted.get("windows") or (
            not failed and had.get("bytes") != wanted.get("bytes")
        ):
            raise SchemaError(
                f"{path} must be measured on all of {folder}: domain {name!r} has"
                f" {wanted}, it was measured on {had}; remove it and evaluate again"
            )
    total = sum(size["bytes"] for size in sizes.values())
    if failed:
        return f"windows of {folder}, {failed:,} of them failed"
    return f"{total:,} bytes measured = all of {folder}"


def check_table(path: str) -> str | None:
    """Checks that the table of a run is made of the results that lie below it.

    Returns:
      What was proved; None if neither a split nor benchmarks have results of all of
      its models.

    Raises:
      SchemaError: if a figure of the table is not that of the results.
    """
    table = files.read_json(path)
    if not isinstance(table, dict):
        return None
    proved = [_check_models(path, table), _check_tasks(path, table)]
    return "; ".join(line for line in proved if line) or None


def _check_models(path: str, table: Mapping[str, Any]) -> str | None:
    """Compares bits per byte with the results of one split."""
    if not table.get("models"):
        return None
    names = {name: f"{name.replace(':', '.')}.json" for name in table["models"]}
    below = files.join(files.parent(path), FOLDER)
    found = {files.parent(p) for p in files.find(below, min(names.values()))}
    found = {split for split in found if files.parent(split) == below}
    splits = [f for f in sorted(found) if {*names.values()} <= {*files.names(f)}]
    for split in splits:
        for name, file in names.items():
            _check_row(path, table, name, files.read_json(files.join(split, file)))
    return f"{len(names)} models, as in {splits[0]}" if splits else None


def _check_tasks(path: str, table: Mapping[str, Any]) -> str | None:
    """Compares what benchmarks came to with their results."""
    stated = table.get(TASKS, {})
    above = files.parent(path)
    results: dict[str, dict[str, Any]] = {}
    for folder in (files.join(above, TASKS), files.join(above, FOLDER, TASKS)):
        for result in files.tree(folder):
            if result.endswith(".json"):
                held = results.setdefault(files.name_of(result), {})
                held.update(files.read_json(result)["results"])
    for task, row in stated.items():
        for name, had in row.items():
            found = results.get(f"{name.replace(':', '.')}.json", {}).get(task)
            if found != had:
                raise SchemaError(
                    f"{path} must state of {name} on task {task} what its result does,"
                    f" {found}, it states {had}"
                )
    return f"{len(stated)} tasks, as in their results" if stated else None


def _check_row(
    path: str, table: Mapping[str, Any], name: str, result: Mapping[str, Any]
) -> None:
    """Compares a model's row of the table with its result."""
    domains = result["domains"]
    nats = {domain: had["nats"] for domain, had in domains.items()}
    sizes = {domain: had["bytes"] for domain, had in domains.items()}
    if sizes != table["bytes"]:
        raise SchemaError(
            f"{path} must state the bytes that {name} was measured on, {sizes}, it"
            f" states {table['bytes']}"
        )
    nats["all"], sizes["all"] = math.fsum(nats.values()), sum(sizes.values())
    stated = table["models"][name]
    for domain in sorted({*nats, *stated}):
        bits = nats.get(domain, math.nan) / math.log(2) / sizes.get(domain, 1)
        if not math.isclose(bits, stated.get(domain, math.nan), rel_tol=1e-9):
            raise SchemaError(
                f"{path} must state {bits} bits per byte of {name} in {domain!r}, it"
                f" states {stated.get(domain)}"
            )


def fingerprints(folders: list[str]) -> dict[str, str]:
    """Returns windows folders by their fingerprint."""
    return {manifest.read(f, windows.STAGE).fingerprint: f for f in folders}
