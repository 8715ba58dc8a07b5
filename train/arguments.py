"""The settings of a run in the words of transformers."""

import math
import pathlib

import transformers

from train import interleave, processes
from train.config import TrainConfig

_FIELDS = transformers.TrainingArguments.__dataclass_fields__
_CHECKPOINTING = next(  # transformers renamed it
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in _FIELDS
)


def training(
    config: TrainConfig, work: pathlib.Path, *, steps: int, device: str, dtype: str
) -> transformers.TrainingArguments:
    """Says in the words of transformers how to train."""
    schedules = {"constant": "constant_with_warmup"}
    return transformers.TrainingArguments(
        output_dir=str(work / "checkpoints"),
        max_steps=steps,
        gradient_accumulation_steps=config.accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=schedules.get(config.schedule, config.schedule),
        warmup_steps=math.ceil(interleave.exact([config.warmup_ratio])[0] * steps),
        weight_decay=config.weight_decay,
        adam_beta1=config.beta1,
        adam_beta2=config.beta2,
        max_grad_norm=config.clip,
        seed=config.seed,
        bf16=dtype == "bfloat16",
        use_cpu=device == "cpu",
        **{_CHECKPOINTING: config.gradient_checkpointing},
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,
        save_steps=config.save_steps,
        save_total_limit=None,  # ours are removed once the next is whole
        report_to=list(config.report_to),
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        dataloader_num_workers=config.readers,
        dataloader_pin_memory=device == "cuda",
        ignore_data_skip=True,  # the order begins at the step: see StepBatches
        disable_tqdm=True,
        log_level="error",
        **processes.arguments(config),
    )
