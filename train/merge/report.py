"""What a merge would do, as lines for people."""

import math
from collections.abc import Iterator, Sequence

from schemas import weights
from schemas.weights import Place
from train.merge import methods, plan
from train.merge.plan import Shard, Tensor

_HEADS = ("tensor", "shape", "type", "layer", "how")
_MARGIN = 1.1
"""A tenth more than was measured of each method (`tests.bench`)."""


def lines(
    names: Sequence[str], lead: int, shards: Sequence[Shard], notes: Sequence[str]
) -> Iterator[str]:
    """Yields a line for each tensor, then what is to be noted, then the totals."""
    tensors = [tensor for shard in shards for tensor in shard.tensors]
    rows = [_HEADS, *(cells(tensor, names) for tensor in tensors)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = (f"{text:<{width}}" for text, width in zip(row, widths, strict=True))
        yield "  ".join(padded).rstrip()
    for note in notes:
        yield f"note: {note}"
    yield from totals(names, lead, shards)


def cells(tensor: Tensor, names: Sequence[str]) -> tuple[str, ...]:
    """Returns what is told of a tensor: key, shape, type, layer, how it is made.

    Args:
      tensor: the tensor.
      names: of the inputs, the base last.
    """
    shape = " x ".join(map(str, tensor.shape)) or "one number"
    return tensor.key, shape, tensor.dtype, tensor.layer or "-", _how(tensor, names)


def _how(tensor: Tensor, names: Sequence[str]) -> str:
    if tensor.how == plan.TAKE:
        (place,) = (at for at, found in enumerate(tensor.places) if found is not None)
        return f"take {names[place]}"
    if tensor.how == plan.EQUAL:
        return "the same in all"
    told = [f"{name}={_shown(value)}" for name, value in tensor.settings.items()]
    how = {"by token": tensor.by_token, "with base": tensor.with_base}
    return " ".join([tensor.method, *told, *(words for words, so in how.items() if so)])


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def totals(names: Sequence[str], lead: int, shards: Sequence[Shard]) -> Iterator[str]:
    """Yields what is read, written and held in all."""
    tensors = [tensor for shard in shards for tensor in shard.tensors]
    read = sum(
        place.stop - place.start
        for tensor in tensors
        for place in tensor.places
        if place is not None
    )
    yield f"of {', '.join(names)}; {names[lead]} leads"
    yield (
        f"{sum(t.elements for t in tensors):,} parameters in {len(tensors):,} tensors,"
        f" {len(shards):,} files, {size(sum(s.bytes for s in shards))};"
        f" {size(read)} to read"
    )
    most = max(tensors, key=needed_bytes)
    yield (
        f"memory: {most.key} of all models takes {size(held_bytes(most))}; a worker"
        f" needs {size(needed_bytes(most))} at most, beside what Python takes"
    )


def held_bytes(tensor: Tensor) -> int:
    """Returns how many bytes a tensor of all models takes to compute with."""
    return sum(
        math.prod(place.shape) * max(4, weights.ITEM_BYTES[place.dtype])
        for place in _read(tensor)
    )


def needed_bytes(tensor: Tensor) -> int:
    """Returns how many bytes a worker needs to make a tensor.

    That is what is read of all models, and what the method makes of it::

        margin (sum_i elements_i + elements (m + p n)) * bytes of a number

    with n models, m and p those of `Method.working`. Among numbers of 64 bits others
    are there once as they are read and once as wide.
    """
    read = _read(tensor)
    item = max(max(4, weights.ITEM_BYTES[place.dtype]) for place in read)
    largest = max(math.prod(place.shape) for place in read)
    made = 1.0
    if tensor.how == plan.MERGE:
        each, once = methods.METHODS[tensor.method].working
        # The rows that others lack wait in the lead's tensor.
        made = each * (len(read) - tensor.with_base) + once + tensor.by_token
    wider = sum(math.prod(p.shape) for p in read if weights.ITEM_BYTES[p.dtype] < item)
    widened = item * wider * (item > 4)
    return round(_MARGIN * (held_bytes(tensor) + item * largest * made + widened))


def _read(tensor: Tensor) -> list[Place]:
    return [place for place in tensor.places if place is not None]


def size(n_bytes: int | float) -> str:
    """Writes a number of bytes for people.

    Example:
      >>> size(512), size(2_500_000), size(7.25e10)
      ('512 B', '2.5 MB', '72.5 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"
