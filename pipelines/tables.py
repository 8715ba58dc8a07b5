"""The tables of a recipe as TOML has them, before anything is made of them."""

import re
from collections.abc import Mapping
from typing import Any

from schemas import settings

SINGLE = ("prepare", "target", "score", "fuse", "pairs", "train", "merge", "evaluate")
"""Tables of settings."""

NAMED = ("sources", "fusions", "arms", "merges", "ensembles")
"""Tables of tables of settings, by name."""

TABLES_AND_KEYS = ("corpus", "inputs", *SINGLE, *NAMED, "splits", "output")
SPLITS = {"fusion": "fusion", "dev": "dev", "heldout": "heldout"}

_OWN_KEYS = ("windows", "output", "data", "slices", "name")
"""Settings that a recipe's tables may not hold: the recipe sets them, or has none."""

_OWN_KEYS_OF = {
    "fuse": ("target", "sources", "maps_only"),
    "pairs": ("target", "maps_only"),
    "fusions": ("target", "maps_only"),
    "merge": ("show",),
    "merges": ("show",),
    "evaluate": ("ensemble", "ensemble_weights"),
}
"""Those of single tables: [target] and [sources.NAME] say what is fused."""

_NAME = re.compile(r"(?!\.+$)[A-Za-z0-9_.-]+")


def check(given: Mapping[str, Any]) -> None:
    """Refuses unknown tables, what is no table, and names that cannot be folders.

    Raises:
      ValueError: if there is such; names it.
    """
    for key, value in given.items():
        if key not in TABLES_AND_KEYS:
            near = settings.suggestion(key, TABLES_AND_KEYS)
            raise ValueError(f"a recipe must hold known tables only, got {key!r}{near}")
        if key != "output" and not isinstance(value, dict):
            raise ValueError(f"[{key}] must be a table, got {value!r}")
    for key in ("corpus", "target", "sources"):
        if not given.get(key):
            raise ValueError(f"a recipe must hold a table [{key}]")
    for key in NAMED:
        for name, table in given.get(key, {}).items():
            _check_named(key, name, table)
    if "target" in given["sources"]:
        raise ValueError("[sources.target]: no source may be called 'target'")
    for kind, where, table in _stage_tables(given):
        for key in (*_OWN_KEYS, *_OWN_KEYS_OF.get(kind, ())):
            if key in table:
                raise ValueError(f"{where} must not hold {key!r}: a recipe sets it")


def _check_named(kind: str, name: str, table: Any) -> None:
    """Refuses what is no table of settings, and a name that cannot be a folder."""
    if not isinstance(table, dict):
        raise ValueError(f"[{kind}.{name}] must be a table, got {table!r}")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"[{kind}.{name}]: a name must be of letters, digits, and _.-, as it names"
            " folders"
        )
    for key, value in table.items():
        if isinstance(value, dict) and kind != "merges":
            raise ValueError(
                f"[{kind}.{name}] must hold settings, got a table {key!r}; a name with"
                f' a dot stands in quotes: [{kind}."{name}.{key}"]'
            )


def _stage_tables(given: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Returns the tables of settings: kind, how it is written, and what it holds."""
    found = [(key, f"[{key}]", given.get(key, {})) for key in SINGLE]
    for key in NAMED:
        tables = given.get(key, {})
        found += [(key, f"[{key}.{name}]", table) for name, table in tables.items()]
    return found


def text(table: Mapping[str, Any], where: str, key: str) -> str:
    """Returns the string of a table that must be there.

    Raises:
      ValueError: if it is not; names it.
    """
    if not isinstance(table.get(key), str) or not table[key]:
        raise ValueError(
            f"{where} must hold a string {key!r}, got {table.get(key, 'none')!r}"
        )
    return str(table[key])


def splits_of(table: Mapping[str, Any]) -> dict[str, str]:
    """Returns the name of the split for each purpose.

    Raises:
      ValueError: if `[splits]` holds another purpose, or what is no name.
    """
    for key in table:
        if key not in SPLITS:
            raise ValueError(f"[splits] may hold {', '.join(SPLITS)}, got {key!r}")
    return {**SPLITS, **{key: text(table, "[splits]", key) for key in table}}
