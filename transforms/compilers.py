"""Which compilers of kernels there are."""

import importlib.util
import sys

import torch


def has_triton(device: torch.device) -> bool:
    """Says whether Triton can run on a device: on CUDA, or in its interpreter."""
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    knobs = getattr(sys.modules.get("triton"), "knobs", None)  # since Triton 3.4
    runtime = getattr(knobs, "runtime", None)
    return bool(getattr(runtime, "interpret", False))
