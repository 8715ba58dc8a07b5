"""Goes through tensors piece by piece, so that what is worked out on the way is small.

What is done element by element needs no temporary tensor of the whole size, and finds
its numbers in the processor's cache.
"""

from collections.abc import Iterator

from torch import Tensor

ELEMENTS = 1 << 16
"""Elements at a time: enough that calls of torch cost little beside the arithmetic."""


def of(*tensors: Tensor, elements: int = ELEMENTS) -> Iterator[list[Tensor]]:
    """Yields a piece of each tensor, the same of all, in order.

    Args:
      tensors: of as many elements each; one that is written to must be contiguous, as
        the pieces of others are copies.
      elements: how many at a time.

    Example:
      >>> import torch
      >>> [len(piece) for piece, in of(torch.zeros(2, 5), elements=4)]
      [4, 4, 2]
    """
    flat = [tensor.reshape(-1) for tensor in tensors]
    for start in range(0, len(flat[0]), elements):
        yield [one[start : start + elements] for one in flat]
