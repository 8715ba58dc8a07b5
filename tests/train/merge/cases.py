"""Tensors and settings that the tests of merge methods share."""

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from train.merge import methods

SHAPES = [(), (1,), (7,), (3, 4), (2, 3, 2)]

ONE_FOR_ALL: dict[str, dict[str, Any]] = {
    "linear": {},
    "task_arithmetic": {"normalize": True, "weight": 1.0},
    "ties": {},
    "dare_linear": {"normalize": True, "weight": 1.0},
    "dare_ties": {"normalize": True, "weight": 1.0},
    "della": {},
    "della_linear": {"normalize": True, "weight": 1.0},
    "breadcrumbs": {"normalize": True, "weight": 1.0},
    "breadcrumbs_ties": {"normalize": True, "weight": 1.0},
    "slerp": {"t": 0.3},
    "nuslerp": {},
    "multislerp": {},
    "karcher": {},
    "model_stock": {},
    "varm": {},
    "sce": {},
}
"""Settings by method with which nothing is dropped and weights sum to 1."""


def grid(shape: tuple[int, ...]) -> st.SearchStrategy[Tensor]:
    """Tensors of multiples of 1/8: their sums are exact, in any order."""
    elements = st.integers(-64, 64).map(lambda number: number / 8)
    return arrays.arrays(np.float32, shape, elements=elements).map(torch.from_numpy)


@st.composite
def models_and_base(
    draw: st.DrawFn, least: int = 1, most: int = 4
) -> tuple[list[Tensor], Tensor]:
    """Some models and a base, of one shape."""
    shape = draw(st.sampled_from(SHAPES))
    count = draw(st.integers(least, most))
    return [draw(grid(shape)) for _ in range(count)], draw(grid(shape))


def normal(*shape: int, seed: int, count: int = 3) -> tuple[list[Tensor], Tensor]:
    """A base and models that differ from it by a tenth of its size."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    models = [
        base + 0.1 * torch.randn(shape, generator=generator) for _ in range(count)
    ]
    return models, base


def merge(
    name: str, models: list[Tensor], base: Tensor | None, seed: int = 0, **given: Any
) -> Tensor:
    """Merges with the base where the method takes one; `lambda_` stands for lambda."""
    method = methods.METHODS[name]
    given = {"lambda" if key == "lambda_" else key: v for key, v in given.items()}
    generator = torch.Generator().manual_seed(seed) if method.seeded else None
    base = None if method.base == "none" or name == "slerp" else base
    return methods.merge_tensors(name, models, base, given, generator)


def counts_of(name: str) -> tuple[int, int]:
    """Least and greatest number of models to test a method with."""
    method = methods.METHODS[name]
    least = 2 if name == "slerp" else method.least
    return least, method.most or 4
