"""How many parameters a model has, without loading it.

Weights on the disk say it in their headers. Of a model on the hub only the
configuration is fetched, and the model is laid out on torch's meta device, which holds
shapes and no numbers.
"""

import dataclasses
import json
import math
import struct
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from schemas import buckets, files
from schemas.errors import SchemaError
from transforms import causal, checkpoint

_INDEX = "model.safetensors.index.json"
_LENGTH = struct.Struct("<Q")
_LONGEST_HEADER = 100_000_000  # as the format itself bounds it


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """The size of a model.

    Attributes:
      count: its parameters, embeddings among them, tied ones once.
      stored_bytes: what they take as they are stored.
      source: where this was read.
    """

    count: int
    stored_bytes: int
    source: str


def count(model: str) -> Parameters:
    """Counts a model's parameters.

    Args:
      model: a local folder, a `*.gguf` file, or a name on the Hugging Face hub. A
        folder needs its weights or its configuration.

    Raises:
      FileNotFoundError: if it is none of these.
      SchemaError: if a weights file's header cannot be read.
      ValueError: if transformers does not know what the configuration describes.
    """
    found = checkpoint.fetch(model, [checkpoint.CONFIG])
    if found.gguf_file is not None:
        return _of_gguf(found.folder / found.gguf_file)
    weights = sorted(found.folder.glob(checkpoint.SAFE))
    if found.commit is None and weights and not _missing(model, weights):
        return _of_headers(weights)
    return _of_config(model, found.folder)


def _missing(model: str, weights: Sequence[Path]) -> set[str]:
    """Names the files of weights that are not there, as of what lists all of them.

    Of a model in a bucket some may have been fetched, before it was stopped.
    """
    there = {path.name for path in weights}
    if buckets.protocol(model):
        held = files.names(model)
        return {name for name in held if fnmatchcase(name, checkpoint.SAFE)} - there
    index = weights[0].parent / _INDEX
    listed = files.read_json(str(index))["weight_map"] if index.is_file() else {}
    return set(listed.values()) - there


def _of_headers(paths: list[Path]) -> Parameters:
    """Sums the tensors that the headers of safetensors files list."""
    elements = stored = 0
    for path in paths:
        for name, tensor in _header(path).items():
            if name != "__metadata__":
                start, stop = tensor["data_offsets"]
                elements += math.prod(tensor["shape"])
                stored += stop - start
    return Parameters(count=elements, stored_bytes=stored, source="weights' headers")


def _header(path: Path) -> dict[str, Any]:
    """Reads a safetensors header: its length in 8 bytes, then JSON."""
    with path.open("rb") as file:
        packed = file.read(_LENGTH.size)
        try:
            (length,) = _LENGTH.unpack(packed)
            if length > _LONGEST_HEADER:
                raise ValueError(f"its header would have {length} bytes")
            return dict(json.loads(file.read(length)))
        except (struct.error, ValueError, TypeError) as error:
            raise SchemaError(
                f"{path} must be a whole safetensors file, but its header cannot be"
                f" read ({error}); copy or fetch it again"
            ) from error


def _of_gguf(path: Path) -> Parameters:
    from gguf import GGUFReader  # an extra

    tensors = GGUFReader(str(path)).tensors  # a map of the file: nothing is loaded
    return Parameters(
        count=sum(int(tensor.n_elements) for tensor in tensors),
        stored_bytes=sum(int(tensor.n_bytes) for tensor in tensors),
        source="GGUF header",
    )


def _of_config(model: str, folder: Path) -> Parameters:
    import torch  # takes seconds
    import transformers

    if not (folder / checkpoint.CONFIG).is_file():
        raise FileNotFoundError(
            f"{model} must hold {checkpoint.CONFIG} or weights, to tell its"
            f" parameters, but {folder} holds neither"
        )
    with causal.quiet(), torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
        laid_out = transformers.AutoModelForCausalLM.from_config(
            config, trust_remote_code=False
        )
    elements = sum(parameter.numel() for parameter in laid_out.parameters())
    dtype = getattr(config.get_text_config(), "dtype", None) or torch.float32
    return Parameters(
        count=elements,
        stored_bytes=elements * dtype.itemsize,
        source=checkpoint.CONFIG,
    )
