"""Merge methods by name: their settings, and the merge of one tensor.

A caller that has the tensors of n models, and of a base where the method knows one,
checks the settings once and merges tensor by tensor::

    settings = methods.settle("ties", {"density": 0.2}, models=3)
    merged = methods.merge_tensors("ties", tensors, base, settings)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from schemas import settings as words
from schemas.errors import NotFiniteError
from train.merge import averages, numbers, sparsify
from train.merge import settings as settled
from train.merge.settings import Parameter
from train.merge.table import METHODS, Method

__all__ = ["METHODS", "Method", "Parameter", "merge_tensors", "settle"]

KEYWORDS = {"lambda": "lambda_"}
"""Settings whose name Python keeps for itself, and the argument that takes them."""


def settle(name: str, settings: Mapping[str, Any], models: int) -> dict[str, Any]:
    """Checks the settings of a method and adds those left out.

    Args:
      name: of the method.
      settings: by name; lists, or single numbers, for what is set per model.
      models: number of models, the base apart.

    Returns:
      All settings of the method; those per model are lists.

    Raises:
      ValueError: if there is no such method, it cannot merge that many models, or a
        setting is unknown, missing, of the wrong type, length or range, or does not
        fit the others.
    """
    method = _method(name)
    if models < method.least or (method.most is not None and models > method.most):
        most = "" if method.most is None else f" and at most {method.most}"
        raise ValueError(
            f"{name} must have at least {method.least}{most} models, the base apart, "
            f"got {models}"
        )
    found = settled.complete(name, method.parameters, settings, models)
    if "epsilon" in found:
        sparsify.check_epsilon(found["density"], found["epsilon"])
    if name == "multislerp" and found["normalize_weights"]:
        averages.normalized(found["weight"])
    if name == "linear" and found["normalize"]:
        averages.normalized(found["weight"])
    return found


def merge_tensors(
    name: str,
    models: Sequence[Tensor],
    base: Tensor | None,
    settings: Mapping[str, Any],
    generator: torch.Generator | None = None,
    *,
    finite: bool = False,
) -> Tensor:
    """Merges one tensor of several models.

    The arithmetic is in float32, in float64 where a tensor is float64; the caller casts
    the result to what it stores. No argument is changed.

    Args:
      name: of the method.
      models: the tensor of each model, all of one shape; any float dtype.
      base: the base's tensor, of the same shape; None where the method takes none.
      settings: as given or as `settle` returned them.
      generator: of the random draws, seeded for this tensor; only for seeded methods.
      finite: whether the caller has seen to it that all tensors are.

    Returns:
      The merged tensor, of the same shape, in float32 or float64.

    Raises:
      ValueError: if the settings do not fit, a tensor is not of floats, has another
        shape or holds NaN or inf, a base or a generator is missing or too many, or the
        result is not finite.
    """
    method = _method(name)
    arguments = settle(name, settings, len(models))
    inputs = _checked(models, base, finite=finite)
    if base is None and method.base == "needed":
        raise ValueError(f"{name} merges differences from a base: give one")
    if base is not None and method.base == "none":
        raise ValueError(
            f"{name} takes no base: name it among the models if it shall count"
        )
    if method.seeded and generator is None:
        raise ValueError(
            f"{name} draws at random: give a generator that is seeded for this tensor"
        )
    places: list[Any] = [inputs[: len(models)]]
    if method.base != "none":
        places.append(inputs[-1] if base is not None else None)
    if method.seeded:
        places.append(generator)
    merged = method.merge(
        *places, **{KEYWORDS.get(key, key): value for key, value in arguments.items()}
    )
    if not numbers.is_finite(merged):
        raise NotFiniteError(
            f"{name} leaves the range of {merged.dtype}: the greatest input is "
            f"{max(float(one.abs().max()) for one in inputs)}; scale the settings down"
        )
    return merged


def _method(name: str) -> Method:
    """The method of that name."""
    if name not in METHODS:
        told = ", ".join(METHODS)
        near = words.suggestion(name, METHODS)
        raise ValueError(f"method must be one of {told}, got {name!r}{near}")
    return METHODS[name]


def _checked(
    models: Sequence[Tensor], base: Tensor | None, *, finite: bool
) -> list[Tensor]:
    """The tensors in the dtype of the arithmetic, the base last; checks each."""
    inputs = {f"model {place}": tensor for place, tensor in enumerate(models)}
    if base is not None:
        inputs["the base"] = base
    shape = models[0].shape
    for who, tensor in inputs.items():
        if tensor.shape != shape:
            raise ValueError(
                f"all tensors must be of the shape of model 0, {tuple(shape)}, got "
                f"{tuple(tensor.shape)} in {who}"
            )
        if not tensor.is_floating_point():
            raise ValueError(
                f"only floats can be merged, got {tensor.dtype} in {who}; take such a "
                "tensor over where it is equal in all models"
            )
    wide = any(tensor.dtype == torch.float64 for tensor in inputs.values())
    dtype = torch.float64 if wide else torch.float32
    found = {who: tensor.detach().to(dtype) for who, tensor in inputs.items()}
    for who, tensor in found.items():
        if not finite and not numbers.is_finite(tensor):
            wrong = int(tensor.numel() - tensor.isfinite().sum())
            raise ValueError(
                f"tensors must be finite, got NaN or inf at {wrong} of "
                f"{tensor.numel()} places in {who}"
            )
    return list(found.values())
