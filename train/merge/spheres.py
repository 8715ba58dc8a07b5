"""Means on spheres: tensors as vectors, of which direction and length are merged apart.

Each result lies in the span of its inputs, theta = sum_i c_i phi_i, and the c_i follow
from the inner products of the inputs alone, so they are worked out in float64 on
matrices of n by n, and no tensor but the result is made.
"""

import math
from collections.abc import Sequence

import torch

from train.merge import averages, inner
from train.tensors import Gram, Weight

_ALMOST_LINEAR = 0.9995
"""Cosines beyond this in magnitude are interpolated along the chord by `slerp`."""

_NEAR = torch.finfo(torch.float32).eps
"""What float32 cannot tell from 0 beside 1."""

_OPPOSITE = 2e-5
"""Angles from 180 degrees up to which `karcher` takes two directions for opposite.

Inputs in float32 are known to 6e-8 of their size, and so is what is made of them: where
their directions cancel to a sum of length s, its own direction and length are known to
6e-8 / s, which is 0.6 % at half of this, the mean of two that are so far from opposite.
"""


def slerp(models: Sequence[Weight], base: Weight | None, *, t: float) -> Weight:
    """Goes the share t of the great circle from one tensor to another.

        theta = (sin((1 - t) a) x + sin(t a) y) / sin(a),    cos(a) = <x, y> / |x| |y|

    x is the base, or the first of two models where there is no base. Where |cos(a)| >
    0.9995, theta = (1 - t) x + t y. A tensor whose norm is at most 1e-8 counts as
    orthogonal to every other. As in mergekit.

    Args:
      models: one tensor beside a base, else two.
      base: what t = 0 gives.
      t: position, in [0, 1].

    Raises:
      ValueError: if there are not two tensors in all.

    References:
      Shoemake 1985, "Animating rotation with quaternion curves", SIGGRAPH.
    """
    ends = list(models) if base is None else [base, *models]
    if len(ends) != 2:
        raise ValueError(
            f"slerp must have two models, or a base and one model, got "
            f"{len(models)} and {'no' if base is None else 'a'} base"
        )
    products = inner.gram(ends)
    norms = [math.sqrt(one) for one in products.diagonal().tolist()]
    safe = [norm if norm > 1e-8 else 1.0 for norm in norms]
    cosine = float(products[0, 1]) / safe[0] / safe[1]
    if abs(cosine) > _ALMOST_LINEAR:
        return averages.combine(ends, (1 - t, t))
    return averages.combine(ends, _great_circle(cosine, t))


def nuslerp(
    models: Sequence[Weight],
    base: Weight | None,
    *,
    weight: Sequence[float],
    nuslerp_flatten: bool,
    nuslerp_row_wise: bool,
) -> Weight:
    """Goes along the great circle from one tensor to another, by weights.

    The equation is that of `slerp` with t = w_1 / (w_0 + w_1), t = 1/2 where the sum of
    weights is below 1e-6. With a base x and y are differences from it, and what results
    is added to it. Vectors are whole tensors, or one for each place on the other axes:
    along the last axis, or with `nuslerp_row_wise` along the first.

    As in mergekit, but that the chord is taken where 1 - cos(a)^2 is below what float32
    resolves (1.2e-7): there mergekit's choice hangs on rounding. A zero vector counts
    as orthogonal to every other.

    Args:
      models: two tensors.
      base: origin of the sphere.
      weight: of each.
      nuslerp_flatten: whether whole tensors are the vectors.
      nuslerp_row_wise: whether vectors run along the first axis, not the last.

    References:
      mergekit's documentation, method nuslerp.
    """
    total = math.fsum(weight)
    t = 0.5 if abs(total) < 1e-6 else weight[1] / total
    first, second = _from(models, base)
    if nuslerp_flatten:
        cosine = float(inner.cosines(inner.gram((first, second)))[0, 1])
        factors = (1 - t, t) if 1 - cosine**2 <= _NEAR else _great_circle(cosine, t)
        mixed = averages.combine((first, second), factors)
    else:
        mixed = _vectors_slerp(first, second, t, 0 if nuslerp_row_wise else -1)
    return mixed if base is None else mixed.add_(base)


def multislerp(
    models: Sequence[Weight],
    base: Weight | None,
    *,
    weight: Sequence[float],
    normalize_weights: bool,
    eps: float,
) -> Weight:
    """Takes the mean direction and the mean length of several tensors.

        u_i = phi_i / (|phi_i| + eps),    m = sum_i w_i u_i
        theta = sum_i w_i |phi_i| * m / |m|

    With a base phi_i are differences from it, and what results is added to it. The
    published method goes on from m / |m| along sum_i w_i (u_i - <u_i, m> m / |m|^2) in
    the tangent space; that sum is zero identically, so the step is left out here.

    Where the directions cancel (|m| at most eps, or 1.2e-7 of sum_i |w_i|), two tensors
    are added by weight, as in mergekit; more are an error. Where all are zero so is the
    result; in mergekit that is an error for more than two.

    Args:
      models: one tensor or more; one alone is the result.
      base: origin of the sphere.
      weight: of each.
      normalize_weights: whether they are divided by their sum.
      eps: added to norms, at least 0.

    Raises:
      ValueError: if directions of more than two tensors cancel.

    References:
      Goddard 2025, "Multi-SLERP", as in mergekit's method multislerp.
    """
    if len(models) == 1:
        return models[0].clone()
    weights = averages.normalized(weight) if normalize_weights else list(weight)
    vectors = _from(models, base)
    products = inner.gram(vectors)
    norms = products.diagonal().sqrt()
    shares = torch.tensor(weights, dtype=torch.float64)
    factors = shares / (norms + eps).where(norms > 0, 1.0)
    mean = math.sqrt(max(0.0, float(factors @ products @ factors)))
    if mean <= max(eps, _NEAR * float(shares.abs().sum())):
        if len(models) > 2 and norms.any():
            raise ValueError(
                f"directions of the models must not cancel, got a mean of length "
                f"{mean:.3g} with the weights {weights}; choose others"
            )
        factors = shares
    else:
        factors = factors * float(shares @ norms) / mean
    mixed = averages.combine(vectors, factors.tolist())
    return mixed if base is None else mixed.add_(base)


