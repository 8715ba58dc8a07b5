"""What tests of whole runs share: a recipe that takes seconds, and what it reads."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests import tiny

Table = Mapping[str, Any]

TABLES: dict[str, Table] = {
    "corpus": {"id_field": "name", "domain_field": "kind"},
    "prepare": {
        "splits": "fusion=.6,dev=.2,heldout=.2",
        "max_bytes": 300,
        "group_windows": 8,
    },
    "score": {"top_k": 6, "threads": 1, "batch_tokens": 512},
    "fuse": {"top_k": 6, "seq_length": 512},
}
_DOCUMENTS = 4


def recipe(
    inputs: Sequence[str],
    target: str,
    sources: Mapping[str, str],
    *,
    slice_bytes: int,
    arms: Mapping[str, Table],
    output: str = "unused",
    group_windows: int = 8,
    **more: Table,
) -> str:
    """Writes a recipe.

    Args:
      inputs: files and folders of the corpus.
      target: model that is trained.
      sources: models that teach, by name.
      slice_bytes: text of a slice.
      arms: settings of each training, by name.
      output: folder of the run, where the command names none.
      group_windows: of a row group.
      **more: further tables, as `train`.
    """
    cut = {"slice_bytes": slice_bytes, "group_windows": group_windows}
    tables = {
        **TABLES,
        "corpus": {**TABLES["corpus"], "inputs": list(inputs)},
        "prepare": {**TABLES["prepare"], **cut},
        "target": {"model": target},
        **{f"sources.{name}": {"model": model} for name, model in sources.items()},
        **{f"arms.{name}": arm for name, arm in arms.items()},
        **more,
    }
    lines = [f"output = {json.dumps(output)}"]
    for name, table in tables.items():
        lines += ["", f"[{name}]"]
        # What JSON writes of text, numbers, truth and lists, TOML reads.
        lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def write_inputs(folder: Path, count: int) -> None:
    """Writes a corpus of `count` files, an even number, and models llama and neox."""
    (folder / "corpus").mkdir(parents=True)
    for pair in range(0, count, 2):
        skip = 12 + pair * _DOCUMENTS
        made = tiny.corpus(folder / "made", 2 * _DOCUMENTS, skip)
        for number, path in enumerate(made, pair):
            shutil.move(path, folder / "corpus" / f"{number}.jsonl")
    tiny.llama(folder / "llama")
    tiny.neox(folder / "neox")
