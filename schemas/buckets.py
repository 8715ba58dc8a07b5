"""Objects in buckets, s3:// and gs://: what their clients leave open.

There is one way to a bucket: the clients that fsspec knows, s3fs and gcsfs, which take
credentials and endpoint from the environment variables of AWS's and Google's own tools.
Each request is made again with back-off where the client gives up too early; an object
is sent whole or not at all, so that it appears at once under its final name; a listing
or an object's description is never remembered, as other processes write, too.
"""

import base64
import contextlib
import errno
import functools
import hashlib
import io
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from schemas.errors import FusionError

Result = TypeVar("Result")

EXTRAS = {"s3": "aws", "s3a": "aws", "gs": "gcp", "gcs": "gcp"}
"""The extra that a bucket's client comes with, by protocol."""

_TRIES = 4
_MIB = 1 << 20
_PART_BYTES = 16 * _MIB
"""Larger files are sent in parts of this size, unless there would be too many."""
_PARTS = 5_000
_PARTS_AT_ONCE = 4
_BLOCK_BYTES = 4 * _MIB
_REQUEST_BYTES = 64 * _MIB
_SENT_AS = "application/octet-stream"

_DEFINITE = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError)
_PASSING = (ConnectionError, TimeoutError)
# Of libraries that may not be there, so by name: what no second try would mend is left
# out. gcsfs has requests' errors for one status, aiohttp's for lost connections.
_PASSING_NAMES = {
    "HTTPClientError",
    "ResponseParserError",
    "IncompleteReadError",
    "ClientConnectionError",
    "ClientPayloadError",
    "RequestException",
    "TransportError",
    "ChecksumError",
}
_PASSING_STATUS = {408, 429, 500, 501, 502, 503, 504}
_PASSING_ERRNO = {errno.EBUSY, errno.EIO, getattr(errno, "EREMOTEIO", errno.EIO)}
_REFUSED_NAMES = {"NoCredentialsError", "PartialCredentialsError", "GoogleAuthError"}


def protocol(path: str) -> str | None:
    """Returns the protocol of a path in a bucket; None of any other path."""
    head, mark, _ = path.partition("://")
    return head if mark and head in EXTRAS else None


def filesystem(path: str) -> tuple[Any, str]:
    """Returns the client of a path in a bucket, and the path without its protocol.

    Raises:
      FusionError: if the client is not installed; names the extra.
    """
    spoken = protocol(path)
    assert spoken is not None
    fs = _client("s3" if spoken.startswith("s3") else "gs", os.getpid())
    return fs, fs._strip_protocol(path)


@functools.cache
def _client(kind: str, _: int) -> Any:
    """Makes the client of a kind of bucket: one for a process, whatever its threads.

    fsspec would keep one for each thread, and look for credentials for each.
    """
    try:
        if kind == "s3":
            from s3fs import S3FileSystem

            fs = S3FileSystem(use_listings_cache=False)
            fs.retries = 1  # `ask` calls again, and not for lost connections alone
            return fs
        # Not the class that fsspec would take: that one asks another service, by
        # another protocol, for the kind of the bucket before every request.
        from gcsfs.core import GCSFileSystem

        return GCSFileSystem(use_listings_cache=False)
    except ImportError as error:
        raise FusionError(
            f"{kind}:// paths need a client that is not installed ({error}); install"
            f" FuseBeam with the extra {EXTRAS[kind]}: pip install"
            f" 'fusebeam[{EXTRAS[kind]}]'"
        ) from error


def holds(fs: Any) -> bool:
    """Says whether a filesystem is a client of buckets."""
    spoken = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    return spoken in EXTRAS


