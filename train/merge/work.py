"""What is done with one file of a merge: each of its tensors is made and written.

One tensor of each model is in memory at a time, in float32 (float64 where a model has
that), and the merged one; a file is written from its header on, and appears when it is
whole. What is drawn at random for a tensor depends on seed and key alone: so it is the
same whoever makes the file, in whatever order.
"""

import dataclasses
import hashlib

import torch

from schemas import files, manifest, weights
from schemas.errors import NotFiniteError, SchemaError
from schemas.manifest import FileEntry
from train.merge import methods, numbers, plan, sums
from train.merge.plan import Shard, Tensor
from train.merge.reading import Opened, Reading
from transforms import checkpoint

STAGE = "merge"


class _SuperfluousError(Exception):
    """Another command has published the same file; never leaves this module."""


def seed_of(seed: int, key: str) -> int:
    """Returns the seed of what is drawn at random for a tensor.

    Example:
      >>> seed_of(0, "lm_head.weight") == seed_of(0, "lm_head.weight")
      True
      >>> seed_of(0, "lm_head.weight") == seed_of(1, "lm_head.weight")
      False
    """
    told = files.canonical_json([seed, key]).encode()
    return int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "big") >> 1


def fingerprint(identity: str, shard: Shard) -> str:
    """Digests all that shapes a file of the merged model."""
    return files.digest([STAGE, identity, shard.digest])


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeShards:
    """Writes the files of a merged model.

    Attributes:
      reading: the models.
      seed: of what is drawn at random.
      overwrite: whether files of other settings are written anew.
    """

    reading: Reading
    seed: int
    overwrite: bool = False

    @property
    def output(self) -> str:
        """Folder of the merged model."""
        return self.reading.output

    def name(self, line: str) -> str:
        """Returns the name of the file that a line of the plan is of."""
        return plan.from_line(line).file

    def done(self, line: str) -> bool:
        """Says whether that file is there, whoever has made it."""
        shard = plan.from_line(line)
        path = files.join(self.output, shard.file)
        told = fingerprint(self.reading.identity, shard)
        return weights.is_done(path, told, overwrite=self.overwrite)

    def make(self, line: str) -> None:
        """Makes the file of a line; one that another has made meanwhile stays."""
        shard = plan.from_line(line)
        told = fingerprint(self.reading.identity, shard)
        listed = [(t.key, t.dtype, t.shape) for t in shard.tensors]
        path = files.join(self.output, shard.file)
        try:
            with files.publish(path) as sink, self.reading.open() as opened:
                sink.write(weights.plan_header(listed, told))
                for tensor in shard.tensors:
                    sink.write(self._bytes(opened, tensor))
                if self.done(line):
                    raise _SuperfluousError
        except _SuperfluousError:
            return
        except FileNotFoundError:
            if self.done(line):
                return  # who ended the folder meanwhile has dropped what was measured
            raise
        if manifest.remove_other(self.output, self.reading.identity):
            # Beside this file those of the other merge are no model any more.
            files.remove_tree(files.join(self.output, checkpoint.CONFIG))
        entry = FileEntry(
            name=shard.file,
            rows=len(shard.tensors),
            tokens=None,
            bytes=sink.bytes,
            sha256=sink.sha256,
        )
        manifest.note_entry(self.output, entry, told)

    def _bytes(self, opened: Opened, tensor: Tensor) -> memoryview:
        return numbers.to_bytes(stored(opened, tensor, self.seed))


def stored(opened: Opened, tensor: Tensor, seed: int) -> torch.Tensor:
    """Makes a tensor of the merged model as it is stored.

    Args:
      opened: the models.
      tensor: what is made.
      seed: of what is drawn at random.

    Raises:
      NotFiniteError: if it is beyond the range of its type; names it.
      SchemaError: if it cannot be made of what the models hold; names it.
    """
    _check_twins(opened, tensor)
    made = _made(opened, tensor, seed).to(numbers.TORCH[tensor.dtype])
    if made.is_floating_point() and not numbers.is_finite(made):
        raise NotFiniteError(
            f"merged weights must be finite, but {tensor.key} is not in"
            f" {tensor.dtype}; store it in a type of greater range (dtype ="
            ' "bfloat16" or "float32"), or merge with less weight'
        )
    return made


def _made(opened: Opened, tensor: Tensor, seed: int) -> torch.Tensor:
    if tensor.how == plan.MERGE:
        return _merged(opened, tensor, seed)
    if tensor.how == plan.TAKE:
        return _taken(opened, tensor)
    return _equal(opened, tensor)


def _merged(opened: Opened, tensor: Tensor, seed: int) -> torch.Tensor:
    """Merges a tensor, of its rows perhaps only those that all models have."""
    generator, settings = None, dict(tensor.settings)
    if methods.METHODS[tensor.method].seeded:
        generator = torch.Generator().manual_seed(seed_of(seed, tensor.key))
    if sums.needs(tensor):
        known = sums.weights(opened.of.output, opened.of.identity)
        settings["weights"] = known[sums.part_of(tensor)]
    read = opened.aligned(tensor)
    try:
        merged = methods.merge_tensors(
            tensor.method, read.models, read.base, settings, generator, finite=True
        )
    except NotFiniteError as error:
        raise NotFiniteError(f"{tensor.key}: {error}") from error
    except ValueError as error:
        raise SchemaError(f"{tensor.key}: {error}") from error
    return read.restore(merged)


def _taken(opened: Opened, tensor: Tensor) -> torch.Tensor:
    """Returns a tensor of one model as it is."""
    found = [(at, place) for at, place in enumerate(tensor.places) if place is not None]
    ((at, place),) = found
    if place.dtype in weights.FLOATS:
        return opened.number(at, place, tensor.key)
    return opened.stored(at, place)


def _equal(opened: Opened, tensor: Tensor) -> torch.Tensor:
    """Returns a tensor that is the same in all models.

    Raises:
      SchemaError: if it is not; names two that differ.
    """
    found: torch.Tensor | None = None
    first = ""
    for at, place in enumerate(tensor.places):
        if place is None:
            continue
        own, name = opened.stored(at, place), opened.of.models[at].name
        if found is None:
            found, first = own, name
        elif not torch.equal(found, own):
            raise SchemaError(
                f"{tensor.key} is of {place.dtype}, which is not merged, so it must be"
                f" the same in all models, but it is not in {first} and {name}; take it"
                f' from one by a rule: take = "{first}"'
            )
    assert found is not None
    return found


def _check_twins(opened: Opened, tensor: Tensor) -> None:
    """Refuses to drop a head that is not its model's embedding once more."""
    for at, embedding, head in tensor.twins:
        one = opened.of.models[at]
        if not torch.equal(opened.stored(at, embedding), opened.stored(at, head)):
            raise SchemaError(
                f"the head of {one.name} ({one.model}) must be {tensor.key}, as the"
                " merged model has no head of its own, but it is another; give as base"
                " a model whose head is its own, or merge without this one"
            )
