"""Which tokens of a model begin, end, pad or stand for the unknown."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FILES = ("tokenizer_config.json", "special_tokens_map.json", "config.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Ids of the tokens that play a role; None where a model has none."""

    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    unk_id: int | None


def read_roles(folder: Path, token_to_id: Callable[[str], int | None]) -> Roles:
    """Reads the roles from the files beside a `tokenizer.json`.

    The tokenizer's own files name tokens, the model's `config.json` ids. The first
    that speaks of a role decides, even if it says that there is none.

    Args:
      folder: holds any of tokenizer_config.json, special_tokens_map.json,
        config.json.
      token_to_id: the vocabulary.

    Returns:
      The roles.

    Raises:
      ValueError: if a file names a token that the vocabulary lacks.
    """
    files = [_read_json(folder / name) for name in _FILES]
    # multimodal configurations keep the language model's part apart
    files.append(files[-1].get("text_config") or {})
    found = {
        role: _find(role, files, folder, token_to_id)
        for role in ("bos", "eos", "pad", "unk")
    }
    return Roles(**{f"{role}_id": index for role, index in found.items()})


def _read_json(path: Path) -> Mapping[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def _find(
    role: str,
    files: list[Mapping[str, Any]],
    folder: Path,
    token_to_id: Callable[[str], int | None],
) -> int | None:
    for entries in files:
        if f"{role}_token_id" in entries:
            index = entries[f"{role}_token_id"]
            return index[0] if isinstance(index, list) else index
        if f"{role}_token" in entries:
            token = entries[f"{role}_token"]
            spelling = token["content"] if isinstance(token, Mapping) else token
            if spelling is None:
                return None
            if (index := token_to_id(spelling)) is None:
                raise ValueError(
                    f"{role}_token of {folder} must be in its tokenizer.json, got "
                    f"{spelling!r}; the files belong to different tokenizers"
                )
            return index
    return None
