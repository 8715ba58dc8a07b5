"""The files of a corpus: found, and told from others."""

from collections.abc import Iterable, Sequence

from schemas import buckets, files

_CONTENT_BYTES = 1 << 30
"""Files in buckets, up to this size together, are told by their content."""


def expand(patterns: Iterable[str]) -> list[str]:
    """Expands globs and folders into files, sorted by name, each once.

    Args:
      patterns: paths or globs; a folder stands for the files directly in it.

    Raises:
      FileNotFoundError: if a pattern matches nothing; names the pattern.
    """
    found_all: set[str] = set()
    for pattern in patterns:
        fs, _ = files.filesystem(pattern)
        found: list[str] = []
        for match, kind in _matches(pattern):
            if kind == "directory":
                folder = files.address(fs, match)
                entries = (e for e in files.entries(folder) if e["type"] == "file")
                found += [entry["name"] for entry in entries]
            else:
                found.append(match)
        if not found:
            raise FileNotFoundError(
                f"an input must match at least one file, got {pattern!r}, which"
                " matches none; check the spelling and the working directory"
            )
        found_all.update(files.address(fs, path) for path in found)
    return sorted(found_all)


def _matches(pattern: str) -> list[tuple[str, str]]:
    """Returns what a glob or path matches, each with its type."""
    fs, plain = files.filesystem(pattern)
    if any(c in plain for c in "*?["):
        found = buckets.ask(pattern, fs.glob, plain, detail=True)
        return [(name, entry["type"]) for name, entry in found.items()]
    try:
        return [(plain, buckets.ask(pattern, fs.info, plain)["type"])]
    except FileNotFoundError:
        return []


def identities(paths: Sequence[str]) -> list[str]:
    """Returns what tells each file's content from another's.

    Files are digested, so that a copy elsewhere is the same. Those in buckets are not
    read for this where they hold over a gibibyte together: a bucket knows a checksum of
    each, but each kind of bucket another.
    """
    held = [path for path in paths if buckets.protocol(path)]
    small = sum(files.each(files.size, held)) <= _CONTENT_BYTES
    known = set() if small else set(held)

    def one(path: str) -> str:
        return (path in known and buckets.checksum(path)) or files.checksum(path)

    return files.each(one, paths)
