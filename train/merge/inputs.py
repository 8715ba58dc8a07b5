"""The models that are merged: where they are, and what tells them from others.

Weights are read where they lie, tensor by tensor: on a disk, or in a bucket by ranges.
Of a model on the hub its files are fetched, once on each machine.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from schemas import buckets, files, weights
from schemas.weights import Stamp, Weights
from train.merge import checksums
from train.merge.checksums import Checksums
from transforms import checkpoint, tokenizer
from transforms.tokenizer import Tokenizer

_TOKENIZERS = ("tokenizer.json", "*.model", "vocab*", "*.tiktoken", "rwkv_vocab_*.txt")
_UNTOLD = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
"""What a configuration says that its model does not depend on."""

_PINNED = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?@[\w./-]+")
"""A name on the hub and a revision: a commit, a tag or a branch."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A model that is merged.

    Attributes:
      name: its name in recipes and messages.
      model: a folder, local or in a bucket, or a name on the hub.
      commit: the hub's hash of its files; None where it is not of the hub.
    """

    name: str
    model: str
    commit: str | None = None

    @property
    def pinned(self) -> str:
        """Its model, of the hub with the commit: as recipes may name it, too."""
        return self.model if self.commit is None else f"{self.model}@{self.commit}"

    @property
    def folder(self) -> str:
        """Where its files are for this process, weights among them."""
        if buckets.protocol(self.model):
            return self.model
        return str(checkpoint.locate(self.model, revision=self.commit).folder)

    @property
    def config(self) -> Mapping[str, Any]:
        """Its configuration."""
        folder = self.folder_with((checkpoint.CONFIG,))
        path = files.join(folder, checkpoint.CONFIG)
        if not files.exists(path):
            raise FileNotFoundError(
                f"a model folder must hold {checkpoint.CONFIG}, none at {path}"
            )
        return dict(files.read_json(path))

    def fingerprint(self, of_files: Checksums = checksums.known) -> str:
        """Digests configuration and weights: all that a merge takes from it.

        Of a model on the hub it is of the commit.

        Args:
          of_files: what returns the checksums of its files of weights.
        """
        if self.commit is not None:
            return checkpoint.fingerprint(self.model, revision=self.commit)
        told = {k: v for k, v in self.config.items() if k not in _UNTOLD}
        names = weights.file_names(self.folder)
        return files.digest([told, names, of_files(self.folder, names)])

    def folder_with(self, patterns: Sequence[str]) -> str:
        """Returns where files of it lie that are no weights, fetched from the hub."""
        if buckets.protocol(self.model):
            return self.model
        found = checkpoint.fetch(self.model, patterns, revision=self.commit)
        return str(found.folder)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Its tokenizer; None where its folder does not say how text becomes tokens."""
        folder = self.folder_with(("*.json", *_TOKENIZERS))
        if not names_like(folder, _TOKENIZERS):
            return None
        return tokenizer.load(folder)


def find(name: str, model: str) -> Input:
    """Finds a model that is to be merged; no weights are fetched for this.

    Args:
      name: its name in recipes and messages.
      model: a folder, local or in a bucket, or a name on the hub, with `@` and a
        revision behind it where it shall not be the newest.

    Raises:
      FileNotFoundError: if it is not there, or has no configuration.
      ValueError: if its weights are not safetensors, or packed.
    """
    if model.endswith(".gguf"):
        raise ValueError(
            f"model {name!r} must be a folder or a name on the hub, with weights as"
            f" {weights.PATTERN}, got {model}: what a .gguf file holds is packed"
        )
    if buckets.protocol(model):
        found = Input(name=name, model=model)
    else:
        place, revision = _parted(model)
        located = checkpoint.locate(place, revision=revision, config_only=True)
        found = Input(name=name, model=place, commit=located.commit)
    if packed := found.config.get("quantization_config"):
        kind = packed.get("quant_method", "unknown")
        raise ValueError(
            f"model {name!r}, {model}, must have plain weights, but they are packed"
            f" (quantization_config says {kind}); unpack them with transformers"
            " (dequantize) and save_pretrained"
        )
    return found


def is_of_hub(model: str) -> bool:
    """Says whether a place is one of the hub with a revision, and no folder."""
    return _parted(model)[1] is not None


def _parted(model: str) -> tuple[str, str | None]:
    """Parts a name on the hub from the revision behind it; a folder has none."""
    place, _, revision = model.rpartition("@")
    if not _PINNED.fullmatch(model) or files.exists(model):
        return model, None
    return place, revision


def read_weights(one: Input) -> Weights:
    """Finds the tensors of a model, whose files are fetched where they are not here.

    Of a model on the hub every worker has copies of its own, and the commit tells
    which: so no more than sizes is known of its files.
    """
    found = weights.read_weights(one.folder)
    if one.commit is None:
        return found
    sizes = {name: Stamp(bytes=stamp.bytes) for name, stamp in found.stamps.items()}
    return dataclasses.replace(found, stamps=sizes)


def names_like(folder: str, patterns: Sequence[str]) -> list[str]:
    """Lists the files of a folder that any of some globs fits, sorted."""
    there = files.names(folder)
    return [n for n in there if any(Path(n).match(pattern) for pattern in patterns)]


def vocabulary_rows(one: Input) -> int | None:
    """Returns how many rows a model has for tokens, padding included, if it says."""
    config = one.config
    told = (config.get("text_config") or config).get("vocab_size")
    return told if isinstance(told, int) else None


def ties_head(one: Input) -> bool:
    """Says whether whoever loads a model takes its embedding for its head.

    Where the configuration does not say, its kind's default does.
    """
    config = one.config
    for told in (config, config.get("text_config") or {}):
        if isinstance(ties := told.get("tie_word_embeddings"), bool):
            return ties
    from transformers import CONFIG_MAPPING  # takes seconds

    if (kind := config.get("model_type")) not in CONFIG_MAPPING:
        return False
    return bool(getattr(CONFIG_MAPPING[kind](), "tie_word_embeddings", False))


def differing(lead: Input, other: Input) -> list[str]:
    """Names what two configurations say differently, but what does not matter."""
    mine, theirs = (
        {k: v for k, v in one.config.items() if k not in (*_UNTOLD, "vocab_size")}
        for one in (lead, other)
    )
    keys = sorted({*mine, *theirs})
    return [k for k in keys if _told(mine.get(k)) != _told(theirs.get(k))]


def _told(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
