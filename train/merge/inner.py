"""Sums and inner products of whole tensors, and what follows from them.

They are formed in float64, a piece after the other, so a tensor of any size needs no
copy of its size, and the number of threads does not change the last digit.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from train.merge import pieces
from train.tensors import Gram, Weight

_PIECE = 1 << 14
"""Elements at a time: fewer than what torch spreads over threads."""


def product(first: Tensor, second: Tensor) -> float:
    """Sums first * second over all elements."""
    return math.fsum(
        float((one.double() * other.double()).sum())
        for one, other in pieces.of(first, second, elements=_PIECE)
    )


def square(tensor: Tensor) -> float:
    """Sums the squares of all elements."""
    return product(tensor, tensor)


def size(tensor: Tensor) -> float:
    """Sums absolute values: the L1 norm."""
    return math.fsum(
        float(one.double().abs().sum()) for (one,) in pieces.of(tensor, elements=_PIECE)
    )


def gram(tensors: Sequence[Weight]) -> Gram:
    """Forms the inner products of all pairs of tensors."""
    found = torch.zeros(len(tensors), len(tensors), dtype=torch.float64)
    for i, first in enumerate(tensors):
        for j, second in enumerate(tensors[: i + 1]):
            found[i, j] = found[j, i] = product(first, second)
    return found


def cosines(products: Gram) -> Gram:
    """Divides inner products by both norms; 0 where a norm is 0."""
    norms = products.diagonal().sqrt()
    safe = norms.where(norms > 0, 1.0)
    return (products / safe / safe[:, None]).clamp(-1, 1)
