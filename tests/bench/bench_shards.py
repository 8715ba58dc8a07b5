"""Speed of the trainer's whole reading path, and of opening a folder of many files.

From Parquet row groups in files to collated batches of tensors, in the order of
training; times are CPU seconds of this process, all of its threads together, so a
figure is for one core. Against it stands a plain reader of the same rows as nested
lists: row groups to Python lists, lists to arrays, arrays into a padded batch.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from schemas import files, fused, parquet
from schemas.manifest import FileEntry
from tests.bench import fused_files, ngram, rows
from tests.bench.fused_files import Packed
from train.data import Collator
from train.mixture import Mixture
from train.order import StepBatches
from train.shards import FusedFolder
from transforms.functional import codec, ranks

FILES = 4
GROUPS = 3
"""Row groups of a file; what an n-gram model says of 64 rows is repeated."""

BATCH_ROWS = 8
MANY_FILES = 10_000


def run() -> list[dict[str, Any]]:
    """Reads fused rows and nested lists in turns; opens a folder of many files."""
    packed = list(fused_files.packed_rows(ngram.outputs()))[: fused.ROW_GROUP_ROWS]
    with tempfile.TemporaryDirectory() as folder:
        nested = f"{folder}/nested.parquet"
        entry = _write(folder, packed)
        fused_files.write_nested(nested, packed)
        speeds = {ahead: _best(folder, ahead) for ahead in (0, 16)}
        plain = _tokens_per_s(_nested_batches(nested))
        opened = _open_many(f"{folder}/{entry.name}")
    against = f"nested lists, {plain:,.0f} tokens/s"
    return [
        rows.at_least(
            1e6,
            f"files to batches, {ahead} groups read ahead",
            speed,
            "tokens/s/core",
            against=against,
            ratio=speed / plain,
        )
        for ahead, speed in speeds.items()
    ] + opened


def _write(folder: str, packed: list[Packed]) -> FileEntry:
    """Writes a folder of several files of several row groups; returns the first."""
    table = ranks.rank_by_frequency(fused_files.frequencies(packed, ngram.SIZE))
    frames = [codec.encode_rows(said, ids, table) for ids, said, _ in packed]
    entries = [
        fused_files.write_file(
            f"{folder}/slice-{number:06d}.parquet",
            packed * GROUPS,
            frames * GROUPS,
            table,
        )
        for number in range(FILES)
    ]
    fused_files.write_manifest(folder, entries)
    return entries[0]


def _best(folder: str, read_ahead: int) -> float:
    """Returns tokens per CPU second, the best of three readings of the folder."""
    return max(_tokens_per_s(_fused_batches(folder, read_ahead)) for _ in range(3))


def _tokens_per_s(batches: Iterator[int]) -> float:
    next(batches)  # compiles, and opens what there is to open
    start, tokens = time.process_time(), sum(batches)
    return tokens / (time.process_time() - start)


def _fused_batches(folder: str, read_ahead: int) -> Iterator[int]:
    """Yields the tokens of each batch, made as the trainer makes it."""
    mixture = Mixture([FusedFolder(folder)], seed=0, read_ahead=read_ahead)
    collate = Collator(keep_packed=True, vocabulary=ngram.SIZE)
    yield 0
    steps = len(mixture) // BATCH_ROWS
    for numbers in StepBatches(steps=steps, step_rows=BATCH_ROWS):
        yield int(collate([mixture[n] for n in numbers])["tokens"])
    mixture.close()


def _nested_batches(path: str) -> Iterator[int]:
    """Yields the tokens of each batch, made of lists."""
    yield 0
    for batch in pq.ParquetFile(path).iter_batches(BATCH_ROWS):
        yield _padded(batch.to_pylist())


def _padded(found: list[dict[str, Any]]) -> int:
    t = max(len(row["input_ids"]) for row in found)
    ids = torch.zeros(len(found), t, dtype=torch.int64)
    top_ids = torch.full((len(found), t, ngram.K), -1)
    probs = torch.zeros(len(found), t, ngram.K)
    for number, row in enumerate(found):
        n = len(row["input_ids"])
        ids[number, :n] = torch.tensor(row["input_ids"])
        top_ids[number, :n] = torch.tensor(row["ids"])
        probs[number, :n] = torch.tensor(row["probs"])
    return sum(len(row["input_ids"]) for row in found)


def _open_many(path: str) -> list[dict[str, Any]]:
    """Opens a folder of many files, each the first row of `path`."""
    with tempfile.TemporaryDirectory() as folder:
        entries = _copies(path, folder)
        start = time.perf_counter()
        mixture = Mixture([FusedFolder(folder)], seed=0)
        first = mixture[0]
        opened_s = time.perf_counter() - start
        assert len(first.input_ids)
        start = time.perf_counter()
        files.each(parquet.metadata, [f"{folder}/{e.name}" for e in entries])
        footers_s = time.perf_counter() - start
    return [
        rows.at_most(
            10,
            f"first sample of a folder of {MANY_FILES:,} files",
            opened_s,
            "s",
            against=f"reading all footers by 16 threads, {footers_s:.1f} s",
            ratio=opened_s / footers_s,
        )
    ]


def _copies(path: str, folder: str) -> list[FileEntry]:
    """Writes a file of one row, and links to it by many names."""
    first = next(parquet.read(path, fused.SCHEMA)).slice(0, 1)
    made, kept = f"{folder}/slice-000000.parquet", parquet.footer(path)
    with parquet.writer(made, fused.SCHEMA, kept, **fused.WRITER_OPTIONS) as tables:
        tables.write(first)
    assert tables.entry is not None
    entries = [tables.entry]
    for number in range(1, MANY_FILES):
        name = f"slice-{number:06d}.parquet"
        os.link(made, Path(folder, name))
        entries.append(
            FileEntry(name=name, rows=1, tokens=None, bytes=entries[0].bytes, sha256="")
        )
    fused_files.write_manifest(folder, entries)
    return entries
