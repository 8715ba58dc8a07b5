"""Objects in buckets, s3:// and gs://: what their clients leave open.

There is one way to a bucket: the clients that fsspec knows, s3fs and gcsfs, which take
credentials and endpoint from the environment variables of AWS's and Google's own tools.
Each request is made again with back-off where the client gives up too early; an object
is sent whole or not at all, so that it appears at once under its final name; a listing
or an object's description is never remembered, as other processes write, too.
"""

import base64
import contextlib
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

from schemas import faults
from schemas.errors import FusionError

Result = TypeVar("Result")

EXTRAS = {"s3": "aws", "s3a": "aws", "gs": "gcp", "gcs": "gcp"}
"""The extra that a bucket's client comes with, by protocol."""

_TRIES = 4
_MIB = 1 << 20
_PART_BYTES = 16 * _MIB
"""Larger files are sent to S3 in parts of this size, unless there would be too many;
GCS gets each file in one request."""
_PARTS = 5_000
_PARTS_AT_ONCE = 4
_SENT_AS = "application/octet-stream"
_OPEN_FILES = "/proc/self/fd"

_CONNECT_S, _SILENT_S = 30.0, 60.0
"""How long GCS may take to let us in, and to send something: gcsfs sets no limit."""


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
        from gcsfs.core import GCSFileSystem, aiohttp

        limits = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_S, sock_read=_SILENT_S
        )
        return GCSFileSystem(use_listings_cache=False, requests_timeout=limits)
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
      FusionError: if the bucket refuses to open itself to us, or cannot do what is
        asked; names path and cure.
      FileNotFoundError: if there is no such object or bucket.
      ConnectionError: if the bucket does not answer as it should, try after try.
    """
    if protocol(path) is None:
        return call(*args, **kwargs)
    for attempt in range(_TRIES):
        try:
            return call(*args, **kwargs)
        except Exception as error:
            expected, last = isinstance(error, also), attempt == _TRIES - 1
            if expected and last:
                raise
            if not (expected or faults.may_pass(error)):
                if (told := faults.told(path, error, _credentials(path))) is error:
                    raise
                raise told from error
            if last:
                raise ConnectionError(
                    f"{path} must be reachable, but {_TRIES} tries failed, the last"
                    f" with {type(error).__name__}: {error}; look at the endpoint and"
                    " the network, and repeat the command, which goes on where it"
                    " stopped"
                ) from error
            time.sleep(random.uniform(0.5, 1) * 2**attempt)
    raise AssertionError("unreachable")


def speaks_s3(path: str) -> bool:
    """Says whether a path is of S3, or of what speaks its protocol."""
    return (protocol(path) or "").startswith("s3")


def _credentials(path: str) -> str:
    if speaks_s3(path):
        return "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role"
    return "GOOGLE_APPLICATION_CREDENTIALS, gcloud's login, or a service account"


def info(path: str) -> dict[str, Any]:
    """Returns what a bucket says of an object or folder.

    Raises:
      FileNotFoundError: if it is not there.
    """
    fs, plain = filesystem(path)
    return dict(ask(path, fs.info, plain))


def checksum(path: str) -> str | None:
    """Returns what a bucket says of an object's content, if it says anything."""
    return content(info(path))


def content(details: dict[str, Any]) -> str | None:
    """Returns what `info` says of an object's content, if it says anything."""
    for key in ("ETag", "md5Hash", "crc32c", "etag"):
        if details.get(key):
            return f"{key}:{details[key]}:{details['size']}"
    return None


@contextlib.contextmanager
def sending(path: str) -> Iterator[Any]:
    """Opens a local file that is sent to `path` when the block ends without error.

    So what was computed is not lost with a connection, and an object is sent whole. On
    Linux the file has no name, so that nothing is left of it if the process is killed.
    """
    if os.path.isdir(_OPEN_FILES):
        with tempfile.TemporaryFile(prefix="fusebeam-") as nameless:
            yield nameless
            nameless.flush()
            send(f"{_OPEN_FILES}/{nameless.fileno()}", path)
        return
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
    s3 = speaks_s3(path)
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
    """Sends a file as one request, and compares what the store says that it holds.

    A request that failed is made again from the file's start. The client's own ways
    would not do: one puts the content between marks, which it may hold itself; the
    other goes on with parts where nobody knows whether the last one was taken.
    """
    fs, plain = filesystem(path)
    bucket, _, key = plain.partition("/")
    wanted = _held(local, key)
    with open(local, "rb", buffering=0) as raw:
        _, answer = fs.call(
            "POST",
            f"{fs._location}/upload/storage/v1/b/{bucket}/o",
            uploadType="media",
            name=key,
            headers={"Content-Type": _SENT_AS},
            data=_Resent(raw),
        )
    found = json.loads(answer)
    for name, value in wanted.items():
        # Of an object that was composed of others a store knows no MD5.
        there = found.get(name, value if name == "md5Hash" else None)
        if str(there) != value:
            raise ConnectionError(
                f"{name} must be {value} as of what was sent, is {there}"
            )


def _held(local: str, key: str) -> dict[str, str]:
    """Returns what GCS must answer once it holds a file.

    The file is read by a handle of its own: the request's may be moved by a thread of
    an earlier try.
    """
    with open(local, "rb") as file:
        found = hashlib.file_digest(file, _md5).digest()
    return {
        "name": key,
        "size": str(os.path.getsize(local)),
        "md5Hash": base64.b64encode(found).decode(),
    }


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)


class _Resent(io.BufferedReader):
    """A file that stays open, and where it is, when a request is done with it.

    The client closes it in a thread, some time later: the next try, for which it goes
    back to the start, may then be under way.
    """

    def close(self) -> None:
        """Does nothing: who opened the file closes it."""


def remove(path: str) -> None:
    """Removes an object; nothing happens where there is none."""
    fs, plain = filesystem(path)
    with contextlib.suppress(FileNotFoundError):
        ask(path, fs.rm_file, plain)
