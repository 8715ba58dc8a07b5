"""Fused folders with random distributions, for the trainer's tests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from schemas import files, fused, manifest, parquet
from schemas.fused import FusedRow
from schemas.manifest import Manifest
from transforms.functional import codec, ranks
from transforms.functional.codec import Distributions


def distributions(
    rng: np.random.Generator, tokens: int, k: int, vocabulary: int
) -> Distributions:
    """Random rows, some of them empty, some shorter than k."""
    counts = rng.integers(0, k + 1, tokens).astype(np.int32)
    used = np.arange(k) < counts[:, None]
    ids = np.argsort(rng.random((tokens, vocabulary)), -1)[:, :k]
    mass = rng.random((tokens, k + 1)) ** 4 * np.append(used, np.ones((tokens, 1)), 1)
    mass /= mass.sum(-1, keepdims=True)
    probs = -np.sort(-np.where(used, mass[:, :k], 0), -1)
    return Distributions(
        counts=counts,
        ids=np.where(used, ids, -1).astype(np.int32),
        probs=probs.astype(np.float32),
        tail=np.where(counts > 0, mass[:, k], 0).astype(np.float32),
    )


def table(vocabulary: int) -> ranks.RankTable:
    return ranks.rank_by_frequency(np.arange(vocabulary, dtype=np.int64))


def fused_row(
    rng: np.random.Generator, lengths: list[int], vocabulary: int, k: int = 4
) -> FusedRow:
    n = sum(lengths)
    ids = rng.integers(3, vocabulary, n).astype(np.int32)
    mask = rng.random(n) < 0.9
    mask[np.cumsum(lengths) - 1] = False
    first = np.cumsum(lengths) - lengths
    ends = np.setdiff1d(np.arange(n), first).astype(np.int32)  # every token a chunk
    rows = distributions(rng, n, k, vocabulary)
    return FusedRow(
        input_ids=ids,
        segment_lengths=np.array(lengths, np.int32),
        loss_mask=mask,
        distribution=codec.encode_rows(rows, ids, table(vocabulary)),
        window_ids=tuple(f"w{rng.integers(1 << 30)}" for _ in lengths),
        domains=(None,) * len(lengths),
        weights=np.tile(np.array([0.75, 0.25], np.float32), (len(lengths), 1)),
        source_logprobs=-rng.exponential(30, (len(lengths), 1)) * np.ones(2),
        source_coverage=np.ones((len(lengths), 2), np.float32),
        n_bytes=np.array(lengths, np.int32),
        chunk_ends=ends,
        chunk_logprobs=-rng.exponential(3, len(ends)).astype(np.float32),
        counted=int(mask.sum()),
        covered=int((mask & (rows.counts > 0)).sum()),
    )


def write(
    folder: Path,
    *,
    vocabulary: int,
    files_of: tuple[tuple[int, ...], ...] = ((4, 3), (2,)),
    fingerprint: str = "f" * 32,
) -> Path:
    """Writes a fused folder; `files_of` gives the rows of each group of each file."""
    rng = np.random.default_rng([7, *fingerprint.encode()])
    entries = []
    for number, groups in enumerate(files_of):
        path = files.join(str(folder), f"slice-{number:06d}.parquet")
        footer = {"ranks": ranks.dump_ranks(table(vocabulary))}
        with parquet.writer(
            path, fused.SCHEMA, footer, **fused.WRITER_OPTIONS
        ) as tables:
            for size in groups:
                rows = [
                    fused_row(rng, [5, 1, int(rng.integers(6, 20))], vocabulary)
                    for _ in range(size)
                ]
                tables.write(fused.to_table(rows))
        assert tables.entry is not None
        entries.append(tables.entry)
    made = Manifest(
        stage=fused.STAGE,
        fingerprint=fingerprint,
        settings={"fusion": "mince", "sources": ["one", "two"]},
        inputs={"windows": "w" * 32, "scores:one": "1" * 32, "scores:two": "2" * 32},
        origins={"models": {"one": "org/one-7b", "two": "/home/me/models/two-9b"}},
        counts={},
        files=entries,
        code_version="0",
    )
    manifest.write(str(folder), made)
    return folder


def change_manifest(
    folder: str | Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    """Changes the manifest of a folder in place."""
    path = Path(folder, manifest.NAME)
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def rewrite(
    folder: str | Path,
    change: dict[str, object],
    *,
    footer: dict[str, Any] | None = None,
) -> None:
    """Writes the first file again, row 2 of its last group changed, as if by fuse."""
    path = str(Path(folder, "slice-000000.parquet"))
    tables = list(parquet.read(path, fused.SCHEMA))
    rows = tables[-1].to_pylist()
    rows[2] |= change
    tables[-1] = tables[-1].from_pylist(rows, schema=fused.SCHEMA)
    kept = parquet.footer(path) if footer is None else footer
    with parquet.writer(path, fused.SCHEMA, kept, **fused.WRITER_OPTIONS) as writer:
        for table in tables:
            writer.write(table)
    entry = writer.entry
    assert entry is not None
    change_manifest(folder, lambda m: m["files"][0].update(bytes=entry.bytes))
