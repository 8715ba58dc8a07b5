"""Means of models: linear, and model stock, which stops short of the mean."""

import itertools
import math
from collections.abc import Sequence

import torch

from train.merge import inner
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


def model_stock(models: Sequence[Weight], base: Weight, *, filter_wise: bool) -> Weight:
    """Goes from the base toward the mean of models, as far as they agree.

        theta = t mean_i phi_i + (1 - t) theta_base,    t = n c / (1 + (n - 1) c)

    c is the mean cosine of all pairs of differences from the base. The paper assumes
    one angle between all models; the mean over pairs is mergekit's. A zero difference
    has cosine 0 with every other. Where |1 + (n - 1) c| < 1e-6 there is no finite t,
    and the base is kept. mergekit takes norms whose product is below 1e-6 for 1e-6,
    which pulls small differences to the base; we do not.

    Args:
      models: the tensor of each model, two at least.
      base: the pretrained tensor.
      filter_wise: whether each vector along the last axis has a t of its own, in place
        of one for the tensor.

    References:
      Jang et al. 2024, "Model Stock", arXiv 2403.19522.
    """
    deltas = [model - base for model in models]
    mean = combine(deltas, [1 / len(models)] * len(models))
    pairs = itertools.combinations(range(len(models)), 2)
    if filter_wise:
        units = [_to_unit(delta) for delta in deltas]
        found = [
            (units[i] * units[j]).sum(dim=-1, keepdim=True).clamp(-1, 1)
            for i, j in pairs
        ]
    else:
        cosines = inner.cosines(inner.gram(deltas)).to(base.dtype)
        found = [cosines[i, j] for i, j in pairs]
    cosine = torch.stack(found).mean(dim=0)
    divisor = 1 + (len(models) - 1) * cosine
    singular = divisor.abs() < 1e-6
    share = len(models) * cosine / divisor.where(~singular, 1.0)
    return mean.mul_(share.where(~singular, 0.0)).add_(base)


def _to_unit(delta: Weight) -> Weight:
    """Divides vectors along the last axis by their norms, in place; zero ones stay."""
    norms = torch.linalg.vector_norm(delta, dim=-1, keepdim=True)
    return delta.div_(norms.where(norms > 0, 1.0))