def ask(
    path: str,
    call: Callable[..., Result],
    *args: Any,
    also: tuple[type[Exception], ...] = (),
    **kwargs: Any,
) -> Result:
    """Calls a client, and again with back-off where the fault may pass.

    What is not in a bucket is called once, and its errors are left as they are.

    Args:
      path: what the call is about.
      call: a method of a client; a repeated call must do no harm.
      *args: of the call.
      also: errors that may pass beside those that always may.
      **kwargs: of the call.

    Raises:
      FusionError: if the bucket refuses to open itself to us; names path and cure.
      FileNotFoundError: if there is no such object or bucket.
      ConnectionError: if the bucket does not answer as it should, try after try.
    """
    if protocol(path) is None:
        return call(*args, **kwargs)
    for attempt in range(_TRIES):
        try:
            return call(*args, **kwargs)
        except Exception as error:
            _refuse(path, error)
            expected, last = isinstance(error, also), attempt == _TRIES - 1
            if not (expected or _may_pass(error)) or (expected and last):
                raise
            if last:
                raise ConnectionError(
                    f"{path} must be reachable, but {_TRIES} tries failed, the last"
                    f" with {type(error).__name__}: {error}; look at the endpoint and"
                    " the network, and repeat the command, which goes on where it"
                    " stopped"
                ) from error
            time.sleep(random.uniform(0.5, 1) * 2**attempt)
    raise AssertionError("unreachable")


def _names(error: BaseException) -> set[str]:
    return {cls.__name__ for cls in type(error).__mro__}


def _may_pass(error: Exception) -> bool:
    """Says whether the same call may succeed a moment later."""
    if isinstance(error, _DEFINITE):
        return False
    if isinstance(error, _PASSING) or _names(error) & _PASSING_NAMES:
        return True
    status = str(getattr(error, "code", ""))
    return (status.isdigit() and int(status) in _PASSING_STATUS) or (
        isinstance(error, OSError) and error.errno in _PASSING_ERRNO
    )


def _refuse(path: str, error: Exception) -> None:
    """Tells what must be mended before any further try, whatever the client says."""
    kind = protocol(path) or ""
    # gcsfs says 403 by a plain OSError, without a number.
    barred = isinstance(error, PermissionError) or str(error).startswith("Forbidden")
    if barred or _names(error) & _REFUSED_NAMES:
        given = (
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role"
            if kind.startswith("s3")
            else "GOOGLE_APPLICATION_CREDENTIALS, gcloud's login, or a service account"
        )
        raise FusionError(
            f"{path} must be open to this process, but the bucket refused it"
            f" ({type(error).__name__}: {error}); give it credentials that may read,"
            f" write, list and delete there, by {given}"
        ) from error


def info(path: str) -> dict[str, Any]:
    """Returns what a bucket says of an object or folder.

    Raises:
      FileNotFoundError: if it is not there.
    """
    fs, plain = filesystem(path)
    return dict(ask(path, fs.info, plain))


def checksum(path: str) -> str | None:
    """Returns what a bucket says of an object's content, if it says anything."""
    known = info(path)
    for key in ("ETag", "md5Hash", "crc32c", "etag"):
        if known.get(key):
            return f"{key}:{known[key]}:{known['size']}"
    return None


def opened(path: str) -> io.BufferedReader:
    """Opens an object for reading.

    Raises:
      FileNotFoundError: if it is not there, or is a folder.
    """
    found = info(path)
    if found["type"] != "file":
        raise FileNotFoundError(f"{path} must be a file, it is a folder")
    return _Opened(found, _Object(path, int(found["size"])))


class _Opened(io.BufferedReader):
    """An object open for reading; `details` is what the bucket said of it."""

    def __init__(self, details: dict[str, Any], raw: "_Object") -> None:
        super().__init__(raw, _BLOCK_BYTES)
        self.details = details


