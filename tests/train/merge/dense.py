"""Merges by plain numpy, element after element, with nothing of the project's own.

What is random comes in: a number in [0, 1) for each element of each model.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def added(
    base: Array, deltas: Sequence[Array], weight: Sequence[float], **how: Any
) -> Array:
    """Adds weighted differences; `elect`, `normalize` and `factor` as in the papers."""
    merged = base.copy()
    for place in np.ndindex(base.shape):
        terms = [(w * float(d[place]), w) for d, w in zip(deltas, weight, strict=True)]
        if how.get("elect"):
            sign = 1 if sum(term for term, _ in terms) >= 0 else -1
            terms = [(term, w) for term, w in terms if term * sign > 0]
        total = sum(w for _, w in terms)
        if not how.get("normalize") or abs(total) < 1e-8:
            total = 1.0
        merged[place] += how.get("factor", 1.0) * sum(t for t, _ in terms) / total
    return merged


def dropped(delta: Array, chances: Array | float, draws: Array, rescale: str) -> Array:
    """Keeps an element where its draw is below its chance."""
    chances = np.broadcast_to(np.asarray(chances, dtype=np.float64), delta.shape)
    kept = np.where(draws < chances, delta, 0.0)
    if rescale == "density":
        return np.divide(kept, chances, out=np.zeros_like(kept), where=chances > 0)
    if rescale == "l1" and np.abs(kept).sum():
        return kept * np.abs(delta).sum() / np.abs(kept).sum()
    return kept


def chances_by_rank(delta: Array, density: float, epsilon: float) -> Array:
    """Chances rise evenly with the rank of a magnitude among those of its row."""
    rows = delta.reshape(delta.shape[0], -1) if delta.ndim > 1 else delta.reshape(1, -1)
    chances = np.empty_like(rows)
    for r, row in enumerate(rows):
        ranked = sorted(range(len(row)), key=lambda i: (abs(row[i]), i))
        for rank, i in enumerate(ranked):
            share = rank / (len(row) - 1) if len(row) > 1 else 0.5
            chances[r, i] = density - epsilon + 2 * epsilon * share
    return chances.reshape(delta.shape)


def varm(
    tensors: Sequence[Sequence[Array]], bases: Sequence[Array], parts: Sequence[Any]
) -> list[Array]:
    """Merges models of several tensors; tensors of one part share their weights.

    Args:
      tensors: for each model its tensors.
      bases: those of the pivot.
      parts: for each tensor the part it belongs to.
    """
    merged = []
    for place, part in enumerate(parts):
        same = [other for other, one in enumerate(parts) if one == part]
        means = []
        for model in tensors:
            squares = [float(x) ** 2 for o in same for x in (model[o] - bases[o]).flat]
            means.append(math.fsum(squares) / len(squares))
        total = math.fsum(means)
        shares = [mean / total if total else 1 / len(means) for mean in means]
        merged.append(
            sum(
                (w * model[place] for w, model in zip(shares, tensors, strict=True)),
                np.zeros_like(bases[place]),
            )
        )
    return merged


def sce(base: Array, models: Sequence[Array], count: int, variant: str) -> Array:
    """SCE with the `count` elements of greatest variance, by the paper or a program."""
    deltas = [(model - base).reshape(-1) for model in models]
    size = base.size
    variance = [float(np.var([d[i] for d in deltas])) for i in range(size)]
    order = sorted(range(size), key=lambda i: (-variance[i], i))
    chosen = set(order[:count])
    masked = [[d[i] if i in chosen else 0.0 for i in range(size)] for d in deltas]
    energy = [math.fsum(x * x for x in one) for one in masked]
    total = math.fsum(energy)
    eta = [one / total if total else 1 / len(energy) for one in energy]
    merged = base.reshape(-1).copy()
    for i in range(size):
        values = [d[i] for d in (deltas if variant == "authors" else masked)]
        sign = 1 if sum(values) >= 0 else -1
        agree = [(w, v) for w, v in zip(eta, values, strict=True) if v * sign > 0]
        mass = sum(w for w, _ in agree)
        whole = sum(w * v for w, v in agree)
        if variant != "paper" and mass:
            whole /= mass
        merged[i] += whole
    return merged.reshape(base.shape)
