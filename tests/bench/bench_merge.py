"""Merging streamed from and to files, against merging whole models in memory.

A base and two models of 166 million parameters in bfloat16, made up, 332 MB each in
several files. Each way runs in a process of its own with one thread, on files that the
system has just read; its time is the processor's, all of the work from the files of the
models to those of the merged one, checksums and fingerprints included. Memory is the
peak of the resident set less what the process held before the work: for the plain way
the models in float32, for ours the largest tensor of all models and what the method
makes of it. One merge more runs under a limit of memory that is less than its models.
"""

import hashlib
import json
import math
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipelines import merge, merging
from tests.bench import rows
from tests.bench.bench_train import resident_bytes
from train.merge import methods

LAYERS, HIDDEN, INNER, VOCABULARY = 20, 768, 2048, 16_000
NAMES = ("base", "one", "two")
SETTINGS: dict[str, dict[str, Any]] = {
    "linear": {"weight": 0.5},
    "ties": {"weight": 0.5, "density": 0.4},
    "task_arithmetic": {"weight": 0.5},
}
SHARD_BYTES = 100_000_000
LIMITED = "task_arithmetic"
MORE = 250_000_000
"""Bytes for a merge under a limit, beside what Python and torch hold."""
MOST_MEMORY = 4.0
MOST_TIME = 1.2


