"""Weights and optimizer states of a checkpoint, as safetensors: whole or in shards.

    checkpoint-N/model.safetensors          weights, or adapter_model.safetensors
    checkpoint-N/states/*.safetensors       the optimizer's states

In the sharded form every process writes what it holds, weights too, in a file of
`states` of its own (torch.distributed.checkpoint). Either form is read by however many
processes, sharded or not: each takes the parts that it holds. No pickle is read.

Names in `states` are `KIND:NAME` with the parameter's NAME and `weight` or the
optimizer's word for a state as KIND, as `exp_avg:model.norm.weight`.
"""

import contextlib
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save as save_parts
from torch.distributed.tensor import DTensor

from schemas.errors import SchemaError
from train import faults

_FOLDER = "states"
_FILE = "optimizer.safetensors"
_WEIGHT = "weight"
_STEP = "step"
"""What counts steps: it has no dimension, and what lies in shards has one at least."""

_ZERO_3, _ZERO_2 = "ds_id", "_hp_mapping"
"""What DeepSpeed puts on a parameter whose parts, or whose master's, it holds."""


def is_sharded(checkpoint: pathlib.Path) -> bool:
    """Says whether a checkpoint's weights lie in shards, beside those of its states."""
    return not any(checkpoint.glob("*.safetensors"))


def is_cut(model: nn.Module) -> bool:
    """Says whether a process holds but parts of a model's weights: FSDP, or ZeRO-3."""
    return any(
        isinstance(p, DTensor) or hasattr(p, _ZERO_3) for p in model.parameters()
    )


def gathered(model: nn.Module, *, trainable: bool = False) -> dict[str, Tensor]:
    """Returns the whole weights on the CPU, by the names of the model's state dict.

    Every process must call it; all but the first get an empty dict. Names that share
    their weights share them in what is returned. One parameter is whole at a time.

    Args:
      model: sharded or not, by FSDP or DeepSpeed, and not wrapped.
      trainable: take the parameters that are trained alone.
    """
    params = dict(model.named_parameters(remove_duplicate=False))
    done: dict[int, Tensor | None] = {}
    found = {}
    for name, value in model.state_dict().items():
        param = params.get(name)
        if trainable and (param is None or not param.requires_grad):
            continue
        # DeepSpeed keeps things of its own on a parameter, and not on what it holds.
        held = value if param is None else param
        if id(held) not in done:
            done[id(held)] = _whole(held)
        found[name] = done[id(held)]
    return {name: value for name, value in found.items() if value is not None}


def _whole(value: Tensor) -> Tensor | None:
    """Returns a tensor on the CPU, gathered by all; None but on the first process."""
    first = not _several() or torch.distributed.get_rank() == 0
    if isinstance(value, DTensor):
        value = value.full_tensor()
    elif hasattr(value, _ZERO_3) or hasattr(value, _ZERO_2):
        value = _of_deepspeed(value)
    return value.detach().cpu() if first else None


def _of_deepspeed(param: Tensor) -> Tensor:
    """Gathers a parameter of ZeRO's, in float32 where the optimizer has it so."""
    import deepspeed

    trained: Tensor | None = deepspeed.utils.safe_get_full_fp32_param(param)
    if trained is not None:
        return trained
    with deepspeed.zero.GatheredParameters([param]):
        return param.detach().clone()


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def save(
    checkpoint: pathlib.Path, model: nn.Module, optimizer: Any, *, sharded: bool
) -> None:
    """Writes the optimizer's states, and the weights if `sharded`.

    Every process must call it. The files are whole when all have returned.
    """
    folder = checkpoint / _FOLDER
    tensors = dict(_states(model, optimizer))
    if sharded:
        tensors |= _weights(model)
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        with _alone():
            save_parts(tensors, storage_writer=writer)
        return
    whole = {name: _whole(value) for name, value in tensors.items()}
    kept = {name: v.contiguous() for name, v in whole.items() if v is not None}
    with faults.shared():
        if kept:
            folder.mkdir(parents=True, exist_ok=True)
            safetensors.torch.save_file(kept, folder / _FILE)


def load_weights(checkpoint: pathlib.Path, model: nn.Module) -> None:
    """Reads the weights of a sharded checkpoint into a model, sharded or not.

    Raises:
      SchemaError: if one is missing; names it.
    """
    _read(checkpoint, _weights(model))


def load_optimizer(checkpoint: pathlib.Path, model: nn.Module, optimizer: Any) -> None:
    """Reads the states of a checkpoint into an optimizer that has made no step.

    Raises:
      SchemaError: if they are of other parameters than the model's; names one.
    """
    stored, names = _stored(checkpoint), _names(model)
    made: dict[str, Tensor] = {}
    states: dict[int, dict[str, Tensor]] = {}
    for place, param in enumerate(_trained(optimizer)):
        states[place] = {}
        for kind in sorted({name.partition(":")[0] for name in stored} - {_WEIGHT}):
            if (name := f"{kind}:{names[param]}") in stored:
                made[name] = (
                    torch.zeros(1) if kind == _STEP else torch.zeros_like(param)
                )
                states[place][kind] = made[name]
    strange = {name for name in stored if not name.startswith(f"{_WEIGHT}:")} - {*made}
    if strange or not made:
        raise SchemaError(
            f"{checkpoint} must hold the optimizer's states of this model, it holds"
            f" {min(strange, default='none')}; pass --overwrite to start anew"
        )
    _read(checkpoint, made)
    for found in states.values():
        if _STEP in found:
            found[_STEP] = found[_STEP].squeeze(0)
    # The optimizer puts each on the device where it wants it.
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Names the parameters, each once; changes to the values are to the model's."""
    return {f"{_WEIGHT}:{n}": p.detach() for n, p in model.named_parameters()}


def _states(model: nn.Module, optimizer: Any) -> Iterator[tuple[str, Tensor]]:
    names = _names(model)
    for param in _trained(optimizer):
        for kind, value in optimizer.state[param].items():
            flat = value.reshape(1) if kind == _STEP else value
            yield f"{kind}:{names[param]}", flat


def _names(model: nn.Module) -> dict[nn.Parameter, str]:
    return {param: name for name, param in model.named_parameters()}


def _trained(optimizer: Any) -> list[nn.Parameter]:
    """Lists the optimizer's parameters in the order of its own state dict."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def _stored(checkpoint: pathlib.Path) -> dict[str, torch.Size]:
    folder = checkpoint / _FOLDER
    if not any(folder.glob("*.safetensors")):
        raise SchemaError(
            f"{checkpoint} must hold the optimizer's states in {_FOLDER}, it holds"
            " none; it is of an older version: pass --overwrite to start anew"
        )
    found = HuggingFaceStorageReader(str(folder)).read_metadata()
    entries = found.state_dict_metadata.items()
    return {name: e.size for name, e in entries if isinstance(e, TensorStorageMetadata)}


def _read(checkpoint: pathlib.Path, tensors: dict[str, Tensor]) -> None:
    """Fills tensors, each with the part of it that this process holds."""
    stored = _stored(checkpoint)
    for name, tensor in tensors.items():
        if stored.get(name) != tensor.shape:
            raise SchemaError(
                f"{checkpoint} must hold {name} of shape {tuple(tensor.shape)}, it"
                f" holds {stored.get(name)}; pass --overwrite to start anew"
            )
    reader = HuggingFaceStorageReader(str(checkpoint / _FOLDER))
    with _alone():
        load(tensors, storage_reader=reader)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Silences what torch says of a single process: here it is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield
