from pathlib import Path

import duckdb
import numpy as np
import polars
import pyarrow.parquet as pq
import pytest

from schemas import fused, parquet
from schemas.errors import SchemaError
from schemas.fused import FusedRow


def row(seed: int, segments: int = 3, sources: int = 2) -> FusedRow:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 50, segments).astype(np.int32)
    n = int(lengths.sum())
    first = np.isin(np.arange(n), np.cumsum(lengths) - lengths)
    last = np.isin(np.arange(n), np.cumsum(lengths) - 1)
    ends = np.flatnonzero(~first & (last | (rng.random(n) < 0.7))).astype(np.int32)
    return FusedRow(
        input_ids=rng.integers(0, 32_000, n).astype(np.int32),
        segment_lengths=lengths,
        loss_mask=rng.random(n) < 0.5,
        distribution=rng.bytes(100),
        window_ids=tuple(f"{seed}-{g}" for g in range(segments)),
        domains=tuple(None if g % 2 else "code" for g in range(segments)),
        weights=rng.random((segments, sources)).astype(np.float32),
        source_logprobs=-rng.exponential(100, (segments, sources)),
        source_coverage=rng.random((segments, sources)).astype(np.float32),
        n_bytes=(lengths * 4).astype(np.int32),
        chunk_ends=ends,
        chunk_logprobs=-rng.exponential(3, len(ends)).astype(np.float32),
        counted=n // 2,
        covered=n // 3,
    )


def write(path: str, groups: list[list[FusedRow]]) -> None:
    options = fused.WRITER_OPTIONS
    with parquet.writer(path, fused.SCHEMA, {"ranks": "x"}, **options) as tables:
        for group in groups:
            tables.write(fused.to_table(group))


def same(one: FusedRow, other: FusedRow) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in FusedRow.__dataclass_fields__
    )


def test_rows_survive_a_file_in_order(tmp_path: Path) -> None:
    path = f"{tmp_path}/f.parquet"
    groups = [[row(0), row(1, segments=1)], [row(2)], []]
    write(path, groups)
    found = list(fused.read(path))
    assert [len(group) for group in found] == [2, 1, 0]
    for wanted, rows in zip(groups, found, strict=True):
        assert all(same(one, other) for one, other in zip(wanted, rows, strict=True))


def test_row_groups_can_be_read_alone(tmp_path: Path) -> None:
    path = f"{tmp_path}/f.parquet"
    write(path, [[row(0)], [row(1)], [row(2)]])
    (group,) = fused.read(path, [1])
    assert same(group[0], row(1))


def test_a_slice_of_a_table_is_unpacked_as_the_slice() -> None:
    table = fused.to_table([row(0), row(1), row(2)])
    (found,) = fused.from_table(table.slice(1, 1))
    assert same(found, row(1))


def test_rows_without_sources_survive() -> None:
    (found,) = fused.from_table(fused.to_table([row(0, sources=0)]))
    assert found.weights.shape == (3, 0)


def test_duckdb_and_polars_read_the_plain_columns(tmp_path: Path) -> None:
    path = f"{tmp_path}/f.parquet"
    rows = [row(0), row(1)]
    write(path, [rows])
    query = (
        "select n_tokens, list_sum(segment_lengths), input_ids[1], covered,"
        f" window_ids[2], domains[2] from '{path}'"
    )
    for one, found in zip(rows, duckdb.sql(query).fetchall(), strict=True):
        n = len(one.input_ids)
        assert found == (n, n, one.input_ids[0], one.covered, one.window_ids[1], None)
    frame = polars.read_parquet(path)
    for one, found in zip(rows, frame.iter_rows(named=True), strict=True):
        assert found["input_ids"] == one.input_ids.tolist()
        assert found["loss_mask"] == one.loss_mask.tolist()
        assert found["weights"] == one.weights.ravel().tolist()
        assert found["source_logprobs"] == one.source_logprobs.ravel().tolist()
        assert found["chunk_ends"] == one.chunk_ends.tolist()
        assert found["chunk_logprobs"] == one.chunk_logprobs.tolist()
        assert found["distribution"] == one.distribution


def test_every_column_says_what_it_holds(tmp_path: Path) -> None:
    path = f"{tmp_path}/f.parquet"
    write(path, [[row(0)]])
    for field in pq.read_schema(path):
        assert field.metadata[b"doc"]
        assert not field.nullable


@pytest.mark.parametrize(
    ("changes", "law"),
    [
        ({"loss_mask": np.ones(3, bool)}, "must hold its"),
        ({"segment_lengths": np.array([1, 2], np.int32)}, "must hold its"),
        ({"window_ids": ("a",)}, "must describe its 3 segments"),
        ({"domains": (None,) * 4}, "must describe its 3 segments"),
        ({"weights": np.ones((2, 2), np.float32)}, "must describe its 3 segments"),
        ({"n_bytes": np.ones(2, np.int32)}, "n_bytes .* must describe its 3 segments"),
        ({"source_logprobs": np.ones((2, 2))}, "must describe its 3 segments"),
        ({"chunk_ends": np.array([5, 4], np.int32)}, "chunk_ends .* must rise"),
        ({"chunk_logprobs": np.ones(1, np.float32)}, "one for each of its 1"),
        ({"covered": 10**6}, "covered <= counted"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    changes: dict[str, object], law: str
) -> None:
    fields = {name: getattr(row(0), name) for name in FusedRow.__dataclass_fields__}
    with pytest.raises(SchemaError, match=law):
        FusedRow(**{**fields, **changes})


@pytest.mark.parametrize("ends", [[4], [2, 3, 4], [2, 3], [2, 4, 5], [0, 2, 4]])
def test_chunks_that_do_not_tile_the_segments_are_refused(ends: list[int]) -> None:
    fields = {name: getattr(row(0), name) for name in FusedRow.__dataclass_fields__}
    five = {
        "input_ids": np.arange(5, dtype=np.int32),
        "segment_lengths": np.array([3, 2], np.int32),
        "loss_mask": np.ones(5, bool),
        "window_ids": ("a", "b"),
        "domains": (None, None),
        "n_bytes": np.ones(2, np.int32),
        "counted": 4,
        "covered": 4,
        **{name: fields[name][:2] for name in fused._BY_SOURCE},
        "chunk_ends": np.array([2, 4], np.int32),
        "chunk_logprobs": np.zeros(2, np.float32),
    }
    FusedRow(**{**fields, **five})
    five["chunk_ends"] = np.array(ends, np.int32)
    five["chunk_logprobs"] = np.zeros(len(ends), np.float32)
    with pytest.raises(SchemaError, match="last token of every segment among them"):
        FusedRow(**{**fields, **five})
