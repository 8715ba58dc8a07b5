"""Fused files for benchmarks, of a model's outputs; and the same as nested lists."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas import files, fused, manifest, parquet
from schemas.fused import FusedRow
from schemas.manifest import FileEntry, Manifest
from tests.bench.ngram import Outputs
from transforms.functional import chunks, pack, ranks
from transforms.functional.codec import Distributions

SEQ_LENGTH = 2048
SOURCES = 3

Packed = tuple[np.ndarray, Distributions, list[int]]


def packed_rows(made: Outputs) -> Iterator[Packed]:
    """Yields token ids, distributions and windows of each packed row."""
    starts = np.append(0, made.lengths.cumsum())
    for windows in pack.pack_windows(made.lengths.tolist(), SEQ_LENGTH):
        at = np.concatenate([np.arange(starts[w], starts[w + 1]) for w in windows])
        rows = Distributions(
            counts=made.counts[at],
            ids=made.ids[at],
            probs=made.probs[at],
            tail=made.tail[at],
        )
        yield made.token_ids[at], rows, made.lengths[windows].tolist()


def frequencies(packed: list[Packed], size: int) -> np.ndarray:
    """Counts how often each id is kept."""
    kept = np.concatenate([rows.ids[rows.ids >= 0] for _, rows, _ in packed])
    return np.bincount(kept, minlength=size)


def write(
    path: str, packed: list[Packed], frames: list[bytes], table: ranks.RankTable
) -> None:
    """Writes a folder of one file."""
    write_manifest(files.parent(path), [write_file(path, packed, frames, table)])


def write_file(
    path: str, packed: list[Packed], frames: list[bytes], table: ranks.RankTable
) -> FileEntry:
    """Writes a file of a fused folder."""
    footer = {"ranks": ranks.dump_ranks(table), "tokens": None}
    rng = np.random.default_rng(0)
    records = [
        FusedRow(
            input_ids=ids,
            segment_lengths=np.array(lengths, np.int32),
            loss_mask=rows.counts > 0,
            distribution=frame,
            window_ids=tuple(
                hashlib.blake2b(rng.bytes(8), digest_size=16).hexdigest()
                for _ in lengths
            ),
            domains=("code",) * len(lengths),
            weights=rng.dirichlet(np.ones(SOURCES), len(lengths)).astype(np.float32),
            **_figures(rng, len(ids), lengths),
            counted=int((rows.counts > 0).sum()),
            covered=int((rows.counts > 0).sum()),
        )
        for (ids, rows, lengths), frame in zip(packed, frames, strict=True)
    ]
    options = fused.WRITER_OPTIONS
    with parquet.writer(path, fused.SCHEMA, footer, **options) as tables:
        for start in range(0, len(records), fused.ROW_GROUP_ROWS):
            group = records[start : start + fused.ROW_GROUP_ROWS]
            tables.write(fused.to_table(group))
    assert tables.entry is not None
    return tables.entry


def write_manifest(folder: str, entries: Sequence[FileEntry]) -> None:
    """Writes the manifest of a folder of these files."""
    made = Manifest(
        stage=fused.STAGE,
        fingerprint="",
        settings={"sources": [f"source {number}" for number in range(SOURCES)]},
        inputs={},
        origins={},
        counts={},
        files=entries,
        code_version="",
    )
    manifest.write(folder, made)


def _figures(
    rng: np.random.Generator, tokens: int, lengths: list[int]
) -> dict[str, np.ndarray]:
    """Makes up what stands beside the distributions, five tokens of six a chunk."""
    stops = np.cumsum(lengths)
    ends = rng.random(tokens) < 5 / 6
    ends[stops - 1], ends[stops - lengths] = True, False
    chosen = np.flatnonzero(ends).astype(np.int32)
    spent = rng.gamma(0.4, 5.0, len(chosen))  # most next to nothing, 2 nats in the mean
    by_source = (len(lengths), SOURCES)
    return {
        "source_logprobs": -rng.gamma(20.0, 30.0, by_source),
        "source_coverage": rng.random(by_source).astype(np.float32),
        "n_bytes": np.array(lengths, np.int32) * 4,
        "chunk_ends": chosen,
        "chunk_logprobs": chunks.round_logprobs(-spent),
    }


def write_nested(path: str, packed: list[Packed]) -> None:
    """Writes what FuseLLM's layout keeps: a list of lists a row."""
    columns = {
        "input_ids": [ids.tolist() for ids, _, _ in packed],
        "ids": [rows.ids.tolist() for _, rows, _ in packed],
        "probs": [rows.probs.tolist() for _, rows, _ in packed],
    }
    floats = pa.list_(pa.list_(pa.float32()))
    kinds = (pa.list_(pa.int32()), pa.list_(pa.list_(pa.int32())), floats)
    schema = pa.schema(zip(columns, kinds, strict=True))
    pq.write_table(pa.table(columns, schema=schema), path, compression="zstd")