def shapes(
    layers: int = LAYERS, vocabulary: int = VOCABULARY
) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor, by key, as a Llama has them."""
    found = {"model.embed_tokens.weight": (vocabulary, HIDDEN)}
    for layer in range(layers):
        for name in "qkvo":
            key = f"model.layers.{layer}.self_attn.{name}_proj.weight"
            found[key] = (HIDDEN, HIDDEN)
        for name in ("gate", "up"):
            key = f"model.layers.{layer}.mlp.{name}_proj.weight"
            found[key] = (INNER, HIDDEN)
        found[f"model.layers.{layer}.mlp.down_proj.weight"] = (HIDDEN, INNER)
    return {**found, "lm_head.weight": (vocabulary, HIDDEN)}


def write_models(
    folder: Path, tensors: Mapping[str, tuple[int, ...]], dtype: torch.dtype
) -> None:
    """Writes the models, a file for each few layers."""
    for seed, name in enumerate(NAMES):
        (folder / name).mkdir()
        rows_of_tokens = tensors["lm_head.weight"][0]
        config = {"model_type": "llama", "vocab_size": rows_of_tokens}
        (folder / name / "config.json").write_text(json.dumps(config))
        base, own = (torch.Generator().manual_seed(s) for s in (0, seed + 1))
        part: dict[str, torch.Tensor] = {}
        for number, (key, shape) in enumerate(tensors.items()):
            tensor = torch.randn(shape, generator=base)
            if seed:
                tensor += 0.1 * torch.randn(shape, generator=own)
            part[key] = tensor.to(dtype)
            if sum(one.numel() for one in part.values()) > 2e7:
                save_file(part, folder / name / f"model-{number:05d}.safetensors")
                part = {}
        if part:
            save_file(part, folder / name / "model-99999.safetensors")


def stream(folder: Path, method: str) -> None:
    """Merges as the command does."""
    table = {
        "models": {name: str(folder / name) for name in NAMES[1:]},
        "base": str(folder / "base"),
        "output": str(folder / "merged"),
        "method": method,
        "settings": SETTINGS[method],
        "shard_bytes": SHARD_BYTES,
    }
    merge.merge_models(merging.read_table(table))


def plain(folder: Path, method: str) -> None:
    """Merges models that are all in memory, and saves the merged one."""
    torch.set_num_threads(1)
    stored: dict[str, torch.dtype] = {}
    held: list[dict[str, torch.Tensor]] = []
    for name in NAMES:
        held.append({})
        for path in sorted((folder / name).glob("*.safetensors")):
            for key, value in load_file(path).items():
                stored[key], held[-1][key] = value.dtype, value.float()
    base, *models = held
    needed = methods.METHODS[method].base == "needed"
    merged = {
        key: methods.merge_tensors(
            method,
            [one[key] for one in models],
            base[key] if needed else None,
            SETTINGS[method],
        ).to(stored[key])
        for key in base
    }
    (folder / "merged").mkdir()
    save_file(merged, folder / "merged" / "model.safetensors")


WAYS: dict[str, Callable[[Path, str], None]] = {"stream": stream, "plain": plain}


def measure(folder: Path, way: str, method: str, more: str = "") -> dict[str, Any]:
    """Measures one way in a process of its own; `main` says what is returned."""
    for path in folder.glob("*/*.safetensors"):
        path.read_bytes()
    words = ["-m", "tests.bench.bench_merge", way, str(folder), method, more]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    if done.returncode:
        raise ChildProcessError(done.stderr)
    digest = hashlib.sha256()
    for path in sorted((folder / "merged").glob("*.safetensors")):
        digest.update(path.read_bytes())
    shutil.rmtree(folder / "merged")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "digest": digest.hexdigest()}


def limited(folder: Path, more: int) -> int:
    """Merges under a limit of memory that the plain way dies of; returns the limit.

    Args:
      folder: of the models.
      more: bytes that the process may have beside what it holds before the work.

    Raises:
      ValueError: if the merge is another than without a limit, or the plain way passes
        or fails of something else.
    """
    bound = measure(folder, "stream", LIMITED, str(more))
    if bound["digest"] != measure(folder, "stream", LIMITED)["digest"]:
        raise ValueError("a merge must be the same under a limit of memory, it is not")
    try:
        measure(folder, "plain", LIMITED, str(more))
    except ChildProcessError as error:
        if "allocate memory" in str(error) or "MemoryError" in str(error):
            return int(bound["limit"])
        raise ValueError(f"memory must be what lacks, but {error}") from error
    raise ValueError("whole models must not fit, but the plain way passed")


def limited_row() -> dict[str, Any]:
    """Measures a merge of models that are more than memory is allowed to be."""
    tensors = shapes(layers=14, vocabulary=3000)
    whole = 4 * len(NAMES) * sum(map(math.prod, tensors.values()))
    with tempfile.TemporaryDirectory() as made:
        write_models(Path(made), tensors, torch.float32)
        limit = limited(Path(made), MORE)
    return rows.ratio_at_most(
        1.0,
        f"merge of {len(NAMES) - 1} models, {LIMITED}: limit of memory",
        limit,
        "bytes",
        against=f"base and models as stored, {whole:,} bytes; RLIMIT_DATA of the whole"
        " process, the same bytes as without it; plain in memory dies of it",
        ratio=limit / whole,
    )


def run() -> list[dict[str, Any]]:
    """Measures memory and time of two methods, streamed and plain."""
    largest = max(map(math.prod, shapes().values()))
    whole = sum(map(math.prod, shapes().values()))
    found = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_models(folder, shapes(), torch.bfloat16)
        for method in ("linear", "ties"):
            read = len(NAMES) - (methods.METHODS[method].base == "none")
            ours, theirs = (measure(folder, way, method) for way in WAYS)
            name = f"merge of {len(NAMES) - 1} models, {method}"
            held = 4 * largest * read
            found += [
                rows.ratio_at_most(
                    MOST_MEMORY,
                    f"{name}: memory",
                    ours["bytes"],
                    "bytes",
                    against=f"the largest tensor of all in float32, {held:,} bytes",
                    ratio=ours["bytes"] / held,
                ),
                rows.ratio_at_most(
                    1.0,
                    f"{name}: memory",
                    ours["bytes"],
                    "bytes",
                    against=f"whole models as stored, {2 * whole * read:,} bytes; plain"
                    f" in memory takes {theirs['bytes']:,.0f}",
                    ratio=ours["bytes"] / (2 * whole * read),
                ),
                rows.ratio_at_most(
                    MOST_TIME,
                    f"{name}: time",
                    ours["seconds"],
                    "s",
                    against=f"plain in memory, {theirs['seconds']:.1f} s",
                    ratio=ours["seconds"] / theirs["seconds"],
                ),
            ]
    return [*found, limited_row()]


def main(way: str, folder: str, method: str, more: str = "") -> None:
    """Does the work one way, and prints what it took.

    Args:
      way: stream or plain.
      folder: of the models.
      method: the merge method.
      more: bytes that the process may have beside what it holds before the work, as
        RLIMIT_DATA: its own memory and private mappings; nothing: no limit.
    """
    limit = 0
    if more:
        limit = resident_bytes("VmData") + int(more)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    before, start = resident_bytes("VmRSS"), time.process_time()
    WAYS[way](Path(folder), method)
    seconds = time.process_time() - start
    peak = resident_bytes("VmHWM") - before
    print(json.dumps({"bytes": peak, "seconds": seconds, "limit": limit}))


if __name__ == "__main__":
    main(*sys.argv[1:])
