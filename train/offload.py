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

    Weights stay, and what autocast makes of them: they are on the device anyway. The
    copies are made in the stream of the computation, so the device waits for them:
    memory is won for time.

    Args:
      least_bytes: size from which a tensor is moved.
    """

    def pack(value: Tensor) -> _Kept:
        if value.nbytes < least_bytes or _is_weight(value):
            return value.device, value
        return value.device, _on_host(value)

    def unpack(kept: _Kept) -> Tensor:
        device, value = kept
        return value.to(device, non_blocking=True)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _is_weight(value: Tensor) -> bool:
    """Says whether a tensor is of a parameter, or of one cast to another type.

    Autocast keeps its cast of a weight for all who use it in a forward pass, so a copy
    for each would free nothing. A frozen weight's cast cannot be told from others, and
    frozen weights are of the arithmetic's own type here.
    """
    base = value if value._base is None else value._base
    made = base.grad_fn
    if made is not None and made.name() == "ToCopyBackward0":
        ((source, _),) = made.next_functions
        base = getattr(source, "variable", base)
    return isinstance(base, nn.Parameter)


def _on_host(value: Tensor) -> Tensor:
    there = torch.empty(
        value.shape, dtype=value.dtype, pin_memory=value.device.type == "cuda"
    )
    return there.copy_(value, non_blocking=True)
