"""Which elements of a difference are kept, and what makes up for the others.

Every function takes the difference delta = phi - theta_base of one model and returns it
with zeros where an element is dropped; it writes into the tensor that it is given. What
is kept is rescaled in one of these ways::

    none      nothing
    l1        by sum |delta| / sum |kept|, as mergekit does
    density   by 1 / P(kept), so that the expectation is delta   (random ones only)

Of equal magnitudes at a cut those of least index come first, in a stable sort of rising
or of falling order; mergekit's choice among them hangs on the machine's sort.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from train.merge import inner, pieces
from train.tensors import Marks, Weight

_ROWS_ELEMENTS = 1 << 20
"""Elements whose ranks are held at once."""


def keep_largest(delta: Weight, density: float, rescale: str) -> Weight:
    """Keeps the share `density` of greatest magnitude.

    As many as int(density * numel), but at least one where density > 0; of equal
    magnitudes those of least index.

    Args:
      delta: difference from the base.
      density: share to keep, in [0, 1].
      rescale: "none" or "l1".
    """
    count = int(density * delta.numel())
    if density > 0:
        count = max(1, count)
    return _rescaled(delta, least(delta.abs().neg_(), count), rescale)


def keep_middle(delta: Weight, density: float, gamma: float, rescale: str) -> Weight:
    """Keeps a share below the greatest magnitudes: drops outliers and crumbs.

    Of n elements by rising magnitude (ties by rising index)::

        | crumbs         | kept             | outliers     |
          the rest         int(density * n)   int(gamma * n)

    Where more than n would be dropped and kept, fewer outliers are dropped. A density
    of 1 keeps all, whatever gamma is.

    Args:
      delta: difference from the base.
      density: share to keep, in [0, 1].
      gamma: share of outliers, in [0, 1].
      rescale: "none" or "l1".
    """
    if density >= 1:
        return delta
    count = delta.numel()
    kept = int(density * count)
    crumbs = max(0, count - kept - int(gamma * count))
    magnitudes = delta.abs()
    mask = least(magnitudes, crumbs + kept)
    mask &= least(magnitudes, crumbs).logical_not_()
    del magnitudes
    return _rescaled(delta, mask, rescale)


def keep_drawn(
    delta: Weight, density: float, generator: torch.Generator, rescale: str
) -> Weight:
    """Keeps each element with the probability `density`, independently.

    Args:
      delta: difference from the base.
      density: probability, in [0, 1]; at 1 nothing is drawn.
      generator: of the draws, one number in [0, 1) an element.
      rescale: "none", "l1" or "density".
    """
    if density >= 1:
        return delta
    mask = torch.rand(delta.shape, generator=generator) < density
    if rescale == "density":
        kept = _kept(delta, mask)
        return kept.div_(density) if density else kept
    return _rescaled(delta, mask, rescale)


def keep_ranked(
    delta: Weight,
    density: float,
    epsilon: float,
    generator: torch.Generator,
    rescale: str,
) -> Weight:
    """Keeps each element with a probability that rises with its rank in its row.

        p = density - epsilon + 2 epsilon (rank - 1) / (n - 1)

    where rank is 1 for the least magnitude of the n in a row and n for the greatest
    (ties by rising index). A row is what belongs to one index of the first axis; a
    tensor of one axis is one row, and one element alone is kept with p = density.

    Args:
      delta: difference from the base.
      density: mean probability, in [0, 1]; at 0 and 1 nothing is drawn.
      epsilon: half the spread; density - epsilon and density + epsilon in (0, 1).
      generator: of the draws, one number in [0, 1) an element.
      rescale: "none", "l1" or "density", which divides by the element's own p.
    """
    if density >= 1:
        return delta
    if density <= 0 or not delta.numel():
        return torch.zeros_like(delta)
    rows = delta.flatten(1) if delta.dim() > 1 else delta.reshape(1, -1)
    whole = inner.size(delta) if rescale == "l1" else 0.0
    step = max(1, _ROWS_ELEMENTS // rows.shape[1])
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        chances = rank_chances(some, density, epsilon)
        _kept(some, torch.rand(some.shape, generator=generator) < chances)
        if rescale == "density":
            some.div_(chances)
    drawn = rows.reshape(delta.shape)
    return _with_l1(drawn, whole) if rescale == "l1" else drawn


def rank_chances(rows: Tensor, density: float, epsilon: float) -> Tensor:
    """Returns the p of `keep_ranked` for each element of rows (n_rows, n)."""
    count = rows.shape[1]
    if count == 1:
        return torch.full_like(rows, density)
    order = rows.abs().argsort(dim=1, stable=True)
    places = torch.arange(count, dtype=rows.dtype).expand_as(order)
    ranks = torch.empty_like(rows).scatter_(1, order, places)
    return density - epsilon + ranks * (2 * epsilon / (count - 1))


def check_epsilon(density: list[float], epsilon: list[float]) -> None:
    """Checks that probabilities stay inside (0, 1).

    Raises:
      ValueError: if density - epsilon or density + epsilon does not, where the density
        itself does.
    """
    for place, (middle, half) in enumerate(zip(density, epsilon, strict=True)):
        if 0 < middle < 1 and not 0 < middle - half <= middle + half < 1:
            raise ValueError(
                f"density - epsilon and density + epsilon must be in (0, 1), got "
                f"{middle} and {half} for model {place}; choose epsilon below "
                f"{min(middle, 1 - middle):.3g}"
            )


def agreements(deltas: Sequence[Weight]) -> list[Marks]:
    """Marks for each difference the elements that have the sign of the sum of all.

    Where the sum is 0 its sign is positive; elements that are 0 are never marked.
    """
    total = torch.zeros_like(deltas[0])
    for delta in deltas:
        total.add_(delta)
    positive = total >= 0
    return [torch.where(positive, delta > 0, delta < 0) for delta in deltas]


def least(values: Weight, count: int) -> Marks:
    """Marks the `count` least values; of equal ones those of least index."""
    if count <= 0 or count >= values.numel():
        return torch.full(values.shape, count > 0)
    flat = values.reshape(-1)
    cut = float(np.partition(flat.numpy(), count - 1)[count - 1])
    marked = flat < cut
    left = count - int(marked.count_nonzero())
    for marks, some in pieces.of(marked, flat):
        ties = (some == cut).nonzero().squeeze(1)[:left]
        marks[ties] = True
        left -= len(ties)
        if not left:
            break
    return marked.reshape(values.shape)


def _rescaled(delta: Weight, mask: Marks, rescale: str) -> Weight:
    """Drops what is not in the mask and rescales by norm, or not at all."""
    whole = inner.size(delta) if rescale == "l1" else 0.0
    kept = _kept(delta, mask)
    return _with_l1(kept, whole) if rescale == "l1" else kept


def _kept(delta: Weight, mask: Marks) -> Weight:
    """Writes zeros where the mask has no mark; uses the mask up."""
    return delta.masked_fill_(mask.logical_not_(), 0.0)


def _with_l1(kept: Weight, whole: float) -> Weight:
    """Gives what is kept the L1 norm of the whole; nothing stays nothing."""
    left = inner.size(kept)
    return kept.mul_(whole / left) if left else kept
