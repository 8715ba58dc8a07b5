"""A file that counts and digests what is written to it."""

import hashlib
from typing import Any


class CountedFile:
    """A file open for writing that counts and digests what passes through it."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._hasher = hashlib.sha256()
        self.bytes = 0

    def write(self, block: Any) -> int:
        """Writes a block of bytes."""
        self._hasher.update(block)
        self.bytes += len(memoryview(block).cast("B"))
        self._file.write(block)
        return len(block)

    @property
    def sha256(self) -> str:
        """SHA-256 of all that was written, in hex."""
        return self._hasher.hexdigest()

    @property
    def closed(self) -> bool:
        """Whether the file below is closed."""
        return bool(self._file.closed)

    def tell(self) -> int:
        """Returns the offset, which is the number of bytes written."""
        return self.bytes

    def flush(self) -> None:
        """Flushes the file below."""
        self._file.flush()

    def close(self) -> None:
        """Leaves closing to `publish`, which must flush to the disk first."""
