import numpy as np
import pytest
import torch

from tests.train.merge import cases
from train.merge import inner


@pytest.mark.parametrize("shape", [(), (0,), (5, 3), (70_000,)])
def test_products_and_sizes_are_those_of_numpy(shape: tuple[int, ...]) -> None:
    (first, second), _ = cases.normal(*shape, seed=31, count=2)
    wide = first.double().numpy(), second.double().numpy()
    assert inner.product(first, second) == pytest.approx(np.vdot(*wide), abs=1e-9)
    assert inner.size(first) == pytest.approx(np.abs(wide[0]).sum())


def test_squares_beyond_the_range_of_float32_add_up() -> None:
    large = torch.tensor([3e30, 4e30])
    assert inner.product(large, large) == pytest.approx(25e60)


def test_cosines_of_a_zero_tensor_are_0() -> None:
    tensors = [torch.tensor([3.0, 4.0]), torch.zeros(2), torch.tensor([-6.0, -8.0])]
    found = inner.cosines(inner.gram(tensors))
    np.testing.assert_allclose(found, [[1, 0, -1], [0, 0, 0], [-1, 0, 1]])
