"""The plan of a merge: every tensor, how it is made, and in which file it goes.

All is planned before a number is read: keys, shapes and types are those of the headers,
so what does not fit is refused at once, and every file of the merged model is known
from its first byte. A file is a slice of the work; its line in `plan.jsonl` says all
that a worker must know.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from schemas import files, weights
from schemas.errors import SchemaError
from schemas.weights import Place

NAME = "plan.jsonl"

MERGE, TAKE, EQUAL = "merge", "take", "equal"
"""Ways to make a tensor: of all models by a method; one model's as it is; that which is
the same in all, as whole numbers and truth values must be."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor of the merged model.

    Attributes:
      key: its state-dict key.
      shape: its shape.
      dtype: the type it is stored in, as safetensors calls it.
      layer: its layer, as keys begin with it; None where it is of none.
      how: merge, take or equal.
      method: the merge method; empty where it is not merged.
      settings: of the method, all of them, settled.
      with_base: whether the method gets the base.
      places: where it is in each input, in their order; None where it is not needed.
      by_token: whether its rows are of tokens, and matched by them.
      twins: places in an input (which, the one, the other) that must hold the same: its
        embedding, and a head that is this once more.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    layer: str | None
    how: str
    method: str = ""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    with_base: bool = False
    places: tuple[Place | None, ...]
    by_token: bool = False
    twins: tuple[tuple[int, Place, Place], ...] = ()

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """How many bytes it takes as it is stored."""
        return self.elements * weights.ITEM_BYTES[self.dtype]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A file of the merged model: a slice of the work.

    Attributes:
      index: its number, from 0.
      file: its name.
      tensors: what it holds, in the order of its bytes.
    """

    index: int
    file: str
    tensors: tuple[Tensor, ...]

    @property
    def digest(self) -> str:
        """Digests all that the plan says of it."""
        return files.digest(json.loads(to_line(self)))

    @property
    def bytes(self) -> int:
        """How many bytes its tensors take."""
        return sum(tensor.bytes for tensor in self.tensors)


def part(tensors: Iterable[Tensor], shard_bytes: int) -> list[Shard]:
    """Parts tensors, in order, into files of at most so many bytes, or of one tensor.

    Within a file the larger numbers come first, so that all are aligned.
    """
    groups: list[list[Tensor]] = []
    size = 0
    for tensor in tensors:
        if not groups or size + tensor.bytes > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.bytes
    names = _names(len(groups))
    return [
        Shard(index=index, file=name, tensors=tuple(sorted(group, key=_alignment)))
        for index, (name, group) in enumerate(zip(names, groups, strict=True))
    ]


def _alignment(tensor: Tensor) -> int:
    return -weights.ITEM_BYTES[tensor.dtype]


def _names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]


def to_line(shard: Shard) -> str:
    """Writes a file as one line of the plan."""
    return json.dumps(dataclasses.asdict(shard), separators=(",", ":"))


def from_line(line: str) -> Shard:
    """Reads a file from one line of the plan.

    Raises:
      SchemaError: if the line is none.
    """
    try:
        told = json.loads(line)
        told["tensors"] = tuple(_tensor(entry) for entry in told["tensors"])
        return Shard(**told)
    except (TypeError, ValueError, KeyError) as error:
        raise SchemaError(
            f"a line of a merge's {NAME} must be one of its files: {error}"
        ) from error


def _tensor(told: dict[str, Any]) -> Tensor:
    places = tuple(place and _place(place) for place in told.pop("places"))
    twins = tuple((at, _place(a), _place(b)) for at, a, b in told.pop("twins"))
    shape = tuple(told.pop("shape"))
    return Tensor(**told, shape=shape, places=places, twins=twins)


def _place(told: Mapping[str, Any]) -> Place:
    return Place(**{**told, "shape": tuple(told["shape"])})


def write(folder: str, shards: Sequence[Shard]) -> None:
    """Publishes the plan of a merge, unless the very same is there."""
    path = files.join(folder, NAME)
    text = "".join(to_line(shard) + "\n" for shard in shards).encode()
    if not files.exists(path) or files.read_bytes(path) != text:
        files.write_bytes(path, text)


def is_begun(folder: str) -> bool:
    """Says whether there is the plan of a merge, and not of windows."""
    path = files.join(folder, NAME)
    if not files.exists(path):
        return False
    with files.open_input(path) as file:
        return b'"tensors":' in file.readline()


def read(folder: str) -> list[Shard]:
    """Reads the plan of a merge, in order."""
    text = files.read_bytes(files.join(folder, NAME)).decode()
    return [from_line(line) for line in text.splitlines()]


def difference(had: Sequence[Shard], wanted: Sequence[Shard]) -> str | None:
    """Tells the first tensor, and of that the first value, that two plans differ in.

    Args:
      had: the plan that is there.
      wanted: the plan that would be written now.

    Returns:
      What it is in both; None where the plans are of the same tensors.
    """
    old, new = _flat(had), _flat(wanted)
    for key in dict.fromkeys([*new, *old]):
        mine, theirs = new.get(key, {}), old.get(key, {})
        for name in dict.fromkeys([*mine, *theirs]):
            if mine.get(name) != theirs.get(name):
                was, now = (one.get(name, "not set") for one in (theirs, mine))
                return f"{name} of {key} = {was!r}, and now it is {now!r}"
    return None


def _flat(shards: Sequence[Shard]) -> dict[str, dict[str, Any]]:
    """Returns the values of each tensor, by its key; each setting by itself."""
    found = {}
    for shard in shards:
        for told in json.loads(to_line(shard))["tensors"]:
            own = {f"settings.{k}": v for k, v in told.pop("settings").items()}
            found[told["key"]] = {"file": shard.file, **told, **own}
    return found


def index_of(shards: Sequence[Shard]) -> dict[str, Any]:
    """Returns the index that lists which file holds which tensor."""
    return {
        "metadata": {
            "total_parameters": sum(t.elements for s in shards for t in s.tensors),
            "total_size": sum(shard.bytes for shard in shards),
        },
        "weight_map": {t.key: s.file for s in shards for t in s.tensors},
    }
