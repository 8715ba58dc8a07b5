"""Copies between the host and a device that go on beside the device's work."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor of the host to a device; to a GPU without waiting for it."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def download(tensors: Sequence[Tensor]) -> Callable[[], list[np.ndarray]]:
    """Begins to copy tensors of one device to the host.

    Of a GPU they are copied on a stream of their own, so that it goes on with what is
    asked of it meanwhile.

    Returns:
      A function that waits until the copies are there, and returns them.
    """
    if tensors[0].device.type != "cuda":
        return lambda: [tensor.cpu().numpy() for tensor in tensors]
    device = tensors[0].device
    aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream(device))
    copies = []
    with torch.cuda.stream(aside):
        for tensor in tensors:
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            copies.append(copy.copy_(tensor, non_blocking=True))
            tensor.record_stream(aside)  # or its memory may be given away before
        done.record(aside)

    def wait() -> list[np.ndarray]:
        done.synchronize()
        return [copy.numpy() for copy in copies]

    return wait
