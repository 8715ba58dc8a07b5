"""What one of two processes fails at ends both, with the error of the one."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.train import held_out, shards
from train import faults
from train.config import TrainConfig

READS = {"process": 1, "module": "train.mixture", "name": "Mixture.__getitem__"}
WINDOWS = {"process": 1, "module": "schemas.windows", "name": "read_slice"}
WEIGHTS = {"process": 0, "module": "train.saving", "name": "SavingTrainer._save"}
STATES = {"process": 0, "module": "safetensors.torch", "name": "save_file"}
NUMBERS = {"process": 1, "module": "transformers", "name": "Trainer._save_rng_state"}
LINES = {"process": 0, "module": "json", "name": "dumps"}
FOLDER = {"process": 0, "module": "train.checkpoints", "name": "open_work"}
MODEL = {"process": 1, "module": "train.model", "name": "load"}
FSDP = {"sharding": "fsdp"}

CASES: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {
    "rows": (READS, 12, {}),
    "rows-sharded": (READS, 12, FSDP),
    "windows": (WINDOWS, 1, {}),
    "windows-sharded": (WINDOWS, 1, FSDP),
    "weights": (WEIGHTS, 0, {}),
    "states": (STATES, 0, FSDP),
    "random-numbers": (NUMBERS, 0, {}),
    "metrics": (LINES, 3, {}),
    "folder": (FOLDER, 0, {}),
    "model": (MODEL, 0, FSDP),
}
"""What fails, after how many calls, and how the model is shared."""


def config(place: Path, name: str, **changes: Any) -> TrainConfig:
    return TrainConfig(
        data=str(place / "fused"),
        model=str(place / "neox"),
        output=str(place / "out" / name),
        eval_data=str(place / "windows"),
        eval_steps=2,
        batch_size=8,
        accumulation=2,
        max_steps=4,
        save_steps=2,
        logging_steps=1,
        threads=1,
        device="cpu",
        peak_tflops=1.0,
        **changes,
    )


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs, each with what its two processes ended with."""
    place = tmp_path_factory.mktemp("faults")
    shards.write(place / "fused", vocabulary=400)
    tiny.neox(place / "neox")
    held_out.write(place / "windows", [held_out.window(n, "code") for n in range(4)])
    made = [
        dataclasses.asdict(config(place, name, **changes))
        | {"fault": fault | {"after": after}}
        for name, (fault, after, changes) in CASES.items()
    ]
    made.append(dataclasses.asdict(config(place, "sound")))
    (place / "runs.json").write_text(json.dumps(made))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node=2", "-m", "tests.train.together"]
    command += [str(place / "runs.json")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return place


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_fault_of_one_process_ends_the_other_with_its_error(
    ends: Path, name: str
) -> None:
    failed = CASES[name][0]["process"]
    own, others = (
        (ends / "out" / f"{name}.ends-{process}").read_text()
        for process in (failed, 1 - failed)
    )
    assert own == "OSError: the disk is gone"
    assert others == (
        f"PeerError: process {failed} of 2, counted from 0, has failed, so all end:"
        " OSError: the disk is gone"
    )
    assert not (ends / "out" / name).exists()


@pytest.mark.slow
def test_processes_that_ended_so_are_in_step_and_train_again(ends: Path) -> None:
    assert (ends / "out" / "sound" / "model.safetensors").exists()


def test_a_process_alone_raises_its_own_errors() -> None:
    with pytest.raises(KeyError, match="'a'"), faults.shared():
        raise KeyError("a")


def test_values_made_by_all_are_those_that_are_made() -> None:
    def broken() -> Any:
        yield 1
        raise OSError("gone")

    assert list(faults.each([[], [1], []])) == [[], [1], []]
    values = faults.each(broken())
    assert next(values) == 1
    with pytest.raises(OSError, match="gone"):
        next(values)
