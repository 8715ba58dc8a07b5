"""VaRM: weights by how far each model went from the pivot, its variation ratio.

With delta_j = phi_j - theta_base (Wan et al. 2024, "FuseChat", arXiv 2402.16107)::

    W_j,m = mean(delta_j,m^2) / sum_j mean(delta_j,m^2)
    theta_m = sum_j W_j,m phi_j,m

where m is one of the parts of the model for which weights are formed (granularity)::

    model       all tensors together
    layer       the tensors of one layer together
    matrix      each tensor by itself; the best in the report, and the default
    parameter   each element by itself

Where all delta_j,m are zero the weights are equal. The published script compares two of
the targets with each other and comes to equal weights always; we do as the report says.

Weights of a model or layer need sums over several tensors, and so two passes. The first
adds up `squares` of all tensors of a part; `ratios` turns the sums into weights; the
second merges with these as the setting `weights`.
"""

from collections.abc import Sequence

import torch

from train.merge import averages, inner, pieces
from train.tensors import Weight


def varm(
    models: Sequence[Weight],
    base: Weight,
    *,
    granularity: str,
    weights: Sequence[float] | None = None,
) -> Weight:
    """Averages the models, weighted by the mean squares of their differences.

    Args:
      models: the tensor of each model.
      base: the pivot's.
      granularity: "model", "layer", "matrix" or "parameter".
      weights: W_j where they are known; needed for "model" and "layer".

    Raises:
      ValueError: if weights are missing, or given for "parameter".
    """
    if granularity == "parameter":
        if weights is not None:
            raise ValueError("weights by parameter must not be given: each has its own")
        return _by_parameter(models, base)
    if weights is None and granularity != "matrix":
        raise ValueError(
            f"weights of a {granularity} must be given, as they need sums over several "
            "tensors: add up the squares of all its tensors, then take their ratios"
        )
    if weights is None:
        weights = ratios(squares(models, base)[0])
    return averages.combine(models, weights)


def squares(models: Sequence[Weight], base: Weight) -> tuple[list[float], int]:
    """Sums the squared differences of each model from the base.

    Returns:
      sums: sum of delta_j^2 for each model.
      count: elements of the tensor; the mean is sum / count. Sums and counts of several
        tensors add up.
    """
    return [inner.square(model - base) for model in models], base.numel()


def ratios(sums: Sequence[float]) -> list[float]:
    """Turns sums of squares into weights W_j.

    The count of elements is the same for all models and cancels.

    Args:
      sums: sum of delta_j^2 for each model, over all tensors of one part.

    Returns:
      Weights that sum to 1; equal ones where all sums are 0.
    """
    total = sum(sums)
    if not total:
        return [1 / len(sums)] * len(sums)
    return [one / total for one in sums]


def _by_parameter(models: Sequence[Weight], base: Weight) -> Weight:
    """Averages with weights of each element's own."""
    mixed = torch.zeros(base.shape, dtype=base.dtype)
    for made, origin, *some in pieces.of(mixed, base, *models):
        deltas = torch.stack([one - origin for one in some])
        # Scaled by the greatest, squares of small differences do not vanish.
        greatest = deltas.abs().amax(dim=0)
        shares = deltas.div_(greatest.where(greatest > 0, 1.0)).square_()
        total = shares.sum(dim=0)
        shares.div_(total.where(total > 0, 1.0))
        shares = shares.where(total > 0, 1 / len(models))
        for one, share in zip(some, shares, strict=True):
            made.addcmul_(one, share)
    return mixed
