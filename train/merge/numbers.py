"""Numbers of tensors as safetensors stores them, and as torch computes with them."""

import math

import torch
from torch import Tensor

from schemas.weights import Place

TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Torch's types by the names that safetensors has for them."""


def from_bytes(content: bytearray | memoryview, place: Place) -> Tensor:
    """Returns the tensor whose bytes these are; it shares their memory."""
    if not content:
        return torch.empty(place.shape, dtype=TORCH[place.dtype])
    return torch.frombuffer(content, dtype=TORCH[place.dtype]).reshape(place.shape)


def is_finite(tensor: Tensor) -> bool:
    """Says whether no number is NaN or infinite; makes no mask of all of them."""
    if not tensor.numel():
        return True
    # NaN goes through both.
    return all(map(math.isfinite, map(float, torch.aminmax(tensor))))


def to_bytes(tensor: Tensor) -> memoryview:
    """Returns the bytes of a tensor, which stay its memory.

    On a machine of the other byte order they would be turned; there is none that torch
    runs on.
    """
    flat = tensor.contiguous().reshape(-1)
    if not flat.numel():
        return memoryview(b"")
    return flat.view(torch.uint8).numpy().data
