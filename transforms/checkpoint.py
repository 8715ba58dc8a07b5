"""The files of a model: where they are, and a fingerprint of what they say."""

import dataclasses
import fnmatch
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from schemas import buckets, copies, files, weights

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
"""The configuration of what is merged into a model: see `transforms/adapters.py`."""
SAFE = "model*.safetensors"
COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template*",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
)
"""The files of a model folder that go with any weights of its kind."""

_PICKLED = "pytorch_model*.bin"
_BLOCK_BYTES = 2**20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model on the local disk.

    Attributes:
      folder: holds the files.
      gguf_file: name of the one file that is the model, or None.
      commit: the hub's hash of the files, or None where they come from a folder, or
        from a bucket.
    """

    folder: Path
    gguf_file: str | None = None
    commit: str | None = None


def locate(
    model: str, *, revision: str | None = None, config_only: bool = False
) -> Checkpoint:
    """Finds a model's files; what is on the hub is fetched, or found in its cache.

    Args:
      model: a folder or a `*.gguf` file, local or in a bucket, or a name on the
        Hugging Face hub.
      revision: the hub's hash of the files wanted; None = the newest.
      config_only: fetches no weights.

    Returns:
      The model's place.

    Raises:
      FileNotFoundError: if a path does not exist.
      ValueError: if there are no weights that may be read: pickles, which run code
        when they are read, are not.
    """
    patterns = [CONFIG] if config_only else ["*.json", SAFE]
    found = fetch(model, patterns, revision=revision)
    partly = found.commit is not None or buckets.protocol(model) is not None
    if found.gguf_file is None and not (config_only and partly):
        _check_weights(model, found.folder)
    return found


def fetch(
    model: str, patterns: Sequence[str], *, revision: str | None = None
) -> Checkpoint:
    """Finds a model's folder or GGUF file, or fetches files of it.

    Args:
      model: a folder or a `*.gguf` file, local or in a bucket, or a name on the
        Hugging Face hub.
      patterns: the files wanted of a model that is not local.
      revision: the hub's hash of them; None = the newest.

    Raises:
      FileNotFoundError: if it is none of these.
    """
    if buckets.protocol(model):
        return _fetch_objects(model, patterns)
    path = Path(model)
    if path.is_dir():
        return Checkpoint(folder=path)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise FileNotFoundError(f"no GGUF file at {model}")
        return Checkpoint(folder=path.parent, gguf_file=path.name)
    law = f"a model must be a folder, a .gguf file or a name on the hub, got {model}"
    if path.exists() or path.is_absolute() or len(path.parts) > 2 or model[:1] in ".~":
        raise FileNotFoundError(f"{law}, where there is no such folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        folder = Path(
            snapshot_download(model, revision=revision, allow_patterns=list(patterns))
        )
    except (OSError, HFValidationError, HfHubHTTPError) as error:
        told = " ".join([line for line in str(error).splitlines() if line.strip()][:2])
        raise FileNotFoundError(
            f"{law}: there is no such folder here, and the hub did not give it"
            f" ({type(error).__name__}: {told}); a gated model needs HF_TOKEN or hf"
            " auth login"
        ) from error
    return Checkpoint(folder=folder, commit=folder.name)


def _fetch_objects(model: str, patterns: Sequence[str]) -> Checkpoint:
    """Fetches files of a model in a bucket, but those that were fetched before.

    They lie beside the hub's, in a folder named by what the bucket says of their
    content: a model that is written anew is fetched anew.
    """
    gguf = files.name_of(model) if model.endswith(".gguf") else None
    folder = files.parent(model) if gguf else model
    found = files.stamps(folder)
    names = [n for n in found if any(fnmatch.fnmatchcase(n, p) for p in patterns)]
    if gguf:
        names = [name for name in found if name == gguf]
    if not names:
        raise FileNotFoundError(
            f"a model must be a folder that holds {' or '.join(patterns)}, or a .gguf"
            f" file, got {model}, where there is none"
        )
    told = files.digest([model, {gguf: found[gguf]} if gguf else found])
    local = _store() / told / files.name_of(model.removesuffix(".gguf"))
    local.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not (local / name).exists():
            copies.copy(files.join(folder, name), str(local / name))
    files.tidy(str(local))
    return Checkpoint(folder=local, gguf_file=gguf)


def _store() -> Path:
    """Returns where models of buckets are kept: with those of the hub, on its disk."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "fusebeam"


def _check_weights(model: str, folder: Path) -> None:
    if any(folder.glob(SAFE)):
        return
    found = "pickled weights only" if any(folder.glob(_PICKLED)) else "no weights"
    if (folder / ADAPTER).is_file():
        found = "an adapter only"
    raise ValueError(
        f"{model} must hold weights as {SAFE}, it holds {found}; load it with"
        " transformers where you trust it, and save it with save_pretrained"
    )


def fingerprint(model: str, *, revision: str | None = None) -> str:
    """Digests what a model computes: its configuration and its weights.

    A folder's files of weights, those that are loaded, are read whole, a block at a
    time, and fetched for this where they lie in a bucket; of a model on the hub, which
    is not, the commit is digested.

    Args:
      model: as for `locate`.
      revision: as for `locate`.

    Returns:
      32 hexadecimal digits.

    Raises:
      FileNotFoundError: if a file is missing.
    """
    alone = buckets.protocol(model) is None
    found = locate(model, revision=revision, config_only=alone)
    digest = hashlib.blake2b(digest_size=16)
    if found.commit is not None:
        digest.update(f"{model}@{found.commit}".encode())
        return digest.hexdigest()
    if found.gguf_file is not None:
        digest_file(digest, found.folder / found.gguf_file)
        return digest.hexdigest()
    digest.update(_config(found.folder / CONFIG))
    for path in _weights(model, found.folder):
        digest.update(f"\n{path.name} {path.stat().st_size}\n".encode())
        digest_file(digest, path)
    return digest.hexdigest()


def _weights(model: str, folder: Path) -> list[Path]:
    """Lists the files that whoever loads a model reads.

    Transformers takes one file alone where that is there, whatever an index says; a
    merge refuses such folders.
    """
    names = {*weights.file_names(str(folder))}
    names |= {weights.ALONE} if (folder / weights.ALONE).is_file() else set()
    if lost := [name for name in sorted(names) if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"{model} must hold every file that its {weights.INDEX} lists, but lacks"
            f" {weights.some(lost)}; copy or fetch it again"
        )
    return [folder / name for name in sorted(names)]


def _config(path: Path) -> bytes:
    """Returns the configuration without what has no part in the model's output."""
    if not path.is_file():
        raise FileNotFoundError(f"a model folder must hold {CONFIG}, none at {path}")
    config: dict[str, Any] = files.read_json(str(path))
    for name in ("_name_or_path", "transformers_version"):
        config.pop(name, None)
    return json.dumps(config, sort_keys=True).encode()


def digest_file(digest: hashlib.blake2b, path: Path) -> None:
    """Adds a file's content to a digest, a block at a time."""
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