class _Object(io.RawIOBase):
    """Reads an object by ranges."""

    def __init__(self, path: str, size: int) -> None:
        self._path, self._size, self._at = path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}
        if (place := start[whence] + offset) < 0:
            raise ValueError(f"an offset must be at least 0, got {place}")
        self._at = place
        return place

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), _REQUEST_BYTES)
        stop = min(self._at + wanted, self._size)
        if stop <= self._at:
            return 0
        block = ask(self._path, self._range, self._at, stop)
        buffer[: len(block)] = block
        self._at = stop
        return len(block)

    def readall(self) -> bytes:
        # What is inherited would ask for eight kilobytes at a time.
        rest = bytearray(max(0, self._size - self._at))
        done = 0
        while done < len(rest):
            done += self.readinto(memoryview(rest)[done:])
        return bytes(rest)

    def _range(self, start: int, stop: int) -> bytes:
        fs, plain = filesystem(self._path)
        block: bytes = fs.cat_file(plain, start=start, end=stop)
        if len(block) != stop - start:
            raise ConnectionError(f"{stop - start} bytes wanted, {len(block)} came")
        return block


@contextlib.contextmanager
def sending(path: str) -> Iterator[Any]:
    """Opens a local file that is sent to `path` when the block ends without error.

    So what was computed is not lost with a connection, and an object is sent whole.
    """
    with tempfile.NamedTemporaryFile(prefix="fusebeam-") as file:
        yield file
        file.flush()
        send(file.name, path)


def send(local: str, path: str) -> None:
    """Sends a local file, which appears under its final name whole and at once.

    A store keeps the parts of a large file apart until the last is there.

    Raises:
      FileNotFoundError: if there is no such bucket.
      ConnectionError: if it could not be sent whole.
    """
    size = os.path.getsize(local)
    # An upload whose end was answered, but whose answer was lost, is not there twice:
    # the store then knows no such upload, and the file is sent once more.
    s3 = (protocol(path) or "").startswith("s3")
    in_parts = s3 and size > _PART_BYTES
    also = (FileNotFoundError,) if in_parts else ()
    try:
        ask(path, _send_to_s3 if s3 else _send_to_gcs, local, path, also=also)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the bucket of {path} must exist, but it does not; buckets are not made:"
            " look at the spelling and the endpoint"
        ) from error
    if in_parts and (found := int(info(path)["size"])) != size:
        raise ConnectionError(
            f"{path} must hold {size} bytes once it is sent, it holds {found}; repeat"
            " the command"
        )


def _send_to_s3(local: str, path: str) -> None:
    """Sends a file, a large one in parts."""
    fs, plain = filesystem(path)
    size = os.path.getsize(local)
    if size > _PART_BYTES:
        fs.put_file(
            local,
            plain,
            chunksize=max(_PART_BYTES, -(-size // _PARTS // _MIB) * _MIB),
            max_concurrency=_PARTS_AT_ONCE,
            ContentType=_SENT_AS,
        )
        return
    with open(local, "rb") as file:
        fs.pipe_file(plain, file.read(), ContentType=_SENT_AS)


def _send_to_gcs(local: str, path: str) -> None:
    """Sends a file as one request, and compares checksums.

    A request that failed is made again from the file's start. The client's own ways
    would not do: one puts the content between marks, which it may hold itself; the
    other goes on with parts where nobody knows whether the last one was taken.
    """
    fs, plain = filesystem(path)
    bucket, _, key = plain.partition("/")
    with open(local, "rb", buffering=0) as raw:
        _, answer = fs.call(
            "POST",
            f"{fs._location}/upload/storage/v1/b/{bucket}/o",
            uploadType="media",
            name=key,
            headers={"Content-Type": _SENT_AS},
            data=_Resent(raw),
        )
        raw.seek(0)
        found = hashlib.file_digest(raw, _md5).digest()
    own = base64.b64encode(found).decode()
    if (there := json.loads(answer).get("md5Hash", own)) != own:
        raise ConnectionError(f"md5Hash must be {own} as of what was sent, is {there}")


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)


class _Resent(io.BufferedReader):
    """A file that stays open for another try when a request is done with it."""

    def close(self) -> None:
        """Goes back to the start."""
        if not self.raw.closed:
            self.seek(0)


def remove(path: str) -> None:
    """Removes an object; nothing happens where there is none."""
    fs, plain = filesystem(path)
    with contextlib.suppress(FileNotFoundError):
        ask(path, fs.rm_file, plain)
