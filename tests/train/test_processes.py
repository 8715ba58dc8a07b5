"""Two processes on one machine, with gloo: the losses and weights of one process.

One start of two processes does all runs that need them, as a start costs more than
they do.
"""

import dataclasses
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

from schemas import manifest
from schemas.errors import SchemaError
from tests import tiny
from tests.train import held_out, shards
from tests.train.runs import curve, silent, small, weights
from tests.train.together import stopped
from train import processes, publish, trainer
from train.config import TrainConfig

TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
TWO += ["--nproc_per_node=2"]
RISING = {"learning_rate": 0.3, "clip": 0.0, "eval_steps": 1}
"""Settings under which held-out text is worse and worse predicted."""

SHARDED = {"sharding": "fsdp", "checkpoint_form": "sharded"}


def tied(folder: Path) -> Path:
    """A Llama whose head is its embedding."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    return tiny.save(folder, tiny.unigram(), transformers.LlamaForCausalLM(config))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    shards.write(folder / "fused", vocabulary=400)
    tiny.neox(folder / "neox")
    tied(folder / "tied")
    made = [held_out.window(n, ("code", "prose")[n % 2]) for n in range(5)]
    held_out.write(folder / "windows", made)
    return folder


def judged(place: Path, name: str, **changes: Any) -> TrainConfig:
    """Returns settings of a run that publishes its best weights."""
    held = {"eval_data": str(place / "windows"), "eval_steps": 2, "keep_best": True}
    return small(place, name, **held | changes)


@pytest.fixture(scope="module")
def runs(place: Path) -> Path:
    """The folder of all runs: those of one process, and those of two."""
    for model in ("neox", "tied"):
        trainer.train(small(place, f"one-{model}", model), silent)
    trainer.train(small(place, "one-lora", lora_rank=4), silent)
    trainer.train(judged(place, "one-best"), silent)
    trainer.train(judged(place, "one-lora-best", lora_rank=4), silent)
    trainer.train(judged(place, "one-back", **RISING), silent)
    plan = [
        small(place, "ddp"),
        small(place, "long", max_steps=12),
        small(place, "fsdp", sharding="fsdp"),
        small(place, "fsdp-tied", "tied", **SHARDED),
        small(place, "fsdp-lora", lora_rank=4, sharding="fsdp"),
        judged(place, "ddp-best"),
        judged(place, "fsdp-best", sharding="fsdp"),
        judged(place, "sharded-best", **SHARDED),
        judged(place, "fsdp-lora-best", lora_rank=4, sharding="fsdp"),
        judged(place, "fsdp-back", sharding="fsdp", **RISING),
        judged(place, "sharded-back", **SHARDED, **RISING),
        small(place, "two-of-one", sharding="fsdp"),
        small(place, "checkpointed", gradient_checkpointing=True, sharding="fsdp"),
        judged(place, "narrow", sharding="fsdp", dtype="bfloat16"),
    ]
    offloaded = [
        judged(
            place,
            "narrow-offloaded",
            sharding="fsdp",
            dtype="bfloat16",
            activation_offload=True,
        ),
        small(
            place,
            "checkpointed-offloaded",
            sharding="fsdp",
            gradient_checkpointing=True,
            activation_offload=True,
        ),
    ]
    halted = [
        small(place, "full", sharding="fsdp"),
        small(place, "sharded", **SHARDED),
        small(place, "one-of-whole", sharding="fsdp"),
        small(place, "one-of-shards", **SHARDED),
    ]
    with stopped(2):
        trainer.train(small(place, "two-of-one"), silent)
    made = [dataclasses.asdict(run) for run in plan]
    made += [dataclasses.asdict(run) | {"least_bytes": 1} for run in offloaded]
    made += [dataclasses.asdict(run) | {"stop": 2} for run in halted]
    made += [dataclasses.asdict(run) for run in halted[:2]]
    (place / "runs.json").write_text(json.dumps(made))
    command = [*TWO, "-m", "tests.train.together", str(place / "runs.json")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert ended.returncode == 0, ended.stderr
    return place


@pytest.mark.slow
@pytest.mark.parametrize(
    ("two", "one"),
    [
        ("ddp", "one-neox"),
        ("fsdp", "one-neox"),
        ("fsdp-tied", "one-tied"),
        ("fsdp-lora", "one-lora"),
        ("ddp-best", "one-best"),
        ("fsdp-best", "one-best"),
        ("sharded-best", "one-best"),
        ("fsdp-lora-best", "one-lora-best"),
        ("two-of-one", "one-neox"),
        ("checkpointed", "one-neox"),
    ],
)
def test_two_processes_train_as_one_does(runs: Path, two: str, one: str) -> None:
    for many, single in zip(curve(runs / two), curve(runs / one), strict=True):
        assert many.keys() == single.keys()
        for name in single:
            # Held-out text meets weights that steps of rounded-off gradients moved.
            off = 1e-4 if name.startswith("eval/") else 1e-5
            assert many[name] == pytest.approx(single[name], rel=off), name
    first, second = (
        safetensors.torch.load_file(runs / name / "model.safetensors")
        for name in (one, two)
    )
    assert first.keys() == second.keys()
    # Where a gradient is all but zero, Adam makes a step of what rounding leaves of it.
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["full", "sharded"])
def test_a_sharded_run_goes_on_to_the_same_bytes(runs: Path, form: str) -> None:
    assert weights(runs / form) == weights(runs / "fsdp")
    assert curve(runs / form) == curve(runs / "fsdp")
    assert not (runs / f"{form}.partial").exists()


@pytest.mark.slow
def test_a_checkpoint_in_shards_holds_each_weight_once_and_no_pickle(
    runs: Path,
) -> None:
    (folder,) = (runs / "one-of-shards.partial" / "checkpoints").iterdir()
    assert not list(folder.glob("*.safetensors"))
    written = list((folder / "states").iterdir())
    assert len(written) == 2
    assert {path.suffix for path in written} == {".safetensors"}
    tensors = [safetensors.torch.load_file(path) for path in written]
    held = [sum(v.numel() for n, v in t.items() if n[:6] == "weight") for t in tensors]
    whole = safetensors.torch.load_file(runs / "neox" / "model.safetensors")
    assert sum(held) == sum(value.numel() for value in whole.values())
    assert max(held) < 1.1 * min(held)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one-of-whole", "one-of-shards"])
def test_a_checkpoint_of_two_processes_is_gone_on_with_by_one(
    runs: Path, name: str
) -> None:
    result = trainer.train(small(runs, name), silent)
    assert result.steps == 4
    found, wanted = curve(runs / name), curve(runs / "one-neox")
    assert found[:2] == curve(runs / "fsdp")[:2]
    for one, other in zip(found, wanted, strict=True):
        assert one["train/loss"] == pytest.approx(other["train/loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["narrow", "checkpointed"])
def test_activations_that_the_host_keeps_of_a_sharded_model_change_no_byte(
    runs: Path, name: str
) -> None:
    assert weights(runs / f"{name}-offloaded") == weights(runs / name)
    assert curve(runs / f"{name}-offloaded") == curve(runs / name)
    moved = [int((runs / f"{name}-offloaded.moved-{n}").read_text()) for n in (0, 1)]
    assert min(moved) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp-back", "sharded-back"])
def test_the_best_weights_of_a_sharded_run_are_gone_back_to(
    runs: Path, name: str
) -> None:
    for output in (name, "one-back"):
        found = manifest.read(str(runs / output), publish.STAGE)
        assert found.counts["best_step"] == 1
    assert weights(runs / name) == weights(runs / "one-back")


@pytest.mark.slow
def test_a_sharded_run_in_bfloat16_is_near_one_in_float32(runs: Path) -> None:
    wide = curve(runs / "one-best")
    for one, other in zip(curve(runs / "narrow"), wide, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() & {"train/loss", "eval/bits_per_byte/all"}:
            assert one[name] == pytest.approx(other[name], rel=1e-2)
            assert one[name] != other[name]


def workers(launcher: int) -> list[int]:
    """Returns the ids of the processes that a process started."""
    found = Path(f"/proc/{launcher}/task/{launcher}/children").read_text()
    return [int(number) for number in found.split()]


def flags(run: TrainConfig) -> list[str]:
    return [
        f"--{name}={value}"
        for name, value in dataclasses.asdict(run).items()
        if value not in (None, ()) and not isinstance(value, bool)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [7])
def test_one_of_two_processes_killed_ends_the_other_and_the_rerun_ends_as_undisturbed(
    runs: Path, seed: int
) -> None:
    draw = random.Random(seed)
    command = [
        *TWO,
        "-m",
        "train",
        *flags(small(runs, f"killed-{seed}", max_steps=12)),
    ]
    folder = runs / f"killed-{seed}.partial"
    killed, step = draw.randrange(2), draw.randint(1, 9)
    after = draw.uniform(0, 0.05)  # seconds into what comes after that step
    launcher = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while last_step(folder) < step:
        assert launcher.poll() is None
        time.sleep(0.002)
    time.sleep(after)
    os.kill(workers(launcher.pid)[killed], signal.SIGKILL)
    assert launcher.wait(timeout=120) != 0
    assert not (runs / f"killed-{seed}").exists()
    subprocess.run(command, check=True, capture_output=True, timeout=400)
    assert weights(runs / f"killed-{seed}") == weights(runs / "long")
    assert curve(runs / f"killed-{seed}") == curve(runs / "long")


def last_step(folder: Path) -> int:
    """Returns the step of the last line of metrics that is there; 0 of none."""
    lines = folder / "metrics.jsonl"
    return len(lines.read_text().splitlines()) if lines.exists() else 0


@pytest.mark.slow
def test_two_launchers_of_one_process_each_train_as_one_of_two_does(runs: Path) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2"]
    launch += ["--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={port}"]
    run = flags(small(runs, "machines", **SHARDED))
    started = [
        subprocess.Popen(
            [*launch, f"--node_rank={rank}", "-m", "train", *run],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for one in started:
        _, said = one.communicate(timeout=400)
        assert one.returncode == 0, said
    assert weights(runs / "machines") == weights(runs / "fsdp")
    assert curve(runs / "machines") == curve(runs / "fsdp")


@pytest.mark.slow
def test_accelerate_launch_takes_the_same_flags(runs: Path) -> None:
    run = small(runs, "launched")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu"]
    command += ["--num_processes=2", "--num_machines=1", "--mixed_precision=no"]
    command += ["--dynamo_backend=no", "-m", "train", *flags(run)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert ended.returncode == 0, ended.stderr
    for one, other in zip(curve(runs / "launched"), curve(runs / "ddp"), strict=True):
        assert one["train/loss"] == pytest.approx(other["train/loss"], rel=1e-5)


def test_rows_that_do_not_fit_the_processes_are_refused_with_what_would(
    place: Path,
) -> None:
    with pytest.raises(SchemaError, match=r"2 x 3 = 6, got 8; give --batch_size=6 or"):
        processes.check(small(place, "out"), 3)


def test_sharding_over_one_process_is_refused_with_the_cure(place: Path) -> None:
    with pytest.raises(SchemaError, match="torchrun --nproc_per_node=N -m train"):
        trainer.train(small(place, "out", sharding="fsdp"), silent)
