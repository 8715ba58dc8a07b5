"""How many files of a folder a work has made so far, as seen from outside."""

from collections.abc import Callable, Mapping

from schemas import files, parquet, weights
from schemas.errors import SchemaError

Look = Callable[[str], tuple[str | None, int]]
"""Returns the fingerprint and the tokens that a file tells of itself."""


def in_parquet(path: str) -> tuple[str | None, int]:
    """Reads them in the footer of a Parquet file.

    Raises:
      SchemaError: if it cannot be read.
      FileNotFoundError: if it is not there.
    """
    footer = parquet.footer(path)
    return footer.get("fingerprint"), int(footer.get("tokens") or 0)


def in_weights(path: str) -> tuple[str | None, int]:
    """Reads the fingerprint in the header of a safetensors file; it has no tokens.

    Raises:
      SchemaError: if it cannot be read.
      FileNotFoundError: if it is not there.
    """
    return weights.read_header(path).metadata.get(weights.FINGERPRINT), 0


class Tally:
    """Counts the files that a work has made, and their tokens.

    A file is looked into once, and again only when it is written anew. One that other
    settings have made, or that cannot be read, counts as missing.

    Args:
      folder: where the files go.
      prints: the fingerprint of each, by name.
      look: reads what a file tells of itself.
    """

    def __init__(self, folder: str, prints: Mapping[str, str], look: Look) -> None:
        self._folder, self._look = folder, look
        self._missing = dict(prints)
        self._seen: dict[str, tuple[int, str]] = {}
        self._files = self._tokens = 0

    def __call__(self) -> tuple[int, int]:
        """Returns files and tokens as of now."""
        stamps = files.stamps(self._folder)
        fresh = [
            name
            for name in self._missing.keys() & stamps.keys()
            if self._seen.get(name) != stamps[name]
        ]
        for name, tokens in zip(fresh, files.each(self._tokens_of, fresh), strict=True):
            self._seen[name] = stamps[name]
            if tokens is not None:
                del self._missing[name]
                self._files += 1
                self._tokens += tokens
        return self._files, self._tokens

    def missing(self) -> list[str]:
        """Returns the names of the files that are missing as of now."""
        self()
        return sorted(self._missing)

    def _tokens_of(self, name: str) -> int | None:
        """Returns the tokens of a file; None where this work has not made it."""
        try:
            told, tokens = self._look(files.join(self._folder, name))
        except (SchemaError, FileNotFoundError):
            return None  # whoever does the work will say what is wrong, and the cure
        return tokens if told == self._missing[name] else None
