"""Co-occurrences: which tokens of two models stood beside each other, and how often.

A folder of them holds one file for each slice of the windows' plan; the counts of a
corpus are their sums.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from jaxtyping import Int32, Int64

from schemas import parquet

STAGE = "cooccurrences"

SCHEMA = pa.schema(
    [
        pa.field("source_id", pa.int32(), nullable=False),
        pa.field("target_id", pa.int32(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),
    ]
)

Columns = tuple[
    Int32[np.ndarray, " c"], Int32[np.ndarray, " c"], Int64[np.ndarray, " c"]
]
"""Source ids, target ids and counts, one row a pair, both ids rising."""


def to_table(columns: Columns) -> pa.Table:
    """Packs counts into one Arrow table, in order."""
    arrays = [pa.array(column) for column in columns]
    return pa.table(arrays, schema=SCHEMA)


def read(path: str) -> Iterator[Columns]:
    """Yields the counts of a file, a part for each row group.

    Raises:
      SchemaError: if the file is corrupt.
    """
    for table in parquet.read(path, SCHEMA):
        sources, targets, counts = (
            table.column(name).to_numpy() for name in SCHEMA.names
        )
        yield sources, targets, counts
