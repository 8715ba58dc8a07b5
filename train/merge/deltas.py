"""Weighted sums of differences from a base: task arithmetic and what grew from it.

All are one equation, with delta_i = phi_i - theta_base::

    theta = theta_base + lambda * sum_i w_i K_i(delta_i) / D

K_i drops a part of the elements (`sparsify`), D is 1, or the sum of weights where
`normalize`. With an election of signs (those named *ties, and della), an element counts
only where its sign is the one that the weighted sum has there::

    s   = +1 where sum_i w_i K_i(delta_i) >= 0, else -1
    M_i = [sign(w_i K_i(delta_i)) = s]                  zeros never count
    theta = theta_base + lambda * sum_i M_i w_i K_i(delta_i) / sum_i M_i w_i

A sum of weights below 1e-8 divides as 1, as in mergekit. The names and defaults of
settings are mergekit's, and so are the results, but where a docstring says otherwise.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import torch

from train.merge import pieces, sparsify
from train.tensors import Weight

_LEAST_SUM = 1e-8
"""Sums of weights below this in magnitude do not divide."""


def task_arithmetic(
    models: Sequence[Weight],
    base: Weight,
    *,
    weight: Sequence[float],
    normalize: bool,
    lambda_: float,
) -> Weight:
    """Adds weighted differences to the base.

        theta = theta_base + lambda * sum_i w_i delta_i

    References:
      Ilharco et al. 2023, "Editing models with task arithmetic", arXiv 2212.04089,
      section 2; one lambda for all tasks there, weights beside it here.
    """
    deltas = (model - base for model in models)
    return _sum(base, deltas, weight, normalize, lambda_)


def ties(
    models: Sequence[Weight],
    base: Weight,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    rescale: str,
    normalize: bool,
    lambda_: float,
) -> Weight:
    """Keeps the greatest differences, elects signs, averages those that agree.

    Where weights are equal this is the paper's disjoint mean over the models that agree
    and are not zero.

    References:
      Yadav et al. 2023, "TIES-Merging", arXiv 2306.01708, algorithm 1; weights and one
      density a model as in mergekit.
    """
    deltas = (
        sparsify.keep_largest(model - base, share, rescale)
        for model, share in zip(models, density, strict=True)
    )
    return _elected_sum(base, deltas, weight, normalize, lambda_)


def dare_linear(
    models: Sequence[Weight],
    base: Weight,
    generator: torch.Generator,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    rescale: str,
    normalize: bool,
    lambda_: float,
) -> Weight:
    """Drops differences at random, rescales the others, and adds them.

        K_i(delta) = m * delta / density,   m ~ Bernoulli(density) for each element

    so that the expectation is task arithmetic. Models draw one after the other.

    References:
      Yu et al. 2024, "Language models are super Mario", arXiv 2311.03099, with
      density = 1 - p. mergekit rescales to the L1 norm of delta instead: rescale="l1".
    """
    deltas = _drawn(models, base, generator, density, rescale)
    return _sum(base, deltas, weight, normalize, lambda_)


def dare_ties(
    models: Sequence[Weight],
    base: Weight,
    generator: torch.Generator,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    rescale: str,
    normalize: bool,
    lambda_: float,
) -> Weight:
    """Drops differences at random, rescales the others, elects signs, and adds.

    K_i is that of `dare_linear`; sums are not divided by default, as in mergekit.

    References:
      Yu et al. 2024, arXiv 2311.03099, with the election of Yadav et al. 2023.
    """
    deltas = _drawn(models, base, generator, density, rescale)
    return _elected_sum(base, deltas, weight, normalize, lambda_)


def della_linear(
    models: Sequence[Weight],
    base: Weight,
    generator: torch.Generator,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    epsilon: Sequence[float],
    rescale: str,
    normalize: bool,
    lambda_: float,
) -> Weight:
    """Drops differences at random, small ones sooner, rescales the others, and adds.

    K_i is `sparsify.keep_ranked`: an element is divided by its own probability of being
    kept, so the expectation is task arithmetic.

    References:
      Deep et al. 2024, "DELLA-Merging", arXiv 2406.11617 (MagPrune), without the
      election. The paper's epsilon is the whole spread of probabilities, mergekit's and
      ours its half; mergekit rescales to the L1 norm instead: rescale="l1". A row of a
      tensor of three and more axes is the whole of one output here, one index of the
      second axis there.
    """
    deltas = _ranked(models, base, generator, density, epsilon, rescale)
    return _sum(base, deltas, weight, normalize, lambda_)


def della(
    models: Sequence[Weight],
    base: Weight,
    generator: torch.Generator,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    epsilon: Sequence[float],
    rescale: str,
    normalize: bool,
    lambda_: float,
) -> Weight:
    """Drops differences at random, small ones sooner, elects signs, and averages.

    K_i is that of `della_linear`.

    References:
      Deep et al. 2024, arXiv 2406.11617: drop, elect, fuse.
    """
    deltas = _ranked(models, base, generator, density, epsilon, rescale)
    return _elected_sum(base, deltas, weight, normalize, lambda_)


def breadcrumbs(
    models: Sequence[Weight],
    base: Weight,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    rescale: str,
    normalize: bool,
    lambda_: float,
) -> Weight:
    """Drops the greatest and the smallest differences and adds the others.

    K_i is `sparsify.keep_middle`, over a whole tensor.

    References:
      Davari and Belilovsky 2024, "Model Breadcrumbs", arXiv 2312.06795; its beta is
      1 - density - gamma and its gamma 1 - gamma here.
    """
    deltas = _middle(models, base, density, gamma, rescale)
    return _sum(base, deltas, weight, normalize, lambda_)


def breadcrumbs_ties(
    models: Sequence[Weight],
    base: Weight,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    rescale: str,
    normalize: bool,
    lambda_: float,
) -> Weight:
    """Drops the greatest and the smallest differences, elects signs, and adds.

    K_i is that of `breadcrumbs`; sums are not divided by default, as in mergekit.

    References:
      Davari and Belilovsky 2024, arXiv 2312.06795, with the election of Yadav et al.
    """
    deltas = _middle(models, base, density, gamma, rescale)
    return _elected_sum(base, deltas, weight, normalize, lambda_)


def _drawn(
    models: Sequence[Weight],
    base: Weight,
    generator: torch.Generator,
    density: Sequence[float],
    rescale: str,
) -> Iterator[Weight]:
    """Differences of which each element is kept with one probability."""
    return (
        sparsify.keep_drawn(model - base, share, generator, rescale)
        for model, share in zip(models, density, strict=True)
    )


def _ranked(
    models: Sequence[Weight],
    base: Weight,
    generator: torch.Generator,
    density: Sequence[float],
    epsilon: Sequence[float],
    rescale: str,
) -> Iterator[Weight]:
    """Differences of which an element is kept with a probability by its rank."""
    return (
        sparsify.keep_ranked(model - base, share, half, generator, rescale)
        for model, share, half in zip(models, density, epsilon, strict=True)
    )


def _middle(
    models: Sequence[Weight],
    base: Weight,
    density: Sequence[float],
    gamma: Sequence[float],
    rescale: str,
) -> Iterator[Weight]:
    """Differences without their greatest and smallest elements."""
    return (
        sparsify.keep_middle(model - base, share, outliers, rescale)
        for model, share, outliers in zip(models, density, gamma, strict=True)
    )


def _sum(
    base: Weight,
    deltas: Iterator[Weight],
    weight: Sequence[float],
    normalize: bool,
    lambda_: float,
) -> Weight:
    """theta_base + lambda * sum_i w_i delta_i / D."""
    total = math.fsum(weight)
    divisor = total if normalize and abs(total) >= _LEAST_SUM else 1.0
    mixed = torch.zeros_like(base)
    for one in weight:
        # No name: a difference is gone before the next is made.
        mixed.add_(next(deltas), alpha=one / divisor)
    return mixed.mul_(lambda_).add_(base)


def _elected_sum(
    base: Weight,
    deltas: Iterable[Weight],
    weight: Sequence[float],
    normalize: bool,
    lambda_: float,
) -> Weight:
    """theta_base + lambda * sum_i M_i w_i delta_i / sum_i M_i w_i; uses deltas up."""
    weighted = [delta.mul_(one) for delta, one in zip(deltas, weight, strict=True)]
    mixed = torch.zeros(base.shape, dtype=base.dtype)
    for total, *some in pieces.of(mixed, *weighted):
        divisor = torch.zeros_like(total)
        agreed = sparsify.agreements(some)
        for delta, agrees, one in zip(some, agreed, weight, strict=True):
            total.add_(delta.mul_(agrees))
            divisor.add_(agrees, alpha=one)
        if normalize:
            total.div_(divisor.where(divisor.abs() >= _LEAST_SUM, 1.0))
    return mixed.mul_(lambda_).add_(base)
