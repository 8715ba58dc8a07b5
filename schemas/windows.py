"""Windows: pieces of documents that fit every model, and the files they live in.

A windows folder holds one split: `part-*.parquet` files, `plan.jsonl` and
`manifest.json`. The windows of a document stand in order, and put end to end they are
the document, byte for byte.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from schemas import files, parquet
from schemas.errors import SchemaError
from schemas.plan import Slice

STAGE = "windows"
DEFAULT_DOMAIN = "default"
"""The domain of windows that carry no label."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Window:
    """A piece of a document.

    Attributes:
      window_id: content hash of text, document id and offset, 32 hex digits.
      doc_id: the document it is cut from.
      text: the piece itself.
      byte_start: where it starts in the document's UTF-8.
      ends_document: whether it is the document's last window.
      domain: label of the document, or None.
      loss_spans: [start, stop) byte spans that count, flat; None = all of the text.
      control_spans: [start, stop) byte spans that a chat template wrote, flat; None =
        there are none, and all of the text is text.
    """

    window_id: str
    doc_id: str
    text: str
    byte_start: int
    ends_document: bool
    domain: str | None = None
    loss_spans: tuple[int, ...] | None = None
    control_spans: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuses an empty window."""
        if not self.text:
            raise SchemaError(f"a window must hold text, {self.window_id} holds none")

    @property
    def eos_follows(self) -> bool:
        """Whether EOS comes behind it: where its document ends, and nothing closed it.

        A chat template that writes an end of turn last has closed the dialogue: a
        second end is nothing that a model should learn.
        """
        if not self.ends_document or not self.control_spans:
            return self.ends_document
        start, stop = self.control_spans[-2:]
        raw = self.text.encode()
        return stop < len(raw) or not raw[start:stop].strip()


SCHEMA = pa.schema(
    [
        pa.field("window_id", pa.string(), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("byte_start", pa.int64(), nullable=False),
        pa.field("ends_document", pa.bool_(), nullable=False),
        pa.field("domain", pa.string()),
        pa.field("loss_spans", pa.list_(pa.int32())),
        pa.field("control_spans", pa.list_(pa.int32())),
    ]
)


def to_table(windows: Sequence[Window]) -> pa.Table:
    """Packs windows into one Arrow table, in order."""
    columns = {
        name: [getattr(window, name) for window in windows] for name in SCHEMA.names
    }
    return pa.table(columns, schema=SCHEMA)


def from_table(table: pa.Table) -> list[Window]:
    """Unpacks the windows of an Arrow table, in order."""
    return [Window(**_spans_as_tuples(row)) for row in table.to_pylist()]


def _spans_as_tuples(row: dict[str, Any]) -> dict[str, Any]:
    for name in ("loss_spans", "control_spans"):
        if row[name] is not None:
            row[name] = tuple(row[name])
    return row


def ids_digest(window_ids: Iterable[str]) -> str:
    """Digests the ids of a row group's windows in order."""
    return files.digest(list(window_ids))


def slice_digest(group_digests: Iterable[str]) -> str:
    """Digests the row groups of a slice in order: what joins the sources of a slice."""
    return files.digest(list(group_digests))


def read_slice(folder: str, piece: Slice) -> Iterator[list[Window]]:
    """Yields the windows of a slice, a list for each row group.

    Raises:
      SchemaError: if the file is corrupt, or holds other windows than the plan says.
    """
    digests = []
    path = files.join(folder, piece.file)
    groups = range(piece.row_group_start, piece.row_group_stop)
    for table in parquet.read(path, SCHEMA, groups):
        windows = from_table(table)
        digests.append(ids_digest(window.window_id for window in windows))
        yield windows
    if slice_digest(digests) != piece.digest:
        raise SchemaError(
            f"{path}, row groups {groups.start} to {groups.stop - 1}, must hold the"
            f" windows of slice {piece.index} of the plan, but holds others; run"
            " prepare again, and what follows it"
        )


def read_all(folder: str, slices: Iterable[Slice]) -> Iterator[Window]:
    """Yields the windows of slices, one by one."""
    for piece in slices:
        for windows in read_slice(folder, piece):
            yield from windows
