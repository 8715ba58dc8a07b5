"""Groups windows into batches: packed end to end, or padded to one length.

Batches are made while lengths come in, in their order, and depend on nothing else.
"""

from collections.abc import Iterable, Iterator, Sequence

_PADDING = 1 / 32
"""Share of a batch that may be padding: it costs as much as tokens do."""
_POOL = 64
"""Batches' tokens among which windows of like length are looked for."""


def fill_batches(
    lengths: Iterable[int], batch_tokens: int, most: int | None = None
) -> Iterator[list[int]]:
    """Groups windows, one after the other, into batches that are packed end to end.

    Args:
      lengths: tokens of each window.
      batch_tokens: tokens that a batch holds at most, unless it is one window alone.
      most: a window of more tokens than that is always alone; None = none is.

    Yields:
      Places of the windows, in order, batch by batch.

    Example:
      >>> list(fill_batches([3, 8, 2, 8], batch_tokens=16))
      [[0, 1, 2], [3]]
    """
    batch: list[int] = []
    held = 0
    for place, length in enumerate(lengths):
        alone = most is not None and length > most
        if batch and (alone or held + length > batch_tokens):
            yield batch
            batch, held = [], 0
        batch.append(place)
        held = batch_tokens if alone else held + length
    if batch:
        yield batch


def plan_pools(
    lengths: Iterable[int], batch_tokens: int, most: int | None = None
) -> Iterator[list[int]]:
    """Groups windows into padded batches, those of like length in a pool together.

    A pool is what comes in until it has the tokens of 64 batches, so that what is
    waited for is bounded. Its batches are those of `plan_batches`.

    Args:
      lengths: tokens of each window.
      batch_tokens: budget of a batch, padding included.
      most: a window of more tokens than that is always alone; None = none is.

    Yields:
      Places of the windows, batch by batch; each once.
    """
    first = 0
    for pool in _pools(lengths, _POOL * batch_tokens):
        long = [p for p, n in enumerate(pool) if most is not None and n > most]
        yield from ([first + place] for place in long)
        rest = sorted(set(range(len(pool))) - set(long))
        for batch in plan_batches([pool[place] for place in rest], batch_tokens):
            yield [first + rest[place] for place in batch]
        first += len(pool)


def _pools(lengths: Iterable[int], tokens: int) -> Iterator[list[int]]:
    pool: list[int] = []
    held = 0
    for length in lengths:
        pool.append(length)
        held += length
        if held >= tokens:
            yield pool
            pool, held = [], 0
    yield pool


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Groups windows into batches, the longest first.

    A batch of rows padded to its longest holds at most `batch_tokens` tokens, unless it
    is one window alone, and at most 1/32 of them are padding. It depends on nothing
    but the arguments.

    Args:
      lengths: tokens of each window.
      batch_tokens: budget of a batch, padding included.

    Returns:
      Places of the windows, batch by batch; each once.

    Example:
      >>> plan_batches([3, 8, 2, 8], batch_tokens=16)
      [[1, 3], [0], [2]]
    """
    order = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    batches: list[list[int]] = []
    width = held = 0
    for place in order:
        padded = width * (len(batches[-1]) + 1) if batches else 0
        padding = padded - held - lengths[place]
        if not batches or padded > batch_tokens or padding > _PADDING * padded:
            batches.append([])
            width, held = lengths[place], 0
        batches[-1].append(place)
        held += lengths[place]
    return batches
