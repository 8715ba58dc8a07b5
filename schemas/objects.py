"""Objects of buckets that are read by ranges, all of one version."""

import io
from typing import Any

from fsspec import asyn

from schemas import buckets
from schemas.errors import FusionError

_MIB = 1 << 20
_BLOCK_BYTES = 4 * _MIB
_REQUEST_BYTES = 64 * _MIB


def opened(path: str) -> io.BufferedReader:
    """Opens an object for reading.

    Raises:
      FileNotFoundError: if it is not there, or is a folder.
    """
    found = buckets.info(path)
    if found["type"] != "file":
        raise FileNotFoundError(f"{path} must be a file, it is a folder")
    return _Opened(found, _Object(path, found))


class _Opened(io.BufferedReader):
    """An object open for reading; `details` is what the bucket said of it."""

    def __init__(self, details: dict[str, Any], raw: "_Object") -> None:
        super().__init__(raw, _BLOCK_BYTES)
        self.details = details


class _Object(io.RawIOBase):
    """Reads an object by ranges, all of the version that was opened.

    Whoever wrote the very same content once more meanwhile has done no harm.
    """

    def __init__(self, path: str, details: dict[str, Any]) -> None:
        self._path, self._size, self._at = path, int(details["size"]), 0
        self._details = details

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
        block = buckets.ask(self._path, self._range, self._at, stop)
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
        fs, plain = buckets.filesystem(self._path)
        read = _range_of_s3 if buckets.speaks_s3(self._path) else _range_of_gcs
        block = read(fs, plain, self._details, start, stop)
        if block is None:
            had, known = buckets.content(self._details), buckets.info(self._path)
            if had is None or buckets.content(known) != had:
                raise FusionError(
                    f"{self._path} must not change while it is read, but was written"
                    " anew meanwhile; let the other command end, and repeat this one"
                )
            self._details = known
            raise ConnectionError("it was written anew, with the same content")
        if len(block) != stop - start:
            raise ConnectionError(f"{stop - start} bytes wanted, {len(block)} came")
        return block


def _range_of_s3(
    fs: Any, plain: str, details: dict[str, Any], start: int, stop: int
) -> bytes | None:
    """Reads a range; None if the object is another by now."""
    # s3fs's own way says nothing of the version whose bytes came.
    try:
        tag, block = asyn.sync(fs.loop, _get_of_s3, fs, plain, start, stop)
    except OSError as error:
        # It ends before the range begins.
        if "InvalidRange" in str(error.__cause__):
            return None
        raise
    return block if tag == details["ETag"] else None


async def _get_of_s3(fs: Any, plain: str, start: int, stop: int) -> tuple[str, bytes]:
    bucket, key, _ = fs.split_path(plain)
    answer = await fs._call_s3(
        "get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}"
    )
    try:
        return answer.get("ETag", ""), await answer["Body"].read()
    finally:
        answer["Body"].close()


def _range_of_gcs(
    fs: Any, plain: str, details: dict[str, Any], start: int, stop: int
) -> bytes | None:
    """Reads a range; None if the object is another by now."""
    version = details.get("generation")
    try:
        block: bytes = fs.cat_file(plain, start=start, end=stop, generation=version)
    except FileNotFoundError:
        return None
    return block