def karcher(models: Sequence[Weight], *, max_iter: int, tol: float) -> Weight:
    """Takes the Karcher mean of directions, and the mean length.

    The mean m of the n unit vectors u_i = phi_i / |phi_i| has the least sum of squared
    angles to them. From their normalized sum it is found step by step::

        v = 1/n sum_i a_i / sin(a_i) (u_i - cos(a_i) m),    cos(a_i) = <u_i, m>
        m <- cos|v| m + sin|v| v / |v|                      until |v| <= tol

    and theta = m * 1/n sum_i |phi_i|. Zero tensors have no direction and count in the
    mean length alone; where all are zero so is the result. Where the u_i cancel
    (to `tol`, or what float32 resolves, 1e-5) the steps start at the first, as in
    mergekit; there the mean is not unique. mergekit also takes norms up to `tol` for
    zero, which we do not.

    Args:
      models: one tensor or more.
      max_iter: greatest number of steps.
      tol: length of a step that ends them, in radians.

    References:
      Karcher 1977, "Riemannian center of mass and mollifier smoothing"; mergekit's
      method karcher.
    """
    norms = [math.sqrt(inner.square(model)) for model in models]
    length = math.fsum(norms) / len(models)
    some = [place for place, norm in enumerate(norms) if norm]
    if not some:
        return torch.zeros_like(models[0])
    pointing = [models[place] for place in some]
    mean = _karcher_mean(inner.cosines(inner.gram(pointing)), max_iter, tol)
    factors = [
        length * share / norms[place] for share, place in zip(mean, some, strict=True)
    ]
    return averages.combine(pointing, factors)


def _karcher_mean(cosines: Gram, max_iter: int, tol: float) -> list[float]:
    """The Karcher mean of unit vectors, as factors of them, from their cosines."""
    count = len(cosines)
    mean = torch.full((count,), 1 / count, dtype=torch.float64)
    length = _length(mean, cosines)
    if length <= max(tol, _OPPOSITE / 2):
        mean, length = torch.eye(count, dtype=torch.float64)[0], 1.0
    mean = mean / length
    for _ in range(max_iter):
        near = (cosines @ mean).clamp(-1, 1)
        angles = near.arccos()
        # An antipode has no direction to go in, and what is near needs no step.
        counted = (angles >= tol) & (angles.sin() > _NEAR)
        counted &= math.pi - angles > _OPPOSITE
        pulls = (angles / angles.sin()).where(counted, 0.0) / count
        step = pulls - float(pulls @ near) * mean
        far = _length(step, cosines)
        if far <= tol:
            break
        mean = math.cos(far) * mean + math.sin(far) / far * step
        mean = mean / _length(mean, cosines)
    return mean.tolist()


def _length(factors: torch.Tensor, products: Gram) -> float:
    """The norm of sum_i c_i x_i, from the inner products of the x_i."""
    return math.sqrt(max(0.0, float(factors @ products @ factors)))


def _from(models: Sequence[Weight], base: Weight | None) -> list[Weight]:
    """Differences from the base, or the tensors where there is none."""
    return list(models) if base is None else [model - base for model in models]


def _great_circle(cosine: float, t: float) -> tuple[float, float]:
    """Factors of both ends at the share t of the arc between them."""
    angle = math.acos(cosine)
    return (
        math.sin((1 - t) * angle) / math.sin(angle),
        math.sin(t * angle) / math.sin(angle),
    )


def _vectors_slerp(first: Weight, second: Weight, t: float, axis: int) -> Weight:
    """Goes along the great circle between all vectors along one axis."""
    norms = [
        torch.linalg.vector_norm(one, dim=axis, keepdim=True).clamp_min(1e-7)
        for one in (first, second)
    ]
    product = (first / norms[0]).mul_(second / norms[1])
    cosine = product.sum(dim=axis, keepdim=True)
    del product  # of the tensors' size
    cosine = cosine.clamp(-1, 1)
    linear = 1 - cosine.square() <= _NEAR
    angle = cosine.where(~linear, 0.0).arccos()
    from_first = ((1 - t) * angle).sin() / angle.sin()
    from_second = (t * angle).sin() / angle.sin()
    mixed = from_first.where(~linear, 1 - t) * first
    return mixed.add_(from_second.where(~linear, t) * second)
