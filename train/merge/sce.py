"""SCE: select by variance, calculate weights, erase minorities, and merge.

With delta_j = phi_j - theta_base of n models and one tensor (Wan et al. 2024,
"FuseChat", arXiv 2408.07990, section 3.3)::

    Select     S  = [variance over j of delta_j is among the k greatest]
    Calculate  eta_j = |S delta_j|^2 / sum_j |S delta_j|^2
    Erase      s  = +1 where sum_j delta_j >= 0, else -1;   E_j = [sign(delta_j) = s]
    Merge      theta = theta_base + what the variant adds

    variant     S acts on          added to the base
    paper       all three steps    sum_j eta_j E_j S delta_j
    authors     Calculate alone    sum_j eta_j E_j delta_j / sum_j eta_j E_j
    mergekit    all three steps    sum_j eta_j E_j S delta_j / sum_j eta_j E_j

The variance is the population's; k = floor(select_topk * number of elements whose
variance is not 0), the product in float32 as both programs form it; of equal variances
those of least index count. With select_topk = 1 every element is selected. Sums that
divide are 1 where they are 0 (authors), at least 1e-6 (mergekit).

Degenerate cases. With one model, or identical ones, no variance tells elements apart.
The paper leaves that open: here all are selected, so that the result is that model, as
the authors' is; mergekit selects nothing and returns the base, and so does its variant.
Where k is 0 beside some variance (few elements), nothing is selected: `paper` and
`mergekit` return the base, `authors` merges all with equal weights. Where the selected
differences are all 0, or their mean squares sum to less than 1e-6 (mergekit), weights
are equal.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from train.merge import inner, pieces, sparsify
from train.tensors import Marks, Weight


def sce(
    models: Sequence[Weight], base: Weight, *, select_topk: float, variant: str
) -> Weight:
    """Merges by variance, as the module's equations say.

    Args:
      models: the tensor of each model.
      base: the pivot's.
      select_topk: share of elements to select, in [0, 1]; 0.1 in the paper.
      variant: "paper", "authors" (the code that made the published models) or
        "mergekit" (0.1.5).
    """
    deltas = [model - base for model in models]
    selected = select(deltas, select_topk, without_variance=variant != "mergekit")
    dropped = selected.logical_not_()
    if variant == "authors":
        weights = calculate((delta.masked_fill(dropped, 0.0) for delta in deltas), 0.0)
    else:
        for delta in deltas:
            delta.masked_fill_(dropped, 0.0)
        weights = calculate(deltas, 1e-6 if variant == "mergekit" else 0.0)
    mixed = torch.zeros(base.shape, dtype=base.dtype)
    for total, *some in pieces.of(mixed, *deltas):
        _add_agreed(total, some, weights, variant)
    return mixed.add_(base)


def _add_agreed(
    total: Weight, deltas: Sequence[Weight], weights: Sequence[float], variant: str
) -> None:
    """Adds up a piece of the differences that agree in sign; uses them up."""
    divisor = torch.zeros_like(total)
    agreed = sparsify.agreements(deltas)
    for delta, agrees, eta in zip(deltas, agreed, weights, strict=True):
        total.add_(delta.mul_(agrees), alpha=eta)
        divisor.add_(agrees, alpha=eta)
    if variant == "authors":
        total.div_(divisor.where(divisor != 0, 1.0))
    elif variant == "mergekit":
        total.div_(divisor.clamp_min(1e-6))


def select(
    deltas: Sequence[Weight], select_topk: float, *, without_variance: bool
) -> Marks:
    """Marks the elements whose variance over models is among the greatest.

    Args:
      deltas: differences from the base.
      select_topk: share of the elements with a variance, in [0, 1]; 1 selects all.
      without_variance: whether all are selected where none has a variance.
    """
    if select_topk >= 1:
        return torch.ones_like(deltas[0], dtype=torch.bool)
    variance = _variance(deltas)
    varied = int(variance.count_nonzero())
    if not varied and without_variance and select_topk > 0:
        return torch.ones_like(variance, dtype=torch.bool)
    count = int(np.float32(varied) * np.float32(select_topk))
    return sparsify.least(variance.neg_(), count)


def calculate(deltas: Iterable[Weight], floor: float) -> list[float]:
    """Divides each mean of squares by the sum of all: the weights eta.

    Args:
      deltas: differences, zero where not selected.
      floor: weights are equal where the means sum to less than this, or to 0.
    """
    means = list(map(_mean_square, deltas))  # none is kept while the next is made
    total = sum(means)
    if not total or total < floor:
        return [1 / len(means)] * len(means)
    return [one / total for one in means]


def _mean_square(delta: Weight) -> float:
    return inner.square(delta) / max(1, delta.numel())


def _variance(deltas: Sequence[Weight]) -> Weight:
    """The population variance of each element; exactly 0 where all are equal."""
    variance = torch.zeros(deltas[0].shape, dtype=deltas[0].dtype)
    for squares, first, *others in pieces.of(variance, *deltas):
        mean = torch.zeros_like(first)
        for delta in others:
            mean.add_(delta - first)
        mean.div_(len(deltas))
        squares.copy_(mean.square())  # of the first, which the shift puts at 0
        for delta in others:
            squares.add_((delta - first - mean).square())
        squares.div_(len(deltas))
    return variance
