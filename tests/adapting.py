"""A LoRA adapter with random weights for a tiny model."""

import warnings
from pathlib import Path

import peft
import torch

from transforms import loading


def write(
    folder: Path, base: str, *, rank: int = 3, seed: int = 0, **config: object
) -> str:
    """Writes an adapter as peft does; returns its folder."""
    model = loading.load_model(base, dtype=torch.float32, device=torch.device("cpu"))
    told = {"r": rank, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing")
        made = peft.get_peft_model(model, peft.LoraConfig(**{**told, **config}))
        generator = torch.Generator().manual_seed(seed)
        for name, weight in made.named_parameters():
            if "lora_" in name:
                weight.data.normal_(0, 0.5, generator=generator)
        made.peft_config["default"].base_model_name_or_path = base
        made.save_pretrained(str(folder), save_embedding_layers=False)
    return str(folder)
