import dataclasses
import re
from typing import Any

import pytest

from train import limits
from train.config import TrainConfig

RUN = TrainConfig(data="d", model="m", output="o")
CHUNKS = {"fusion_loss": "chunks"}


@pytest.mark.parametrize(
    ("beside", "setting", "value"),
    [
        (CHUNKS, "tail", "renormalise"),
        (CHUNKS, "teacher_temperature", 2.0),
        (CHUNKS, "target_temperature", 2.0),
        (CHUNKS, "position_weights", "kept"),
        ({}, "chunk_temperature", 10.0),
        ({"clm_weight": 0.0}, "label_smoothing", 0.1),
        ({"label_smoothing": 0.1}, "kernels", True),
        ({"target_temperature": 2.0}, "kernels", True),
        ({}, "lora_alpha", 32.0),
        ({}, "lora_dropout", 0.1),
        ({}, "lora_targets", ("q_proj",)),
        ({}, "quantise", "4bit"),
        ({}, "keep_adapter", True),
        ({"lora_rank": 8}, "checkpoint_form", "sharded"),
        ({"deepspeed": "zero2.json"}, "checkpoint_form", "sharded"),
        ({}, "max_bad_fraction", 0.1),
        ({"eval_data": "w", "eval_steps": 5}, "min_delta", 0.01),
        ({}, "hub_public", True),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(
    beside: dict[str, Any], setting: str, value: object
) -> None:
    run = dataclasses.replace(RUN, **beside)  # where it is not given, nothing is wrong
    said = rf"^{setting} must be .* where .*, got .*; (leave it out|give --)"
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(run, **{setting: value})


@pytest.mark.parametrize(
    "settings",
    [
        {"chunk_share": 0.5, "chunk_temperature": 10.0, "position_weights": "kept"},
        {**CHUNKS, "chunk_temperature": 10.0},
        {"clm_weight": 0.0, "clm_schedule": "linear", "label_smoothing": 0.1},
        {"clm_weight": 1.0, "fusion_loss": "jsd", "tail": "renormalise"},  # is logged
        {"lora_rank": 8, "lora_alpha": 8.0, "lora_targets": ("q_proj",)},
        {"bad_rows": "skip", "max_bad_fraction": 0.1},
        {"push_to_hub": "a/b", "hub_public": True},
        {"sharding": "fsdp", "checkpoint_form": "sharded"},
        {"kernels": True},
    ],
)
def test_what_does_something_is_taken(settings: dict[str, Any]) -> None:
    dataclasses.replace(RUN, **settings)


def test_every_setting_that_may_be_idle_is_one() -> None:
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    for idle in limits._IDLE:
        assert set(idle.names) <= fields
        assert set(re.findall(r"--(\w+)", idle.cure)) <= fields


def test_a_setting_is_told_in_words_of_the_command_line() -> None:
    said = (
        "lora_targets must be left out where lora_rank is not given, as it is about"
        " adapters, got q_proj, v_proj; give --lora_rank=16, or leave it out"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        dataclasses.replace(RUN, lora_targets=("q_proj", "v_proj"))
