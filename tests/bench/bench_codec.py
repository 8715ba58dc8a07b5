"""Size, error and speed of fused files, on the outputs of an n-gram model.

An n-gram model is quick to make, and gives positions enough to time. Size and error are
measured on real outputs of SmolLM2, too, where that model is there. Times are CPU
seconds of this process, so a figure is for one core.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from schemas import fused, parquet
from tests.bench import divergence, fused_files, ngram, rows, smollm2
from tests.bench.fused_files import Packed
from tests.bench.ngram import Outputs
from train.data import Collator
from train.mixture import Mixture
from train.shards import FusedFolder
from transforms.functional import codec, ranks
from transforms.functional.codec import Distributions

FILE = "slice-000000.parquet"


def run() -> list[dict[str, Any]]:
    """Packs, encodes, writes, reads and compares outputs of both models."""
    found = _measure(ngram.outputs())
    real = smollm2.outputs(ngram.K)
    return found if real is None else found + _measure_real(real)


def _measure(made: Outputs) -> list[dict[str, Any]]:
    packed = list(fused_files.packed_rows(made))
    table = ranks.rank_by_frequency(fused_files.frequencies(packed, ngram.SIZE))
    codec.encode_rows(packed[0][1], packed[0][0], table)  # compiles
    encode_s, frames = _cpu_s(
        lambda: [codec.encode_rows(said, ids, table) for ids, said, _ in packed]
    )
    positions = sum(len(ids) for ids, _, _ in packed)
    with tempfile.TemporaryDirectory() as folder:
        path, nested = f"{folder}/{FILE}", f"{folder}/nested.parquet"
        fused_files.write(path, packed, frames, table)
        fused_files.write_nested(nested, packed)
        next(read_rows(path))  # compiles
        decode_s, read = _cpu_s(lambda: list(read_rows(path)))
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
        rows.at_most(1.5e-4, f"KL(stored ‖ original), {of}", v["error"], "nat"),
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
    packed = list(fused_files.packed_rows(made))
    table = ranks.rank_by_frequency(fused_files.frequencies(packed, smollm2.SIZE))
    frames = [codec.encode_rows(said, ids, table) for ids, said, _ in packed]
    positions = sum(len(ids) for ids, _, _ in packed)
    with tempfile.TemporaryDirectory() as folder:
        path, nested = f"{folder}/{FILE}", f"{folder}/nested.parquet"
        fused_files.write(path, packed, frames, table)
        fused_files.write_nested(nested, packed)
        read = list(read_rows(path))
        size, nested_size = (column_bytes(p) / positions for p in (path, nested))
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
        rows.at_most(1.5e-4, f"KL(stored ‖ original), {of}", error, "nat"),
    ]


def column_bytes(path: str) -> int:
    """Returns how many bytes all columns of a file take, its footer apart."""
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


def _error(read: list[Distributions], packed: list[Packed]) -> float:
    errors = [
        divergence.of_rows(a, b) for a, (_, b, _) in zip(read, packed, strict=True)
    ]
    return float(np.concatenate(errors).mean())


def _cpu_s(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def read_rows(path: str) -> Iterator[Distributions]:
    """Decodes the rows of a fused file."""
    table = ranks.load_ranks(parquet.footer(path)["ranks"])
    for group in fused.read(path):
        for row in group:
            yield codec.decode_rows(row.distribution, row.input_ids, table)
