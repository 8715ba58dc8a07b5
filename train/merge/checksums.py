"""Checksums of a model's files, by which a merge tells one model from another.

To read a model for that takes about as long as to merge it. What FuseBeam wrote has a
manifest that states them; other files are read once in a process, which may merge the
same models several times.
"""

import functools
import os
from collections.abc import Callable, Sequence

from schemas import buckets, corpora, files, manifest

Checksums = Callable[[str, Sequence[str]], list[str]]
"""What returns the checksums of files of a folder, by their names."""


def known(folder: str, names: Sequence[str]) -> list[str]:
    """Returns what the folder's manifest states, or else what reading the files tells.

    A manifest is believed of a file on a disk that has the size it states, and has not
    been written, or put there, after the manifest. The second is told by the time of
    its inode's last change: a file that is copied or renamed may keep that of its
    content.
    """
    if buckets.protocol(folder):
        return taken(folder, names)
    stated = _stated(folder)
    return files.each(lambda name: stated.get(name) or _once(folder, name), names)


def taken(folder: str, names: Sequence[str]) -> list[str]:
    """Returns what reading the files tells now; see `corpora.identities` of buckets."""
    return corpora.identities([files.join(folder, name) for name in names])


def _stated(folder: str) -> dict[str, str]:
    """Returns the checksums of a manifest that may be believed, by name."""
    if not (entries := manifest.entries(folder)):
        return {}
    written = os.stat(files.join(folder, manifest.NAME)).st_mtime_ns
    stated = {}
    for name in set(files.names(folder)) & entries.keys():
        found = os.stat(files.join(folder, name))
        put = max(found.st_mtime_ns, found.st_ctime_ns)
        if found.st_size == entries[name].bytes and put <= written:
            stated[name] = entries[name].sha256
    return stated


def _once(folder: str, name: str) -> str:
    path = os.path.abspath(files.join(folder, name))
    found = os.stat(path)
    changed = (found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
    return _read(path, found.st_size, changed)


@functools.lru_cache(maxsize=4096)
def _read(path: str, _bytes: int, _changed: tuple[int, ...]) -> str:
    return files.checksum(path)
