"""Causal language models: loaded for inference, whole or in parts, and safely.

None of a model's own code is run and no pickle is read. A model may be laid over
several devices, quantized as it is loaded, or be an adapter that is merged into its
base.
"""

import contextlib
import dataclasses
import os
import re
import shutil
import stat
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from schemas import files, locks
from schemas.errors import SchemaError
from transforms import adapters, causal, checkpoint, extras, quantization
from transforms.adapters import Parts
from transforms.checkpoint import Checkpoint
from transforms.quantization import Quantization

DeviceMap = Literal["none", "auto", "balanced", "balanced_low_0", "sequential"]

_OFFLOADED = "fusebeam-offloaded-"
_SHARE = re.compile(r"(cpu|\d+)=(\d+(?:\.\d+)?)([KMG]i?B)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loading:
    """How a model is loaded, beside its device and the number format of its weights.

    Attributes:
      adapter: folder, or name on the hub, of a LoRA adapter that is merged into the
        model; None = none, or the one that the model itself is.
      adapter_revision: the hub's hash of the adapter's files; None = the newest.
      quantization: how weights are quantized; `none` leaves them as they are.
      device_map: how accelerate lays the model over the GPUs, the host's memory and
        the disk; `none` = one device holds it.
      max_memory: SHARE=SIZE entries, what `device_map` may fill: `0=40GiB` of GPU 0,
        `cpu=16GiB` of the host; none = what there is. What is not named is not used.
    """

    adapter: str | None = None
    adapter_revision: str | None = None
    quantization: Quantization = "none"
    device_map: DeviceMap = "none"
    max_memory: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses what does not go together."""
        self.memory_shares()
        if self.max_memory and not self.split:
            raise ValueError(
                "max_memory must come with a device_map, which it bounds, got"
                f" {' '.join(self.max_memory)}; pass --device_map=auto"
            )
        if self.adapter is not None and self.quantization != "none":
            raise ValueError(
                "an adapter must be merged into weights that are not quantized, got"
                f" quantization {self.quantization}; leave it out, or merge the adapter"
                " into its model beforehand"
            )

    @property
    def split(self) -> bool:
        """Whether several devices may hold the model."""
        return self.device_map != "none"

    def check(self, device: str, *, compiled: bool) -> None:
        """Refuses a device that is not what a model may be laid over.

        Raises:
          ValueError: if it is one GPU of several, or the host and GPUs have a share;
            or if a model is to be compiled that runs by hooks or kernels of others.
        """
        if compiled and (self.split or self.quantization != "none"):
            raise ValueError(
                "compile must be left out with device_map and quantization: torch does"
                " not see through their layers"
            )
        if self.split and device.startswith("cuda:"):
            raise ValueError(
                "device must be left out, or be cuda or cpu, where device_map says"
                f" where the model lies, got {device}; choose GPUs by"
                " CUDA_VISIBLE_DEVICES"
            )
        if device == "cpu" and self.memory_shares().keys() - {"cpu"}:
            raise ValueError(
                "max_memory must name cpu alone where the device is cpu, got"
                f" {' '.join(self.max_memory)}; name GPUs by --device=cuda"
            )

    def memory_shares(self) -> dict[int | str, str]:
        """Returns what may be filled, as accelerate has it.

        Raises:
          ValueError: if an entry is malformed or said twice.
        """
        found: dict[int | str, str] = {}
        for entry in self.max_memory:
            told = _SHARE.fullmatch(entry)
            name = told and (told[1] if told[1] == "cpu" else int(told[1]))
            if told is None or name in found:
                raise ValueError(
                    "max_memory must be SHARE=SIZE, a GPU's number or cpu and a size"
                    f" such as 40GiB, each once, got {entry!r}"
                )
            assert name is not None
            found[name] = told[2] + told[3]
        return found


PLAIN = Loading()
"""As it is, on one device."""


def load_model(
    model: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    revision: str | None = None,
    how: Loading = PLAIN,
) -> Any:
    """Loads a causal language model for inference; none of its own code is run.

    Args:
      model: a local folder, a `*.gguf` file, or a name on the Hugging Face hub; or the
        same of a LoRA adapter, whose base is loaded.
      dtype: number format of the weights.
      device: where it is to run; of a model that is split, where it may: `cpu` keeps
        it off the GPUs.
      revision: the hub's hash of the files wanted; None = the newest.
      how: adapter, quantization and layout over devices.

    Raises:
      FileNotFoundError: if a path does not exist.
      ModuleNotFoundError: if a package is missing that is needed for this.
      SchemaError: if a weight is missing, or not of the shape that it should be.
      ValueError: if there are no weights that may be read, or the device has no room
        for them.
    """
    parts = adapters.split(
        model, how.adapter, revision=revision, adapter_revision=how.adapter_revision
    )
    # Once more, as the model may itself be the adapter.
    how = dataclasses.replace(how, adapter=parts.adapter)
    found = checkpoint.locate(parts.model, revision=parts.revision)
    options = _options(found, parts, dtype, device, how)
    with (
        _telling_of_weights(model),
        _telling_of_room(model, dtype, device),
        contextlib.ExitStack() as undo,
    ):
        if how.split:
            # For what is offloaded, and not stored as it is used: experts, mostly.
            options["offload_folder"] = _offload_folder(undo)
        loaded = _from_pretrained(found, parts.model, dtype, options)
        if parts.adapter is not None:
            loaded = adapters.merge(loaded, parts)
        if "device_map" not in options:
            loaded = loaded.to(device)
        weakref.finalize(loaded, undo.pop_all().close)
    return loaded.eval()


def _offload_folder(undo: contextlib.ExitStack) -> str:
    """Makes a folder that is removed by `undo`, or after a kill by the next load.

    Its lock tells whether its process lives.
    """
    _remove_those_of_the_dead()
    while True:
        folder = tempfile.mkdtemp(prefix=_OFFLOADED)
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        # Another load may take it for one of the dead before it is locked.
        if (lock := locks.take_folder(Path(folder))) is not None:
            undo.callback(os.close, lock)
            return folder


def _remove_those_of_the_dead() -> None:
    """Removes folders of what was offloaded by processes that were killed."""
    place = tempfile.gettempdir()
    if not locks.seen_by_all(place):
        return  # who holds a lock on another machine looks dead from here
    for folder in Path(place).glob(f"{_OFFLOADED}*"):
        # What cannot be removed does no harm to this load; another may be at it, too.
        with contextlib.suppress(OSError):
            if not _is_locked_by_us(folder):
                continue
            if (lock := locks.take_folder(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _is_locked_by_us(folder: Path) -> bool:
    """Says whether a folder is this user's, and has a lock, as old versions' lack."""
    seen = folder.lstat()
    ours = stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.geteuid()
    return ours and (folder / locks.NAME).exists()


def refuse_incomplete(name: str, model: Any, told: Mapping[str, Any]) -> None:
    """Refuses a model of which transformers has drawn weights at random, as it may.

    Args:
      name: of its folder or the like.
      model: as it was loaded, with `ignore_mismatched_sizes`.
      told: what `output_loading_info` says of that.

    Raises:
      SchemaError: if a weight is missing, or not of the shape that it should be.
    """
    unlike = {key for key, *_ in told["mismatched_keys"]}
    if lost := sorted({*told["missing_keys"], *unlike}):
        raise SchemaError(
            f"{name} must hold all weights of a {type(model).__name__} in the shapes"
            f" that its config.json says, but {len(lost)} are missing or of another"
            f" shape, {lost[0]} first; fetch or write it again"
        )


def _from_pretrained(
    found: Checkpoint, name: str, dtype: torch.dtype, options: Mapping[str, Any]
) -> Any:
    import transformers  # takes seconds

    with causal.quiet(), _telling_of_packages(found, name):
        loaded, told = transformers.AutoModelForCausalLM.from_pretrained(
            str(found.folder),
            dtype=dtype,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    refuse_incomplete(name, loaded, told)
    return loaded


def _options(
    found: Checkpoint,
    parts: Parts,
    dtype: torch.dtype,
    device: torch.device,
    how: Loading,
) -> dict[str, Any]:
    """Returns the options of transformers for how weights are kept, and where."""
    stored = _stored_quantization(found)
    asked = quantization.config_of(how.quantization, dtype, device)
    if stored is not None and (asked is not None or parts.adapter is not None):
        raise ValueError(
            f"{parts.model} must hold plain weights to be quantized or adapted, but"
            f" they are quantized already ({stored}); leave out --quantization and"
            " --adapter, or name the model that it was made from"
        )
    if found.gguf_file is not None and asked is not None:
        raise ValueError(
            f"a GGUF file is unpacked, and so must not be quantized again, got"
            f" quantization {how.quantization} for {parts.model}; leave it out, or name"
            " the model that the file was made from"
        )
    options = _placing(how, device)
    if found.gguf_file is not None:
        return {**options, **_of_gguf(found.gguf_file)}
    if asked is not None:
        options["quantization_config"] = asked
    if (asked or stored) and not how.split:
        # What is quantized is not moved: it is loaded to where it shall be.
        extras.require("accelerate", "quantize", f"quantized weights ({parts.model})")
        options["device_map"] = {"": device}
    return {**options, "use_safetensors": True}


def _of_gguf(name: str) -> dict[str, Any]:
    import transformers

    if not hasattr(transformers, "GgufConfig"):  # older versions always unpack
        return {"gguf_file": name}
    # torch does not multiply the blocks of a GGUF file.
    unpacked = transformers.GgufConfig(dequantize=True)
    return {"gguf_file": name, "quantization_config": unpacked}


def _stored_quantization(found: Checkpoint) -> str | None:
    """Names the method that a folder's weights are quantized by; None: none."""
    path = found.folder / checkpoint.CONFIG
    if found.gguf_file is not None or not path.is_file():
        return None
    told = files.read_json(str(path)).get("quantization_config")
    return None if told is None else str(told.get("quant_method", "unnamed"))


def _placing(how: Loading, device: torch.device) -> dict[str, Any]:
    """Returns the options that lay a model over several devices."""
    if not how.split:
        return {}
    extras.require("accelerate", "split", f"device_map {how.device_map}")
    shares: dict[int | str, Any] = dict(how.memory_shares())
    if device.type == "cpu":
        from accelerate.utils import get_max_memory

        shares = shares or {"cpu": get_max_memory()["cpu"]}
    return {"device_map": how.device_map, "max_memory": shares or None}


@contextlib.contextmanager
def _telling_of_packages(found: Checkpoint, name: str) -> Iterator[None]:
    """Names the quantization of stored weights whose package is missing."""
    try:
        yield
    except ImportError as error:
        if (stored := _stored_quantization(found)) is None:
            raise
        told = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"the weights of {name} are quantized ({stored}), for which a package must"
            f" be installed that is not ({told}); install it, on workers too"
        ) from error


@contextlib.contextmanager
def _telling_of_weights(model: str) -> Iterator[None]:
    """Names the model and the cure where its files of weights cannot be read."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise ValueError(
            f"{model} must hold whole safetensors weights, but they cannot be read"
            f" ({error}); copy or fetch them again"
        ) from error


@contextlib.contextmanager
def _telling_of_room(
    model: str, dtype: torch.dtype, device: torch.device
) -> Iterator[None]:
    """Names the model, its device and the cure where memory does not hold it."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        why, kind = str(error).partition("\n")[0], str(dtype).removeprefix("torch.")
        raise ValueError(
            f"{device} must have room for {model} in {kind}, but has not ({why}); pass"
            " --dtype=bfloat16, or start one process a GPU; a model that is larger than"
            " a GPU needs --device_map=auto or --quantization=int8"
        ) from error
