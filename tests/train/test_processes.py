import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests import tiny
from tests.train import held_out, shards

ONE = [sys.executable, "-m", "train"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
TWO += ["--nproc_per_node=2", "-m", "train"]

SPEEDS = ("train/tokens_per_s", "train/flops_per_s", "train/mfu", "eval/seconds")


def metrics(output: Path) -> list[dict[str, float]]:
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    made = [held_out.window(n, ("code", "prose")[n % 2]) for n in range(5)]
    flags = [
        f"--data={shards.write(tmp_path / 'fused', vocabulary=400)}",
        f"--model={tiny.neox(tmp_path / 'target')}",
        *("--batch_size=8", "--accumulation=2", "--max_steps=3", "--save_steps=2"),
        f"--eval_data={held_out.write(tmp_path / 'windows', made)}",
        *("--eval_steps=2", "--keep_best", "--peak_tflops=1"),
        *("--learning_rate=1e-3", "--logging_steps=1", "--threads=1", "--device=cpu"),
    ]
    outputs = [tmp_path / "one", tmp_path / "two"]
    for command, output in zip((ONE, TWO), outputs, strict=True):
        ended = subprocess.run(
            [*command, *flags, f"--output={output}"], capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
    for one, two in zip(*map(metrics, outputs), strict=True):
        assert one.keys() == two.keys()
        for name in one:
            if name not in SPEEDS:
                assert two[name] == pytest.approx(one[name], rel=1e-4), name
    first, second = (
        safetensors.torch.load_file(output / "model.safetensors") for output in outputs
    )
    # Where a gradient is all but zero, Adam makes a step of what rounding leaves of it.
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=0, atol=1e-3)
    assert not list(tmp_path.glob("*.partial"))
