"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685), through peft.

The target's weights are frozen; each adapted layer adds `alpha / rank * B A x` to what
it says, and A and B alone are trained, in float32. Under QLoRA (Dettmers et al. 2023,
arXiv 2305.14314) the frozen weights are kept in 4 or 8 bits. In the end the adapters
are merged into the target as it is stored, not into its quantised form.
"""

import contextlib
import importlib.util
import pathlib
import re
import warnings
from collections.abc import Iterator
from typing import Any

import safetensors.torch
import torch
import transformers
from torch import Tensor

from schemas.errors import SchemaError
from train import model as models
from train.config import TrainConfig
from transforms import loading

FOLDER = "adapter"
_FILE = "adapter_model.safetensors"
_SIDE = re.compile(r"\.(lora_[AB])\.weight$")
"""What peft leaves out of names that it writes: which of its adapters they are of."""
_EXTRAS = {"peft": "lora", "bitsandbytes": "qlora"}


def load(
    source: pathlib.Path,
    config: TrainConfig,
    *,
    dtype: str,
    device: str,
    resume: pathlib.Path | None = None,
) -> Any:
    """Loads a target, frozen, with adapters to train.

    Args:
      source: folder of the target.
      config: rank, scale, places and dropout of the adapters; how the target is kept.
      dtype: of the frozen weights and the arithmetic.
      device: where it will be trained.
      resume: checkpoint whose adapters are gone on with.

    Raises:
      SchemaError: if a package is missing, a layer or weight is not there, or the
        device cannot.
    """
    _require("peft")
    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        source,
        dtype=getattr(torch, dtype),
        quantization_config=_quantisation(config, dtype, device),
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    loading.refuse_incomplete(str(source), model, told)
    return wrap(model, config, resume=resume)


def wrap(model: Any, config: TrainConfig, *, resume: pathlib.Path | None = None) -> Any:
    """Gives a model adapters: new ones, alike for every process, or a checkpoint's.

    Raises:
      SchemaError: if `lora_targets` name nothing in the model.
    """
    import peft

    if resume is not None:
        with _quiet():
            return peft.PeftModel.from_pretrained(model, str(resume), is_trainable=True)
    made = peft.LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(config.lora_targets) or "all-linear",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), _quiet():
        torch.manual_seed(config.seed)
        try:
            return peft.get_peft_model(model, made)
        except ValueError as error:
            raise SchemaError(
                f"lora_targets must name linear layers of {config.model}, got"
                f" {', '.join(config.lora_targets) or 'all'}: {error}"
            ) from error


def write(model: Any, state: dict[str, Tensor], folder: pathlib.Path) -> None:
    """Writes adapters as a folder that peft loads.

    Args:
      model: whose adapters they are.
      state: their weights by the names of the model's state dict.
      folder: made if need be.
    """
    # The layers that adapters are on are the target's, not the adapters'.
    model.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's, of a model we do not know


def stored(checkpoint: pathlib.Path) -> dict[str, Tensor]:
    """Reads a checkpoint's adapters, by the names of the model's state dict."""
    found = safetensors.torch.load_file(checkpoint / _FILE)
    return {_SIDE.sub(r".\1.default.weight", name): v for name, v in found.items()}


def merged(source: pathlib.Path, adapter: pathlib.Path) -> Any:
    """Returns the target in float32 on the CPU with written adapters merged into it."""
    import peft

    with _quiet():
        model = peft.PeftModel.from_pretrained(models.load(source), str(adapter))
    return model.merge_and_unload()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what peft says where it calls transformers by an older name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing")
        yield


def _quantisation(config: TrainConfig, dtype: str, device: str) -> Any:
    if config.quantise == "none":
        return None
    _require("bitsandbytes")
    if device != "cuda":
        raise SchemaError(
            f"quantise = {config.quantise} must have a GPU, and the device is {device};"
            " give --device=cuda where there is one, or leave --quantise out"
        )
    if config.quantise == "8bit":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
        bnb_4bit_quant_storage=getattr(torch, dtype),  # what FSDP can shard
    )


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise SchemaError(
            f"{package} must be installed for adapters of this kind, and is not;"
            f" install fusebeam[train,{_EXTRAS[package]}]"
        )
