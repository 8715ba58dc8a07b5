"""LoRA adapters (Hu et al. 2021, arXiv 2106.09685) that are scored: see `merge`.

An adapter is a folder as peft writes it: a configuration that names a base model, and
the weights of what is added to some of its layers. It is merged into its base as this
is loaded, so that it costs nothing in the forward pass.
"""

import dataclasses
import hashlib
import json
import warnings
from typing import Any

from schemas import files
from schemas.errors import SchemaError
from transforms import checkpoint, extras

WEIGHTS = "adapter_model.safetensors"

_NAME = "scored"
"""What peft calls the adapter within the model."""
_NO_PART = ("auto_mapping", "base_model_name_or_path", "inference_mode", "revision")
"""What of a configuration has no part in the model's output."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A model, and what is merged into it.

    Attributes:
      model: a folder, a `*.gguf` file, or a name on the hub, which is no adapter.
      revision: the hub's hash of its files; None = the newest.
      adapter: folder or name on the hub of an adapter, or None.
      adapter_revision: the hub's hash of the adapter's files; None = the newest.
    """

    model: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None


def split(
    model: str,
    adapter: str | None = None,
    *,
    revision: str | None = None,
    adapter_revision: str | None = None,
) -> Parts:
    """Finds the base of a model that is itself an adapter; leaves others as they are.

    Args:
      model: a model or an adapter.
      adapter: one to merge into the model, or None.
      revision: the hub's hash of the model's files.
      adapter_revision: that of the adapter's.

    Raises:
      FileNotFoundError: if a path does not exist.
      ValueError: if an adapter is to be merged into an adapter, or names no base.
    """
    base = base_of(model, revision=revision)
    if base is None:
        return Parts(
            model=model,
            revision=revision,
            adapter=adapter,
            adapter_revision=adapter_revision,
        )
    if adapter is not None:
        raise ValueError(
            f"model must be what adapter {adapter} is merged into, but {model} is an"
            " adapter too; merge one of them beforehand"
        )
    name, commit = base
    return Parts(model=name, revision=commit, adapter=model, adapter_revision=revision)


def base_of(
    model: str, *, revision: str | None = None
) -> tuple[str, str | None] | None:
    """Returns the base that an adapter names, and its revision; None for a model.

    Raises:
      FileNotFoundError: if `model` does not exist.
      ValueError: if it is an adapter that names no base, or a model and an adapter.
    """
    found = checkpoint.fetch(
        model, [checkpoint.CONFIG, checkpoint.ADAPTER], revision=revision
    )
    path = found.folder / checkpoint.ADAPTER
    if found.gguf_file is not None or not path.is_file():
        return None
    if (found.folder / checkpoint.CONFIG).is_file():
        # transformers would add the adapter to the model, unasked and unmerged.
        raise ValueError(
            f"a model must hold {checkpoint.CONFIG} or {checkpoint.ADAPTER}, but"
            f" {model} holds both; move the adapter to a folder of its own, and name"
            " the model by --model and the adapter by --adapter"
        )
    config = files.read_json(str(path))
    name = config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ValueError(
            f"an adapter must name its base model, but {path} has no"
            f" base_model_name_or_path; pass --model=BASE --adapter={model}"
        )
    return name, config.get("revision")


def pinned(parts: Parts) -> Parts:
    """Fills in the hub's hashes of what is on the hub, as they are now.

    Raises:
      FileNotFoundError: if a path does not exist.
    """
    found = checkpoint.locate(parts.model, revision=parts.revision, config_only=True)
    merged = None if parts.adapter is None else _locate(parts)
    return dataclasses.replace(
        parts,
        revision=found.commit,
        adapter_revision=None if merged is None else merged.commit,
    )


def fingerprint(parts: Parts) -> str:
    """Digests what a model computes with what is merged into it.

    Returns:
      32 hexadecimal digits; without an adapter those of `checkpoint.fingerprint`.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if the adapter has no weights that may be read.
    """
    base = checkpoint.fingerprint(parts.model, revision=parts.revision)
    if parts.adapter is None:
        return base
    found = _locate(parts)
    if found.commit is not None:
        return files.digest([base, f"{parts.adapter}@{found.commit}"])
    config = files.read_json(str(found.folder / checkpoint.ADAPTER))
    shaping = {name: config[name] for name in sorted(config.keys() - {*_NO_PART})}
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([base, shaping]).encode())
    checkpoint.digest_file(digest, found.folder / WEIGHTS)
    return digest.hexdigest()


def merge(model: Any, parts: Parts) -> Any:
    """Merges an adapter into a loaded model: W + alpha / rank * B A for each layer.

    Raises:
      ModuleNotFoundError: if peft is missing.
      SchemaError: if the adapter's weights are not those of layers of the model.
      ValueError: if it is no LoRA adapter, has no weights that may be read, or weights
        of the model are not in memory.
    """
    extras.require("peft", "lora", f"adapter {parts.adapter}")
    folder = _locate(parts).folder
    away = [name for name, weight in model.named_parameters() if weight.is_meta]
    if away:
        raise ValueError(
            f"an adapter must be merged into weights in memory, but {len(away)} of"
            f" {parts.model} are kept elsewhere by the device map, {away[0]} first;"
            " give it more GPUs or memory, or merge the adapter beforehand"
        )
    import peft

    from transforms import causal  # needs torch, which tokenizers do not

    law = f"adapter {parts.adapter} must fit {parts.model}"
    with warnings.catch_warnings():
        # peft calls transformers by an older name, and tells of what is refused below.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing")
        warnings.filterwarnings("ignore", ".*missing adapter keys")
        try:
            config = peft.PeftConfig.from_pretrained(str(folder))
            wrapped = peft.PeftModelForCausalLM(model, config, adapter_name=_NAME)
            told = wrapped.load_adapter(str(folder), _NAME, torch_device="cpu")
            merged = wrapped.merge_and_unload(safe_merge=True)
        except (NotImplementedError, RuntimeError, ValueError) as error:
            if causal.is_out_of_memory(error):
                raise
            raise SchemaError(
                f"{law}, but it cannot be merged"
                f" ({str(error).strip().partition(chr(10))[0]}); name the model that it"
                " was trained on"
            ) from error
    if unlike := sorted({*told.missing_keys, *told.unexpected_keys}):
        raise SchemaError(
            f"{law}, but {len(unlike)} weights are missing or of no layer,"
            f" {unlike[0]} first; name the model that it was trained on"
        )
    return merged


def _locate(parts: Parts) -> checkpoint.Checkpoint:
    """Finds an adapter's files; sees that they are LoRA's and no pickles."""
    assert parts.adapter is not None
    found = checkpoint.fetch(
        parts.adapter, [checkpoint.ADAPTER, WEIGHTS], revision=parts.adapter_revision
    )
    for name in (checkpoint.ADAPTER, WEIGHTS):
        if found.gguf_file is not None or not (found.folder / name).is_file():
            raise FileNotFoundError(
                f"an adapter must hold {checkpoint.ADAPTER} and {WEIGHTS}, but"
                f" {parts.adapter} lacks {name}; save it with peft's save_pretrained"
            )
    kind = files.read_json(str(found.folder / checkpoint.ADAPTER)).get("peft_type")
    if kind != "LORA":
        raise ValueError(
            f"an adapter must be of LoRA's kind to be merged, but {parts.adapter} is of"
            f" peft_type {kind!r}; merge it with peft, and name what comes out"
        )
    return found
