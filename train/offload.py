"""Activations kept in the host's memory between the forward and the backward pass."""

import contextlib

import torch
from torch import Tensor, nn

_LEAST_BYTES = 1 << 20
"""Below it, moving a tensor costs more than keeping it."""

_Kept = tuple[torch.device, Tensor]


def activations(
    least_bytes: int = _LEAST_BYTES,
) -> contextlib.AbstractContextManager[object]:
    """Copies what autograd saves to the host, and back when it is wanted.

    Weights stay: they are on the device anyway. The copies are made in the stream of
    the computation, so the device waits for them: memory is won for time.

    Args:
      least_bytes: size from which a tensor is moved.
    """

    def pack(value: Tensor) -> _Kept:
        base = value if value._base is None else value._base
        if isinstance(base, nn.Parameter) or value.nbytes < least_bytes:
            return value.device, value
        there = torch.empty(
            value.shape, dtype=value.dtype, pin_memory=value.device.type == "cuda"
        )
        return value.device, there.copy_(value, non_blocking=True)

    def unpack(kept: _Kept) -> Tensor:
        device, value = kept
        return value.to(device, non_blocking=True)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
