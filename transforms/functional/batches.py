"""Puts windows of like length together, so that little of a batch is padding."""

from collections.abc import Sequence

_PADDING = 1 / 32
"""Share of a batch that may be padding: it costs as much as tokens do."""


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
