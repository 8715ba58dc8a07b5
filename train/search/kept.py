"""What a search has measured beside its trials, so that nothing is measured twice."""

from collections.abc import Callable, Mapping
from typing import Any

from schemas import files
from schemas.errors import SchemaError
from train.search import trials
from train.search.trials import Found


class Kept:
    """Results by name, in a file that is written anew with each of them."""

    def __init__(self, path: str, identity: Mapping[str, Any]) -> None:
        """Reads the results so far.

        Args:
          path: the file.
          identity: all that shapes them, as JSON values by name.

        Raises:
          SchemaError: if the file is of another search; names the first difference.
        """
        self._path = path
        self._told: dict[str, Any] = {
            "schema_version": trials.VERSION,
            "identity": dict(identity),
            "found": {},
        }
        if files.exists(path):
            told = files.read_json(path)
            trials.refuse_other(path, told, identity)
            self._told = told

    def get(self, name: str, measure: Callable[[], Found]) -> Found:
        """Returns a result, which is measured where it is not there."""
        found = self._told["found"]
        if name not in found:
            found[name] = trials.as_json(measure())
            files.write_json(self._path, self._told)
        return trials.from_json(found[name])


def others(identities: Mapping[str, Mapping[str, Any]]) -> bool:
    """Says whether one of some files is there, and of another search.

    Args:
      identities: what each is to be of, by path.
    """
    for path in filter(files.exists, identities):
        try:
            trials.refuse_other(path, files.read_json(path), identities[path])
        except SchemaError:
            return True
    return False
