"""Fused folders, read row by row.

dataset = FusedDataset("runs/demo/fused")
example = dataset[17]
"""

import collections
import concurrent.futures
import dataclasses
import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int64

from schemas import files, fused, manifest, parquet
from schemas.errors import SchemaError
from schemas.manifest import Manifest
from train import data, order
from train.data import Example
from transforms.functional import ranks
from transforms.functional.ranks import RankTable

_READERS = 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Group:
    """A row group in memory, still encoded."""

    path: str
    start: int
    columns: dict[str, list[Any]]
    table: RankTable


class FusedDataset(torch.utils.data.Dataset[Example]):
    """Random access to the packed rows of a fused folder, by their global index.

    Row groups are read whole, kept encoded, and decoded row by row.

    Attributes:
      manifest: the folder's manifest.
      group_rows: how many rows each row group holds, in the order of the files.
    """

    def __init__(self, folder: str) -> None:
        self.manifest: Manifest = manifest.read(folder, fused.STAGE)
        self._paths = [files.join(folder, f.name) for f in self.manifest.files]
        with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
            counts = list(pool.map(_row_groups, self._paths))
        for entry, found in zip(self.manifest.files, counts, strict=True):
            if sum(found) != entry.rows:
                raise SchemaError(
                    f"{files.join(folder, entry.name)} must hold {entry.rows} rows, as"
                    f" its folder's manifest says, it holds {sum(found)}; fuse again"
                )
        self._places = [
            (path, group, sum(found[:group]))
            for path, found in zip(self._paths, counts, strict=True)
            for group in range(len(found))
        ]
        flat = list(itertools.chain.from_iterable(counts))
        self.group_rows: Int64[np.ndarray, " g"] = np.array(flat, np.int64)
        self._ends = np.cumsum(self.group_rows)
        self._groups: collections.OrderedDict[int, _Group] = collections.OrderedDict()
        self._tables: dict[str, RankTable] = {}
        if not len(self):
            raise SchemaError(f"{folder} must hold at least one row, it holds none")

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
        return int(self.group_rows.sum())

    def __getitem__(self, index: int) -> Example:
        """Decodes one row.

        Raises:
          SchemaError: if it is corrupt; names the file and the row.
        """
        group = int(np.searchsorted(self._ends, index, side="right"))
        found = self._read(group)
        row = int(index - (self._ends[group] - self.group_rows[group]))
        try:
            return data.decode(
                {n: c[row] for n, c in found.columns.items()}, found.table
            )
        except SchemaError as error:
            raise SchemaError(
                f"{found.path}, row {found.start + row}: {error}"
            ) from error

    def _read(self, group: int) -> _Group:
        """Returns a row group, the least recently used making room for it."""
        if group in self._groups:
            self._groups.move_to_end(group)
            return self._groups[group]
        path, number, start = self._places[group]
        if path not in self._tables:
            self._tables[path] = _rank_table(path)
        (table,) = parquet.read(path, fused.SCHEMA, [number], data.COLUMNS)
        columns = {name: _split(table.column(name)) for name in data.COLUMNS}
        found = _Group(
            path=path, start=start, columns=columns, table=self._tables[path]
        )
        self._groups[group] = found
        if len(self._groups) > order.BLOCK_GROUPS + 1:
            self._groups.popitem(last=False)
        return found


def _row_groups(path: str) -> list[int]:
    found = parquet.metadata(path)
    return [found.row_group(g).num_rows for g in range(found.num_row_groups)]


def _rank_table(path: str) -> RankTable:
    text = parquet.footer(path).get("ranks")
    if not isinstance(text, str):
        raise SchemaError(
            f"the footer of {path} must hold a rank table; run fuse again"
        )
    try:
        return ranks.load_ranks(text)
    except SchemaError as error:
        raise SchemaError(f"{path}: {error}") from error


def _split(column: pa.ChunkedArray) -> list[Any]:
    """Cuts a column into one array, or one bytes object, a row."""
    flat = column.combine_chunks()
    if isinstance(flat, pa.ChunkedArray):
        flat = flat.chunk(0)
    if pa.types.is_binary(flat.type):
        return [value.as_py() for value in flat]
    values = flat.values.to_numpy(zero_copy_only=False)
    bounds = flat.offsets.to_numpy()
    return [values[start:stop] for start, stop in itertools.pairwise(bounds)]
