"""The windows file of one split, made of one input file."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from schemas import parquet, windows
from schemas.windows import Window
from transforms import rejects


class Part:
    """The windows file of one split, written a row group at a time."""

    def __init__(self, tables: parquet.TableWriter, group_windows: int) -> None:
        self.tables = tables
        self._size = group_windows
        self._waiting: list[Window] = []
        self._groups: list[dict[str, Any]] = []
        self._counts: Counter[str] = Counter()

    def add(self, document: Sequence[Window]) -> None:
        """Takes the windows of one document."""
        self._counts["documents"] += 1
        self._waiting += document
        while len(self._waiting) >= self._size:
            self._flush(self._waiting[: self._size])
            self._waiting = self._waiting[self._size :]

    def close(self, told: str) -> None:
        """Writes what waits, and the footer; `told` is the digest of the rejects."""
        if self._waiting:
            self._flush(self._waiting)
        self.tables.footer[rejects.KEY] = told
        self.tables.footer.update(
            documents=self._counts["documents"],
            windows=self.tables.rows,
            text_bytes=sum(group["text_bytes"] for group in self._groups),
            groups=self._groups,
        )

    def _flush(self, group: list[Window]) -> None:
        self.tables.write(windows.to_table(group))
        self._groups.append(
            {
                "windows": len(group),
                "text_bytes": sum(len(w.text.encode()) for w in group),
                "digest": windows.ids_digest(w.window_id for w in group),
            }
        )
