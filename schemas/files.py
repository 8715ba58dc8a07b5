"""Files and folders on any filesystem that fsspec knows: local, gs://, s3://, memory://.

Everything a stage writes goes through `publish`: a temporary name in `.tmp/` beside
the final file, then a rename; in a bucket, where an object appears at once and whole,
one upload. A reader therefore never sees half a file, and a job that was killed leaves
nothing but orphans in `.tmp/`.
"""

import contextlib
import errno
import hashlib
import json
import os
import posixpath
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from schemas import buckets, locks, objects
from schemas.counted import CountedFile
from schemas.errors import FusionError, SchemaError

Item = TypeVar("Item")
Result = TypeVar("Result")

TEMPORARY = ".tmp"
_BLOCK_BYTES = 1 << 20
_TRIES = 9
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_AT_ONCE = 16
"""Requests under way at once: a bucket takes many, but answers each slowly."""


def filesystem(path: str) -> tuple[Any, str]:
    """Returns the fsspec filesystem of `path` and the path without its protocol.

    Listings are not cached: other processes write the files that this one waits for,
    and the clients of buckets would serve an old listing for ever.

    Raises:
      FusionError: if the client of a bucket is not installed; names the extra.
    """
    if buckets.protocol(path):
        return buckets.filesystem(path)
    fs, plain = fsspec.core.url_to_fs(path, use_listings_cache=False)
    return fs, plain


