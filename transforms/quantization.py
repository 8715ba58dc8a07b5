"""Weights in 8 or 4 bits, by the settings that transformers has for them."""

from typing import Any, Literal

import torch

from transforms import extras

Quantization = Literal["none", "int8", "int4", "fp8"]

_NEEDS = {
    "int8": ("bitsandbytes", "quantize"),
    "int4": ("bitsandbytes", "quantize"),
    "fp8": ("kernels", "fp8"),
}
"""Package beside accelerate, and the extra that brings both."""
_FP8_FROM = (8, 9)
"""Compute capability from which NVIDIA's GPUs multiply numbers of 8 bits."""


def config_of(kind: Quantization, dtype: torch.dtype, device: torch.device) -> Any:
    """Makes the settings by which transformers quantizes weights as it loads them.

    `int8` is LLM.int8 (Dettmers et al. 2022, arXiv 2208.07339) and `int4` NF4 with
    its scales quantized too (Dettmers et al. 2023, arXiv 2305.14314), both by
    bitsandbytes, on CPUs and GPUs. `fp8` is e4m3 in blocks of 128 x 128 weights
    (DeepSeek-AI 2024, arXiv 2412.19437, 3.3), on GPUs that have it; its kernel is
    fetched from the hub by the package kernels.

    Args:
      kind: `none` gives None.
      dtype: of the arithmetic.
      device: where the model is to run.

    Raises:
      ModuleNotFoundError: if a package is missing.
      ValueError: if the device cannot.
    """
    if kind == "none":
        return None
    if kind == "fp8":
        _refuse_without_fp8(device)
    package, extra = _NEEDS[kind]
    for one in ("accelerate", package):
        extras.require(one, extra, f"quantization {kind}")
    import transformers  # takes seconds

    if kind == "fp8":
        return transformers.FineGrainedFP8Config()
    if kind == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _refuse_without_fp8(device: torch.device) -> None:
    """Refuses devices on which transformers would fail, or silently not quantize."""
    cure = "use --quantization=int8, or a GPU of the Ada or Hopper kind or newer"
    if device.type != "cuda":
        raise ValueError(
            f"quantization fp8 must have a GPU, and the device is {device}; {cure}"
        )
    found = torch.cuda.get_device_capability(device)
    if found < _FP8_FROM:
        raise ValueError(
            f"quantization fp8 must have a GPU of compute capability"
            f" {_FP8_FROM[0]}.{_FP8_FROM[1]} or more, and {device} has"
            f" {found[0]}.{found[1]}; {cure}"
        )
