"""Several processes: how they share a model, and what must fit their number.

`torchrun -m train`, `accelerate launch -m train` and `python -m train` take the same
flags. Data parallel is what several processes are without more; `--sharding=fsdp` is
PyTorch's FSDP2 (`fully_shard`), each decoder layer a unit; `--deepspeed=FILE` is ZeRO.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    broadcast_object_list,
    enable_fsdp_ram_efficient_loading,
)
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers.integrations import deepspeed as hf_deepspeed

from schemas.errors import SchemaError
from train.config import TrainConfig

_LEFT = ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING")


def arguments(config: TrainConfig) -> dict[str, Any]:
    """Says in the words of transformers how the processes share the model.

    Raises:
      FileNotFoundError: if DeepSpeed's settings are not there.
    """
    if config.deepspeed is not None:
        if not pathlib.Path(config.deepspeed).is_file():
            raise FileNotFoundError(
                f"deepspeed must be a file of DeepSpeed's settings, {config.deepspeed}"
                " is none; deploy/train has two"
            )
        return {"deepspeed": config.deepspeed}
    if config.sharding == "fsdp":
        return {"fsdp": True, "fsdp_config": {"cpu_ram_efficient_loading": True}}
    return {}


def check(config: TrainConfig, processes: int) -> None:
    """Refuses settings that do not fit the number of processes.

    Raises:
      SchemaError: names both numbers and what to give instead.
    """
    if config.sharding == "fsdp" and not torch.distributed.is_initialized():
        raise SchemaError(
            "sharding = fsdp must have processes to shard over, and this one is alone;"
            " start it as torchrun --nproc_per_node=N -m train ..., or leave --sharding"
            " out"
        )
    parts = config.accumulation * processes
    if config.batch_size % parts:
        above = -(-config.batch_size // parts) * parts
        below = config.batch_size // parts * parts
        near = f"{below} or {above}" if below else str(above)
        raise SchemaError(
            f"batch_size must be a multiple of accumulation x processes ="
            f" {config.accumulation} x {processes} = {parts}, got {config.batch_size};"
            f" give --batch_size={near}, another --accumulation, or start another"
            " number of processes"
        )


@contextlib.contextmanager
def clean_environment() -> Iterator[None]:
    """Undoes, after a run, what accelerate leaves in the environment for itself.

    What is loaded later in this process would be taken for a part of the run.
    """
    before = {name: os.environ.get(name) for name in _LEFT}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def loading(config: TrainConfig) -> Iterator[None]:
    """Has from_pretrained read weights as the sharding wants it, in its block.

    Under FSDP the first process of a machine alone reads them, and FSDP sends each its
    part. Under ZeRO-3 every process reads them whole before they are cut up: a model
    that is cut up cannot be asked for its traits.
    """
    if config.sharding == "fsdp":
        enable_fsdp_ram_efficient_loading()
    kept = hf_deepspeed._hf_deepspeed_config_weak_ref
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = kept


def tell(*values: Any) -> list[Any]:
    """Returns the first process's values on every process."""
    return list(broadcast_object_list(list(values)))


def shard_on_cpus(accelerator: Any, plugin: dict[str, Any]) -> None:
    """Has accelerate shard over CPU processes, which it else passes over in silence.

    Args:
      accelerator: whose state is changed.
      plugin: arguments of accelerate's plugin for FSDP.
    """
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(**plugin)
    accelerator.state.distributed_type = DistributedType.FSDP


def settle(accelerator: Any, *, dtype: str) -> None:
    """Sees to it that accelerate's own configuration agrees with our settings.

    Under FSDP, weights are gathered and products done in `dtype`, gradients summed in
    float32; the inputs stay as they are: counts of positions are no bfloat16.

    Raises:
      SchemaError: if it asks for other arithmetic, or for the first FSDP.
    """
    wanted = "bf16" if dtype == "bfloat16" else "no"
    if accelerator.mixed_precision != wanted:
        raise SchemaError(
            f"mixed_precision of accelerate must be {wanted}, as dtype is {dtype}, got"
            f" {accelerator.mixed_precision}; leave it out there, or give --dtype"
        )
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        return
    if plugin.fsdp_version != 2:
        raise SchemaError(
            f"fsdp_version of accelerate must be 2, got {plugin.fsdp_version}; set it"
            " so in its configuration, or give --sharding=fsdp instead of that"
        )
    if dtype == "bfloat16":
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
