"""Size, error and speed of fused files, on a real model's outputs.

Times are CPU seconds of this process, so a figure is for one core.
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

from schemas import fused, parquet
from schemas.fused import FusedRow
from tests.bench import ngram
from transforms.functional import codec, pack, ranks
from transforms.functional.codec import Distributions

SEQ_LENGTH = 2048
SOURCES = 3


def run() -> list[dict[str, Any]]:
    """Packs, encodes, writes, reads and compares the outputs of `ngram`."""
    packed = list(_pack(ngram.outputs()))
    table = ranks.rank_by_frequency(_frequencies(packed))
    codec.encode_rows(packed[0][1], packed[0][0], table)  # compiles
    encode_s, frames = _cpu_s(
        lambda: [codec.encode_rows(rows, ids, table) for ids, rows, _ in packed]
    )
    positions = sum(len(ids) for ids, _, _ in packed)
    with tempfile.TemporaryDirectory() as folder:
        path, nested = f"{folder}/fused.parquet", f"{folder}/nested.parquet"
        _write(path, packed, frames, table)
        _write_nested(nested, packed)
        next(_read(path))  # compiles
        decode_s, read = _cpu_s(lambda: list(_read(path)))
        nested_s, _ = _cpu_s(lambda: pq.read_table(nested).to_pylist())
        size, nested_size = os.path.getsize(path), os.path.getsize(nested)
    errors = [_divergence(a, b) for a, (_, b, _) in zip(read, packed, strict=True)]
    values = {
        "size": size / positions,
        "nested": nested_size / positions,
        "error": float(np.concatenate(errors).mean()),
        "encode": positions / encode_s,
        "decode": positions / decode_s,
        "to_pylist": positions / nested_s,
    }
    return _rows(values)


def _rows(v: dict[str, float]) -> list[dict[str, Any]]:
    nested = f"nested lists, {v['nested']:.1f} B/token"
    pylist = f"nested lists to_pylist, {v['to_pylist']:,.0f} tokens/s"
    size = {"value": v["size"], "unit": "B/token", "against": nested, "aim": "<= 21"}
    size |= {"ratio": v["size"] / v["nested"], "met": v["size"] <= 21}
    error = {"value": v["error"], "unit": "nat", "against": None, "aim": "<= 1.5e-4"}
    error |= {"ratio": None, "met": v["error"] <= 1.5e-4}
    encode = {"value": v["encode"], "unit": "tokens/s", "against": None}
    encode |= {"ratio": None, "aim": ">= 300,000", "met": v["encode"] >= 3e5}
    decode = {"value": v["decode"], "unit": "tokens/s", "against": pylist}
    decode |= {"ratio": v["decode"] / v["to_pylist"], "aim": ">= 1,000,000"}
    decode |= {"met": v["decode"] >= 1e6}
    return [
        {"name": "fused file, k = 10, 32k", **size},
        {"name": "fused file, KL(stored || original)", **error},
        {"name": "encode distributions", **encode},
        {"name": "read fused file", **decode},
    ]


Packed = tuple[np.ndarray, Distributions, list[int]]


def _pack(made: ngram.Outputs) -> Iterator[Packed]:
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


def _frequencies(packed: list[Packed]) -> np.ndarray:
    kept = np.concatenate([rows.ids[rows.ids >= 0] for _, rows, _ in packed])
    return np.bincount(kept, minlength=ngram.SIZE)


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
