import numpy as np
import pytest
import torch

from tests.train.merge import cases

E = torch.eye(3)


def test_linear_is_the_weighted_mean_or_the_weighted_sum() -> None:
    models = [torch.tensor([1.0, 2.0]), torch.tensor([5.0, -2.0])]
    weight = [1.0, 3.0]
    assert cases.merge("linear", models, None, weight=weight).tolist() == [4.0, -1.0]
    merged = cases.merge("linear", models, None, weight=weight, normalize=False)
    assert merged.tolist() == [16.0, -4.0]


def stock(*models: torch.Tensor, base: torch.Tensor, each: bool = False) -> np.ndarray:
    return cases.merge("model_stock", list(models), base, filter_wise=each).numpy()


def test_model_stock_of_orthogonal_differences_is_the_base() -> None:
    np.testing.assert_allclose(stock(E[0], E[1], base=torch.zeros(3)), 0)


def test_model_stock_of_two_at_60_degrees_goes_two_thirds_of_the_way() -> None:
    # t = 2 c / (1 + c) with c = 1/2
    second = torch.tensor([0.5, 3**0.5 / 2, 0.0])
    wanted = (E[0] + second) / 2 * 2 / 3
    np.testing.assert_allclose(stock(E[0], second, base=torch.zeros(3)), wanted)


def test_model_stock_of_more_than_two_takes_the_mean_of_their_cosines() -> None:
    models, base = cases.normal(4, 5, seed=41, count=4)
    models = [model + 0.1 for model in models]
    deltas = [(model.double() - base.double()).numpy().ravel() for model in models]
    cosines = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        for i, a in enumerate(deltas)
        for b in deltas[:i]
    ]
    t = 4 * np.mean(cosines) / (1 + 3 * np.mean(cosines))
    wanted = base.double().numpy() + t * np.mean(deltas, axis=0).reshape(4, 5)
    np.testing.assert_allclose(stock(*models, base=base), wanted, atol=1e-6)


def test_model_stock_of_opposites_is_the_base() -> None:
    models = [E[2] + E[0], E[2] - 3 * E[0]]
    np.testing.assert_allclose(stock(*models, base=E[2]), E[2])


@pytest.mark.parametrize("each", [True, False])
def test_model_stock_of_a_model_that_is_the_base_is_the_base(each: bool) -> None:
    np.testing.assert_allclose(stock(E[0], E[1], base=E[1], each=each), E[1])


@pytest.mark.parametrize("size", [1e-6, 1.0])
def test_model_stock_does_not_mind_how_small_differences_are(size: float) -> None:
    models = [size * E[0], size * (E[0] + E[1])]
    c = 0.5**0.5
    wanted = (models[0] + models[1]) / 2 * 2 * c / (1 + c)
    np.testing.assert_allclose(stock(*models, base=torch.zeros(3)), wanted, rtol=1e-5)


def test_model_stock_by_filter_is_model_stock_of_each_vector() -> None:
    models, base = cases.normal(2, 3, 4, seed=42, count=3)
    found = stock(*models, base=base, each=True)
    for place in np.ndindex(2, 3):
        one = stock(*(model[place] for model in models), base=base[place])
        np.testing.assert_allclose(found[place], one, rtol=1e-5, atol=1e-6)
