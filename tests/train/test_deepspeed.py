"""DeepSpeed itself is not installed for the tests: its files are read as far as
transformers and accelerate read them before they call it."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from train import processes
from train.config import TrainConfig

FOLDER = Path(__file__).parents[2] / "deploy" / "train"


class Read(HfTrainerDeepSpeedConfig, HfDeepSpeedConfig):
    """What transformers makes of a file; without DeepSpeed it lacks this base."""

    def __init__(self, path: Path) -> None:
        HfDeepSpeedConfig.__init__(self, str(path))
        self._dtype, self.mismatches = None, []


def values(tree: Any) -> list[Any]:
    """Lists the leaves of nested settings."""
    if not isinstance(tree, dict):
        return [tree]
    return [leaf for branch in tree.values() for leaf in values(branch)]


@pytest.mark.parametrize(("name", "stage"), [("zero2.json", 2), ("zero3.json", 3)])
def test_what_deepspeeds_files_leave_open_is_filled_from_our_settings(
    name: str, stage: int, tmp_path: Path
) -> None:
    read = Read(FOLDER / name)
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_grad_norm=1.0,
        use_cpu=True,
        report_to=[],
    )
    read.trainer_config_process(args)
    shape = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=32, intermediate_size=64, **shape)
    read.trainer_config_finalize(args, transformers.LlamaForCausalLM(config), 10)
    assert "auto" not in values(read.config)
    assert read.config["train_micro_batch_size_per_gpu"] == 4
    assert read.config["train_batch_size"] == 8
    assert read.config["gradient_accumulation_steps"] == 2
    assert read.config["gradient_clipping"] == 1.0
    assert (read.is_zero2(), read.is_zero3()) == (stage == 2, stage == 3)


def test_zero_3_gives_whole_weights_in_the_end() -> None:
    written = json.loads((FOLDER / "zero3.json").read_text())["zero_optimization"]
    assert written["stage3_gather_16bit_weights_on_model_save"] is True


def test_a_missing_file_is_named_before_anything_else(tmp_path: Path) -> None:
    run = TrainConfig(data="d", model="m", output="o", deepspeed=str(tmp_path / "x"))
    with pytest.raises(FileNotFoundError, match="deploy/train has two"):
        processes.arguments(run)
