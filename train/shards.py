"""Fused folders, read group of rows by group of rows.

    folder = FusedFolder("s3://bucket/run/fused")
    file, row = folder.place(1_000_000)
    example = folder.read(file, row // GROUP_ROWS).example(row % GROUP_ROWS)

A folder is opened by its manifest and one listing, however many files it has: each file
says of itself what it is once it is read.
"""

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from schemas import files, fused, manifest, parquet
from schemas.errors import SchemaError
from schemas.manifest import Manifest
from train import data
from train.data import Example
from train.order import BLOCK_GROUPS, GROUP_ROWS
from transforms.functional import ranks
from transforms.functional.ranks import RankTable


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """Rows of a file that lie together, still encoded.

    Attributes:
      path: of the file.
      start: number of the first of them in the file.
      columns: by name a value for each row.
      table: the codec's, of the file.
    """

    path: str
    start: int
    columns: dict[str, list[Any]]
    table: RankTable

    def example(self, row: int) -> Example:
        """Decodes a row, numbered from the group's first.

        Raises:
          SchemaError: if it is corrupt; names the file and the row.
        """
        try:
            return data.decode({n: c[row] for n, c in self.columns.items()}, self.table)
        except SchemaError as error:
            raise SchemaError(
                f"{self.path}, row {self.start + row}: {error}"
            ) from error


class FusedFolder:
    """The packed rows of a fused folder.

    Attributes:
      folder: where it is.
      manifest: its manifest.
      file_rows: how many rows each file holds.
    """

    def __init__(self, folder: str) -> None:
        """Opens a folder.

        Raises:
          SchemaError: if it is not finished, has no rows, or its files are not those
            that its manifest names, by their sizes.
        """
        self.folder = folder
        self.manifest: Manifest = manifest.read(folder, fused.STAGE)
        self.file_rows: Int64[np.ndarray, " f"] = np.array(
            [entry.rows for entry in self.manifest.files], np.int64
        )
        self._ends = np.cumsum(self.file_rows)
        if not len(self):
            raise SchemaError(f"{folder} must hold at least one row, it holds none")
        self._check_sizes()

    def _check_sizes(self) -> None:
        found = files.stamps(self.folder)
        for entry in self.manifest.files:
            size, _ = found.get(entry.name, (None, ""))
            if size != entry.bytes:
                has = "is not there" if size is None else f"has {size}"
                raise SchemaError(
                    f"{files.join(self.folder, entry.name)} must have {entry.bytes}"
                    f" bytes, as its folder's manifest says, but {has}; copy the folder"
                    " again, or remove the file and the manifest and repeat fuse, which"
                    " makes only this file anew"
                )

    @property
    def fingerprint(self) -> str:
        """Digest of all that shapes the data."""
        return self.manifest.fingerprint

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources that a row's weights are of, in their order."""
        return tuple(self.manifest.settings.get("sources", ()))

    def __len__(self) -> int:
        """Counts the packed rows."""
        return int(self.file_rows.sum())

    def place(self, row: int) -> tuple[int, int]:
        """Returns the file that holds a row, and the row's number in it."""
        file = int(np.searchsorted(self._ends, row, side="right"))
        return file, int(row - (self._ends[file] - self.file_rows[file]))

    def groups(self, rows: Int64[np.ndarray, " n"]) -> list[tuple[int, int]]:
        """Returns the groups that hold rows, each once: file and number in the file.

        They come in the order in which rows first need them.
        """
        file = np.searchsorted(self._ends, rows, side="right")
        number = (rows - (self._ends - self.file_rows)[file]) // GROUP_ROWS
        pairs = zip(file.tolist(), number.tolist(), strict=True)
        return list(dict.fromkeys(pairs))

    def rows_in(self, file: int, number: int) -> int:
        """Counts the rows of a group, by the manifest."""
        return min(GROUP_ROWS, int(self.file_rows[file]) - number * GROUP_ROWS)

    def read(self, file: int, number: int) -> Group:
        """Reads a group: rows [64 number, 64 number + 64) of a file, or what there is.

        Raises:
          SchemaError: if the file is corrupt, has other columns, or another number of
            rows than the manifest says; names it, and the rows.
        """
        entry, start = self.manifest.files[file], number * GROUP_ROWS
        path = files.join(self.folder, entry.name)
        stop = start + self.rows_in(file, number)
        part = parquet.read_rows(path, fused.SCHEMA, (start, stop), data.COLUMNS)
        if part.rows != entry.rows:
            raise SchemaError(
                f"{path} must hold {entry.rows} rows, as its folder's manifest says, it"
                f" holds {part.rows}; fuse again"
            )
        columns = {name: _split(part.table.column(name)) for name in data.COLUMNS}
        table = _rank_table(path, part.footer)
        return Group(path=path, start=start, columns=columns, table=table)


def _rank_table(path: str, footer: dict[str, Any]) -> RankTable:
    text = footer.get("ranks")
    if not isinstance(text, str):
        raise SchemaError(
            f"the footer of {path} must hold a rank table; run fuse again"
        )
    try:
        return _loaded(text)
    except SchemaError as error:
        raise SchemaError(f"{path}: {error}") from error


@functools.lru_cache(BLOCK_GROUPS)
def _loaded(text: str) -> RankTable:
    """Keeps the tables of a block's files: each is as large as two vocabularies."""
    return ranks.load_ranks(text)


def _split(column: pa.ChunkedArray) -> list[Any]:
    """Cuts a column into one array, or one bytes object, a row."""
    flat = column.combine_chunks()
    if isinstance(flat, pa.ChunkedArray):
        flat = flat.chunk(0)
    if pa.types.is_binary(flat.type):
        return [value.as_py() for value in flat]
    bounds = flat.offsets.to_numpy()
    # Offsets of a part of an array are those of the whole.
    values = flat.values.to_numpy(zero_copy_only=False)
    return [values[start:stop] for start, stop in itertools.pairwise(bounds)]
