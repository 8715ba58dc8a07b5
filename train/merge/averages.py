"""Weighted means of models: linear."""

import math
from collections.abc import Sequence

import torch

from train.tensors import Weight


def linear(
    models: Sequence[Weight], *, weight: Sequence[float], normalize: bool
) -> Weight:
    """Averages the models with given weights.

        theta = sum_i w_i phi_i / sum_i w_i         (normalize)
        theta = sum_i w_i phi_i                     (otherwise)

    Args:
      models: the tensor of each model.
      weight: w_i, any sign.
      normalize: whether the weights are made to sum to 1.

    Raises:
      ValueError: if they sum to 0 and shall sum to 1.

    References:
      Wortsman et al. 2022, "Model soups", arXiv 2203.05482.
    """
    return combine(models, normalized(weight) if normalize else weight)


def normalized(weight: Sequence[float]) -> list[float]:
    """Divides weights by their sum.

    Raises:
      ValueError: if they sum to 0, up to the rounding of 64 bits.
    """
    total = math.fsum(weight)
    if abs(total) <= 1e-12 * math.fsum(abs(one) for one in weight):
        raise ValueError(
            f"weights must not sum to 0 where they are made to sum to 1, got "
            f"{list(weight)}; change them or switch that off"
        )
    return [one / total for one in weight]


def combine(tensors: Sequence[Weight], factors: Sequence[float]) -> Weight:
    """Sums tensors times factors: sum_i c_i x_i."""
    mixed = torch.zeros_like(tensors[0])
    for tensor, factor in zip(tensors, factors, strict=True):
        if factor:
            mixed.add_(tensor, alpha=factor)
    return mixed
