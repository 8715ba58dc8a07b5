"""Folders of benchmarks of one's own, looked through before the harness reads them.

The harness passes over files that it cannot read, and imports the Python that they
name. Here neither happens unseen.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from schemas.errors import SchemaError


def read(folders: Sequence[str], *, run_code: bool) -> dict[str, tuple[str, ...]]:
    """Returns the tasks and groups that folders define, each with what a group names.

    Args:
      folders: on this machine; YAML files in them and below.
      run_code: whether they may name Python, which runs once they are loaded.

    Raises:
      FileNotFoundError: if there is no such folder, or no YAML in it.
      SchemaError: if a file is not YAML.
      ValueError: if one names Python, and may not; or two tasks are called alike.
    """
    places: dict[str, Path] = {}
    found: dict[str, tuple[str, ...]] = {}
    for folder in map(Path, folders):
        paths = _paths(folder)
        if not paths:
            raise FileNotFoundError(
                f"a folder of tasks must hold .yaml files, {folder} holds none, or is"
                " not there"
            )
        for path in paths:
            told, _ = _read_file(path, run_code=run_code)
            for name in _names(told):
                if name in places:
                    raise ValueError(
                        f"each task must be called by a name of its own, but"
                        f" {places[name]} and {path} have {name!r}"
                    )
                places[name], found[name] = path, _members(told)
    return found


def programs(folders: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the Python that tasks of folders may run, by its path, with its digest.

    A function that a task names may call any of it: what lies below the folders, or
    beside a file that one of theirs includes or is a link to.

    Raises:
      SchemaError: if a file is not YAML.
    """
    found = set()
    for folder in map(Path, folders):
        read = [_read_file(path, run_code=True)[1] for path in _paths(folder)]
        beside = {path.parent for paths in read for path in paths}
        for place, pattern in ((folder, "**/*.py"), *((one, "*.py") for one in beside)):
            for path in place.glob(pattern):
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                found.add((path.relative_to(place).as_posix(), digest))
    return sorted(found)


def _paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("**/*.yaml"))


def _names(told: dict[str, Any]) -> list[str]:
    """Returns what a file defines; one that others include defines nothing."""
    name = told.get("group", told.get("task"))
    return [name] if isinstance(name, str) else []


def _members(told: dict[str, Any]) -> tuple[str, ...]:
    """Returns what a group is of by name; what it defines itself has none elsewhere."""
    listed = told.get("task")
    if not isinstance(listed, list):
        return ()
    return tuple(one for one in listed if isinstance(one, str))


def _read_file(
    path: Path, *, run_code: bool, above: tuple[Path, ...] = ()
) -> tuple[dict[str, Any], list[Path]]:
    """Reads one file, and those that it includes, without what they name.

    Args:
      path: of the file.
      run_code: whether it may name Python.
      above: files that include it, the outermost first.

    Returns:
      What it holds, and all files that were read, links resolved.
    """
    import yaml  # of the extra eval, as the harness is

    path = path.resolve()  # a link's includes lie beside what it leads to
    if path in above:
        raise SchemaError(f"{path} must not include itself, by way of {above[-1]}")
    names: list[str] = []

    class Loader(yaml.SafeLoader):
        """YAML in which functions stay names."""

    # Whatever becomes of them: of a key that is given twice the first goes unseen.
    def note(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
        names.append(str(loader.construct_scalar(node)))
        return names[-1]

    Loader.add_constructor("!function", note)
    try:
        told = yaml.load(path.read_bytes(), Loader=Loader)
    except (OSError, yaml.YAMLError) as error:
        line = str(getattr(error, "problem_mark", "") or error).strip()
        raise SchemaError(f"{path} must be YAML, but is not ({line})") from error
    if not isinstance(told, dict):
        raise SchemaError(
            f"{path} must hold keys and values, got {type(told).__name__}"
        )
    if names and not run_code:
        raise ValueError(
            f"{path} names Python, {', '.join(names)}, which must be allowed to run;"
            " pass --run_code where you trust the folder"
        )
    included, read = told.get("include", []), [path]
    for name in included if isinstance(included, list) else [included]:
        below = path.parent / name
        read += _read_file(below, run_code=run_code, above=(*above, path))[1]
    return told, read
