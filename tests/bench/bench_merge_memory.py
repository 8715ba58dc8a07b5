"""The memory that each way of merging takes, against what `fusebeam merge --show` says.

One tensor of 16.8 million numbers, stored in bfloat16, is merged of two models and of
four, each method in a process of its own with one thread, as the command does it. The
figure is the peak of the resident set above what the process held before, after a small
merge that has loaded all code, in tensors in float32: those that are read and those
that the method makes of them.
"""

import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pipelines import merge, merging
from tests.bench import rows
from tests.bench.bench_train import resident_bytes
from train.merge import report

SHAPE = (4096, 4096)
SMALL = (8, 8)
MODELS = (2, 4)
CASES: dict[str, dict[str, Any]] = {
    "linear": {},
    "task_arithmetic": {"weight": 0.5},
    "ties": {"density": 0.4},
    "dare_linear": {"weight": 0.5, "density": 0.4},
    "dare_ties": {"weight": 0.5, "density": 0.4, "rescale": "l1"},
    "della_linear": {"weight": 0.5, "density": 0.4},
    "della": {"weight": 0.5, "density": 0.4, "rescale": "l1"},
    "breadcrumbs": {"weight": 0.5, "density": 0.4},
    "breadcrumbs_ties": {"weight": 0.5, "density": 0.4},
    "slerp": {"t": 0.4},
    "nuslerp": {"weight": 0.5, "nuslerp_flatten": False},
    "multislerp": {},
    "karcher": {},
    "model_stock": {},
    "model_stock by filters": {"filter_wise": True},
    "varm by matrix": {"granularity": "matrix"},
    "varm by parameter": {"granularity": "parameter"},
    "sce of paper": {"variant": "paper"},
    "sce of authors": {"variant": "authors", "select_topk": 0.5},
    "sce of mergekit": {"variant": "mergekit", "select_topk": 0.5},
}
"""Settings by method; what follows its first word tells variants apart."""


def write_models(folder: Path) -> None:
    """Writes a base and models, once of a small tensor and once of a large one."""
    for size, shape in (("small", SMALL), ("large", SHAPE)):
        base = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        for number in range(max(MODELS) + 1):
            own = torch.Generator().manual_seed(number + 1)
            moved = base + bool(number) * 0.1 * torch.randn(shape, generator=own)
            place = folder / size / str(number)
            place.mkdir(parents=True)
            (place / "config.json").write_text('{"model_type": "llama"}')
            stored = {"model.layers.0.mlp.up_proj.weight": moved.bfloat16()}
            save_file(stored, place / "model.safetensors")


def planned(folder: Path, size: str, case: str, count: int) -> merging.Merging:
    """Returns the merge of a case."""
    method, own = case.split()[0], folder / size
    merged = folder / "merged" / case.replace(" ", "-") / f"{size} {count}"
    return merging.read_table(
        {
            "models": {f"m{i}": str(own / str(i)) for i in range(1, count + 1)},
            "base": str(own / "0"),
            "output": str(merged),
            "method": method,
            "use_base": method != "slerp",
            "settings": CASES[case],
        }
    )


def measure(folder: Path, case: str) -> dict[str, dict[str, int]]:
    """Merges of each number of models; returns peaks and what was said of them."""
    found = {}
    for count in MODELS:
        if count > 2 and case.split()[0] in ("slerp", "nuslerp"):
            continue
        merge.merge_models(planned(folder, "small", case, count))
        given = planned(folder, "large", case, count)
        (shard,) = merge.plan_merge(given).shards
        (tensor,) = shard.tensors
        # From here on the peak is of what comes: see proc(5).
        Path("/proc/self/clear_refs").write_text("5")
        before = resident_bytes("VmRSS")
        merge.merge_models(given)
        found[str(count)] = {
            "bytes": resident_bytes("VmHWM") - before,
            "held": report.held_bytes(tensor),
            "said": report.needed_bytes(tensor),
        }
    return found


def run() -> list[dict[str, Any]]:
    """Measures the memory of every method, for two models and for four."""
    found = []
    with tempfile.TemporaryDirectory() as made:
        write_models(Path(made))
        for case in CASES:
            words = [sys.executable, "-m", "tests.bench.bench_merge_memory", made, case]
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
            told = json.loads(done.stdout.splitlines()[-1])
            for count, one in told.items():
                row = functools.partial(rows.ratio_at_most, one["said"] / one["held"])
                found.append(
                    row(
                        f"memory of {case}, {count} models",
                        one["bytes"],
                        "bytes",
                        against=f"what is read, in float32, {one['held']:,} bytes",
                        ratio=one["bytes"] / one["held"],
                    )
                )
    return found


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2])))