def each(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Calls `work` with every item, several at once; results in the items' order."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(work, items))


def join(folder: str, *names: str) -> str:
    """Joins a folder and names with single slashes, on every filesystem.

    Example:
      >>> join("gs://bucket/run/", "windows", "plan.jsonl")
      'gs://bucket/run/windows/plan.jsonl'
    """
    return "/".join([folder.rstrip("/"), *names]) if names else folder


def name_of(path: str) -> str:
    """Returns the last part of a path."""
    return path.rstrip("/").rsplit("/", 1)[-1]


def parent(path: str) -> str:
    """Returns the folder that holds `path`; `.` for a bare name."""
    head, slash, _ = path.rstrip("/").rpartition("/")
    return head if slash else "."


def relative(path: str, folder: str) -> str:
    """Writes a path as seen from a folder, where both are local or in one bucket.

    Paths that begin with `.` are so written. What lies elsewhere keeps its address; a
    local path its absolute one.

    Example:
      >>> relative("memory://bucket/run/windows/dev", "memory://bucket/run/scores/a")
      '../../windows/dev'
      >>> relative("memory://other/windows", "/data/run/scores/a")
      'memory://other/windows'
    """
    (fs, plain), (other, start) = filesystem(path), filesystem(folder)
    if fs is other and _bucket(fs, plain) == _bucket(other, start):
        found = posixpath.relpath(plain, start)
        return found if found.startswith(".") else f"./{found}"
    return plain if not _remote(fs) else path


def resolve(folder: str, stored: str) -> str:
    """Returns the path that `relative` stored for a folder, wherever that is now.

    Example:
      >>> resolve("memory://bucket/moved/scores/a", "../../windows/dev")
      'memory:///bucket/moved/windows/dev'
    """
    if stored.split("/")[0] not in (".", ".."):
        return stored
    fs, start = filesystem(folder)
    plain = posixpath.normpath(posixpath.join(start, stored))
    return address(fs, plain)


def _bucket(fs: Any, plain: str) -> str:
    return plain.lstrip("/").split("/")[0] if _remote(fs) else ""


def exists(path: str) -> bool:
    """Says whether a file or folder of that name is there."""
    fs, plain = filesystem(path)
    if not buckets.holds(fs):
        return bool(fs.exists(plain))
    with contextlib.suppress(FileNotFoundError):
        return bool(buckets.info(path))
    return False


def size(path: str) -> int:
    """Returns the size of a file in bytes."""
    fs, plain = filesystem(path)
    return int(buckets.ask(path, fs.info, plain)["size"])


def names(folder: str, suffix: str = "") -> list[str]:
    """Lists the names of the files in a folder that end in `suffix`, sorted.

    A folder that is not there has no files. Temporary files are not listed.
    """
    return sorted(stamps(folder, suffix))


def stamps(folder: str, suffix: str = "") -> dict[str, tuple[int, str]]:
    """Lists the files in a folder as `names` does, with size and time or tag.

    Returns:
      By name: the size in bytes, and what the filesystem says of the version. A file
      whose entry is still the same has not been written anew.
    """
    return {
        name_of(e["name"]): (int(e["size"] or 0), _version(e))
        for e in entries(folder)
        if e["type"] == "file" and e["name"].endswith(suffix)
    }


def entries(folder: str) -> list[dict[str, Any]]:
    """Lists what is in a folder; nothing where there is no folder."""
    fs, plain = filesystem(folder)
    try:
        found = buckets.ask(folder, fs.ls, plain, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    # In a bucket an object may have the folder's own name, as consoles make them.
    own = plain.rstrip("/")
    return [entry for entry in found if entry["name"].rstrip("/") != own]


def _version(entry: dict[str, Any]) -> str:
    keys = ("ETag", "etag", "md5Hash", "ino", "mtime", "LastModified", "created")
    return " ".join(str(entry[key]) for key in keys if key in entry)


def folders(folder: str) -> list[str]:
    """Lists the names of the folders in a folder, sorted; none where it is not there.

    The one for temporary files is not listed.
    """
    found = entries(folder)
    below = {name_of(e["name"]) for e in found if e["type"] == "directory"}
    return sorted(below - {TEMPORARY})


def find(folder: str, name: str) -> list[str]:
    """Finds the files of that name in a folder and those below it, sorted."""
    return [path for path in tree(folder) if name_of(path) == name]


def tree(folder: str) -> list[str]:
    """Lists the files in a folder and in those below it, sorted; or the file itself."""
    fs, plain = filesystem(folder)
    return sorted(address(fs, path) for path in buckets.ask(folder, fs.find, plain))


def address(fs: Any, plain: str) -> str:
    """Returns the whole path of what a filesystem knows by a path of its own."""
    return str(fs.unstrip_protocol(plain)) if _remote(fs) else plain


def _remote(fs: Any) -> bool:
    return not isinstance(fs, LocalFileSystem)


def open_input(path: str) -> Any:
    """Opens a file for reading bytes, as it is: nothing is decompressed.

    Raises:
      FileNotFoundError: if it is not there.
      FusionError: if it may not be read; names it, as whoever reads inputs while an
        output is open could not tell which of them the system's error means.
    """
    fs, plain = filesystem(path)
    try:
        return objects.opened(path) if buckets.holds(fs) else fs.open(plain, "rb")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no such file: {path}") from error
    except PermissionError as error:
        raise FusionError(
            f"{path} must be readable for who runs this, but is not"
            f" ({error.strerror}); mend its permissions, or those of its folders"
        ) from error


def stamp(file: Any) -> tuple[int, str] | None:
    """Returns size and version of the file behind an open one, as `stamps` has them.

    That costs no request. None where the filesystem does not tell: in memory.
    """
    if isinstance(details := getattr(file, "details", None), dict):
        return int(details["size"]), _version(details)
    try:
        found = os.fstat(file.fileno())
    except (AttributeError, OSError):
        return None
    return found.st_size, f"{found.st_ino} {found.st_mtime_ns}"


def read_bytes(path: str) -> bytes:
    """Reads a small file whole."""
    with open_input(path) as file:
        return file.read()


def read_json(path: str) -> Any:
    """Reads a JSON file.

    Raises:
      FileNotFoundError: if it is not there.
      SchemaError: if it is not JSON; names the file.
    """
    try:
        return json.loads(read_bytes(path))
    except ValueError as error:
        raise SchemaError(f"{path} must be JSON: {error}") from error


def canonical_json(value: Any) -> str:
    """Writes JSON that is equal for equal values: sorted keys, no spare spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """Returns 16 bytes of blake2b over the canonical JSON of `value`, in hex."""
    return hashlib.blake2b(canonical_json(value).encode(), digest_size=16).hexdigest()


def checksum(path: str) -> str:
    """Returns the SHA-256 of a file's bytes, in hex."""
    hasher = hashlib.sha256()
    with open_input(path) as file:
        while block := file.read(_BLOCK_BYTES):
            hasher.update(block)
    return hasher.hexdigest()


@contextlib.contextmanager
def publish(path: str) -> Iterator[CountedFile]:
    """Opens a temporary file that becomes `path` when the block ends without error.

    Two attempts may write the same file at once: each has a temporary name of its
    own, and the last rename wins, with equal contents. An error removes the
    temporary file and leaves whatever was at `path`.

    Raises:
      FusionError: if the disk is full, or the path may not be written; names the path
        and the cure.
    """
    fs, final = filesystem(path)
    remote = buckets.holds(fs)
    # A file on its way into a bucket waits where the system's temporary files do.
    disk = f"the disk of {tempfile.gettempdir()}" if remote else "its disk"
    with (
        told(path, disk),
        buckets.sending(path) if remote else _renamed(fs, final) as file,
    ):
        yield CountedFile(file)


@contextlib.contextmanager
def told(path: str, disk: str = "its disk") -> Iterator[None]:
    """Tells why the system does not let a block write a file or folder.

    Raises:
      FusionError: if the disk is full, or the path may not be written; names the path
        and the cure.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise FusionError(
                f"{path} must fit on {disk}, which is full ({error.strerror}); free"
                " space and repeat the command, which goes on where it stopped"
            ) from error
        if error.errno in _FORBIDDEN:
            raise FusionError(
                f"{path} must be writable for who runs this, but is not"
                f" ({error.strerror}: {error.filename}); mend its permissions, or"
                " choose another folder"
            ) from error
        raise


@contextlib.contextmanager
def _renamed(fs: Any, final: str) -> Iterator[Any]:
    """Opens a temporary file that gets its final name when the block has ended."""
    temporary = join(parent(final), TEMPORARY, f"{name_of(final)}.{uuid.uuid4().hex}")
    try:
        with _created(fs, temporary) as file:
            yield file
            if not _remote(fs):
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, final)  # while it is held: it is no orphan
        if _remote(fs):
            fs.mv(temporary, final)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            fs.rm(temporary)
        raise


def _created(fs: Any, path: str) -> Any:
    """Opens a new file for writing, and makes its folder.

    Another command that ends removes the folder for temporary files where it is empty,
    which may be just before the file is opened in it; and one that cleans up may take
    a file that nobody holds yet for an orphan.
    """
    for _ in range(_TRIES):
        fs.makedirs(parent(path), exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            file = fs.open(path, "wb")
            # Whoever cleans up sees by the lock that the file is in work.
            if _remote(fs) or locks.take_new(file.fileno()):
                return file
            file.close()
    return fs.open(path, "wb")


def write_bytes(path: str, content: bytes) -> None:
    """Publishes a small file whole."""
    with publish(path) as file:
        file.write(content)


def write_json(path: str, value: Any) -> None:
    """Publishes JSON for people and programs: sorted keys, one space of indent."""
    text = json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n"
    write_bytes(path, text.encode())


def tidy(folder: str) -> None:
    """Removes the places for temporary files in and below a folder, where empty."""
    fs, plain = filesystem(folder)
    if _remote(fs):
        return  # a bucket has no empty folders
    above = os.path.dirname(plain)  # the folder may be such a place itself
    for path, _, _ in os.walk(plain, topdown=False):
        if TEMPORARY in os.path.relpath(path, above).split(os.sep):
            # Not empty: another writer is at work, or died; its orphans harm nobody.
            with contextlib.suppress(OSError):
                os.rmdir(path)


def remove_tree(path: str) -> None:
    """Removes a file, or a folder and all in it; nothing happens where there is none.

    Another process may remove it at the same time.
    """
    fs, plain = filesystem(path)
    if buckets.holds(fs):
        # One by one: s3fs, removing many, leaves out what fails and says nothing.
        each(buckets.remove, tree(path))
        return
    with contextlib.suppress(FileNotFoundError):
        fs.rm(plain, recursive=True)
