"""Size, error and speed of fused files, on the outputs of an n-gram model.

An n-gram model is quick to make, and gives positions enough to time. Size and error are
measured on real outputs of SmolLM2, too, where that model is there. Times are CPU
seconds of this process, so a figure is for one core.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas import files, fused, manifest, parquet
from schemas.fused import FusedRow
from schemas.manifest import Manifest
from tests.bench import ngram, rows, smollm2
from tests.bench.ngram import Outputs
from train.data import Collator
from train.mixture import Mixture
from train.shards import FusedFolder
from transforms.functional import chunks, codec, pack, ranks
from transforms.functional.codec import Distributions

SEQ_LENGTH = 2048
SOURCES = 3
FILE = "slice-000000.parquet"


def run() -> list[dict[str, Any]]:
    """Packs, encodes, writes, reads and compares outputs of both models."""
    found = _measure(ngram.outputs())
    real = smollm2.outputs()
    return found if real is None else found + _measure_real(real)


def _measure(made: Outputs) -> list[dict[str, Any]]:
    packed = list(_pack(made))
    table = ranks.rank_by_frequency(_frequencies(packed, ngram.SIZE))
    codec.encode_rows(packed[0][1], packed[0][0], table)  # compiles
    encode_s, frames = _cpu_s(
        lambda: [codec.encode_rows(said, ids, table) for ids, said, _ in packed]
    )
    positions = sum(len(ids) for ids, _, _ in packed)
    with tempfile.TemporaryDirectory() as folder:
        path, nested = f"{folder}/{FILE}", f"{folder}/nested.parquet"
        _write(path, packed, frames, table)
        _write_nested(nested, packed)
        next(_read(path))  # compiles
        decode_s, read = _cpu_s(lambda: list(_read(path)))
        collate_s, tokens = _cpu_s(lambda: _collate(folder))
        nested_s, _ = _cpu_s(lambda: pq.read_table(nested).to_pylist())
        size, nested_size = os.path.getsize(path), os.path.getsize(nested)
    assert tokens == positions
    return _rows(
        {
            "size": size / positions,
            "nested": nested_size / positions,
            "error": _error(read, packed),
            "encode": positions / encode_s,
            "decode": positions / decode_s,
            "collate": positions / collate_s,
            "to_pylist": positions / nested_s,
        }
    )


def _rows(v: dict[str, float]) -> list[dict[str, Any]]:
    nested = f"nested lists, {v['nested']:.1f} B/token"
    pylist = f"nested lists to_pylist, {v['to_pylist']:,.0f} tokens/s"
    speed, of = "tokens/s/core", "n-gram model"
    size = {"against": nested, "ratio": v["size"] / v["nested"]}
    decode = {"against": pylist, "ratio": v["decode"] / v["to_pylist"]}
    batches = {"against": pylist, "ratio": v["collate"] / v["to_pylist"]}
    return [
        rows.at_most(
            21, f"fused file, k = 10, {of}, 32k", v["size"], "B/token", **size
        ),
        rows.at_most(1.5e-4, f"KL(stored || original), {of}", v["error"], "nat"),
        rows.at_least(3e5, f"encode distributions, {of}", v["encode"], speed),
        rows.at_least(1e6, f"decode fused file, {of}", v["decode"], speed, **decode),
        rows.at_least(
            1e6, f"read batches to train on, {of}", v["collate"], speed, **batches
        ),
    ]


def _measure_real(made: Outputs) -> list[dict[str, Any]]:
    """Measures size and error on what a real LLM says of a few thousand tokens.

    The columns are counted without the file's footer: its rank table, which a slice's
    million tokens share, would weigh too much on so few.
    """
    packed = list(_pack(made))
    table = ranks.rank_by_frequency(_frequencies(packed, smollm2.SIZE))
    frames = [codec.encode_rows(said, ids, table) for ids, said, _ in packed]
    positions = sum(len(ids) for ids, _, _ in packed)
    with tempfile.TemporaryDirectory() as folder:
        path, nested = f"{folder}/{FILE}", f"{folder}/nested.parquet"
        _write(path, packed, frames, table)
        _write_nested(nested, packed)
        read = list(_read(path))
        size, nested_size = (_column_bytes(p) / positions for p in (path, nested))
    of = f"SmolLM2, {positions:,} tokens"
    error = _error(read, packed)
    return [
        rows.at_most(
            21,
            f"fused columns, k = 10, {of}, 49k",
            size,
            "B/token",
            against=f"nested lists, {nested_size:.1f} B/token",
            ratio=size / nested_size,
        ),
        rows.at_most(1.5e-4, f"KL(stored || original), {of}", error, "nat"),
    ]


def _column_bytes(path: str) -> int:
    found = pq.read_metadata(path)
    return sum(
        found.row_group(group).column(column).total_compressed_size
        for group in range(found.num_row_groups)
        for column in range(found.num_columns)
    )


def _collate(folder: str) -> int:
    """Reads a folder as the trainer does, a row a batch; counts the tokens."""
    mixture = Mixture([FusedFolder(folder)], seed=0)
    collate = Collator(keep_packed=True, vocabulary=ngram.SIZE)
    return sum(int(collate([mixture[i]])["tokens"]) for i in range(len(mixture)))


def _error(read: list[Distributions], packed: list["Packed"]) -> float:
    errors = [_divergence(a, b) for a, (_, b, _) in zip(read, packed, strict=True)]
    return float(np.concatenate(errors).mean())


Packed = tuple[np.ndarray, Distributions, list[int]]


def _pack(made: Outputs) -> Iterator[Packed]:
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


def _frequencies(packed: list[Packed], size: int) -> np.ndarray:
    kept = np.concatenate([rows.ids[rows.ids >= 0] for _, rows, _ in packed])
    return np.bincount(kept, minlength=size)


def _cpu_s(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def _write(
    path: str, packed: list[Packed], frames: list[bytes], table: ranks.RankTable
) -> None:
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
    made = Manifest(
        stage=fused.STAGE,
        fingerprint="",
        settings={},
        inputs={},
        origins={},
        counts={},
        files=[tables.entry],
        code_version="",
    )
    manifest.write(files.parent(path), made)


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


def _write_nested(path: str, packed: list[Packed]) -> None:
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


def _read(path: str) -> Iterator[Distributions]:
    table = ranks.load_ranks(parquet.footer(path)["ranks"])
    for group in fused.read(path):
        for row in group:
            yield codec.decode_rows(row.distribution, row.input_ids, table)


def _divergence(stored: Distributions, original: Distributions) -> np.ndarray:
    """KL(stored || original) of the positions that keep anything, in nats."""
    used = original.counts > 0
    s, o = (
        np.concatenate([d.probs, d.tail[:, None]], axis=1)[used].astype(np.float64)
        for d in (stored, original)
    )
    o /= o.sum(axis=1, keepdims=True)
    logs = np.log(np.maximum(s, 1e-30)) - np.log(np.maximum(o, 1e-30))
    return (s * logs).sum(axis=1)
