from pathlib import Path

import pytest

from tests.bench import bench_dense, bench_shards


def test_each_row_that_is_written_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_shards, "FILES", 2)
    row = bench_dense.example()
    bench_shards._write(str(tmp_path), [(row.input_ids, row.rows, [len(row.rows.ids)])])
    batches = bench_shards._fused_batches(str(tmp_path), read_ahead=1)
    monkeypatch.setattr(bench_shards, "BATCH_ROWS", 3)
    assert sum(batches) == 2 * bench_shards.GROUPS * bench_dense.TOKENS
