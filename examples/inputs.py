"""Inputs of an example, which are made once: a mark beside them says by what.

    with inputs.making(output, wanted) as missing:
        if missing:
            ...

The mark is written when all of the block is made; who is stopped before makes it again.
"""

import contextlib
import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from schemas import buckets, files, locks
from schemas.errors import SchemaError


@contextlib.contextmanager
def making(
    output: str, wanted: Mapping[str, Any], mark: str = "inputs.json"
) -> Iterator[bool]:
    """Says whether inputs are missing, and marks them as made behind its block.

    Args:
      output: folder of the example; its inputs lie in `inputs` below it.
      wanted: all that they are made by.
      mark: path of the mark in the folder; another for each part that stays once it is
        made.

    Raises:
      SchemaError: if another command is making them, or those that were made by
        something else are there; names the first key that differs.
      ValueError: if the folder is in a bucket: models are made on a disk.
    """
    if buckets.protocol(output):
        raise ValueError(
            "the inputs of an example are made on a disk of this machine, so output"
            f" must be a folder of it, got {output}"
        )
    place = files.join(output, "inputs")
    with locks.hold(Path(place), "making inputs"):
        path = files.join(output, mark)
        made = files.exists(path)
        if made:
            plain = json.loads(json.dumps(wanted))  # as the mark has it: no tuples
            _refuse_other(output, files.read_json(path), plain)
        yield not made
        if not made:
            files.write_json(path, wanted)


def _refuse_other(
    output: str, found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
    """Refuses inputs that were made by something else."""
    for key in {**wanted, **found}:
        if key not in found or key not in wanted or found[key] != wanted[key]:
            raise SchemaError(
                f"the inputs in {files.join(output, 'inputs')} were made by {key} ="
                f" {_shown(found, key)}, and now it is {_shown(wanted, key)}; remove"
                f" {output}, or write another folder in the recipe, as its output and"
                " in its paths"
            )


def _shown(values: Mapping[str, Any], key: str) -> str:
    return textwrap.shorten(repr(values.get(key)), 100, placeholder="...")
