from typing import Any

import numpy as np
import pytest
import torch

from tests.train.merge import cases, dense
from tests.train.merge.dense import Array

SHAPES = [(), (1,), (9,), (4, 6), (2, 3, 5)]
WEIGHT, DENSITY = [0.4, 0.7, -0.2], [0.3, 0.6, 1.0]
EPSILON = [0.2, 0.35, 0.1]


def as_numpy(models: list[torch.Tensor], base: torch.Tensor) -> tuple[Any, Array]:
    wide = base.double().numpy()
    return [model.double().numpy() - wide for model in models], wide


def draws(shape: tuple[int, ...], density: list[float], seed: int) -> list[Array]:
    """One number in [0, 1) an element, models in turn; none where all is kept."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.rand(shape, generator=generator).double().numpy()
        if share < 1
        else np.zeros(shape)
        for share in density
    ]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rescale", ["density", "l1", "none"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("elect", [True, False])
def test_dare_equals_the_dense_oracle_with_the_same_draws(
    shape: tuple[int, ...], rescale: str, normalize: bool, elect: bool
) -> None:
    models, base = cases.normal(*shape, seed=11)
    found = cases.merge(
        "dare_ties" if elect else "dare_linear", models, base, seed=5, weight=WEIGHT,
        density=DENSITY, rescale=rescale, normalize=normalize, lambda_=0.8,
    )  # fmt: skip
    deltas, wide = as_numpy(models, base)
    kept = [
        dense.dropped(delta, density, drawn, rescale)
        for delta, density, drawn in zip(
            deltas, DENSITY, draws(shape, DENSITY, 5), strict=True
        )
    ]
    wanted = dense.added(
        wide, kept, WEIGHT, elect=elect, normalize=normalize, factor=0.8
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rescale", ["density", "l1", "none"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("elect", [True, False])
def test_della_equals_the_dense_oracle_with_the_same_draws(
    shape: tuple[int, ...], rescale: str, normalize: bool, elect: bool
) -> None:
    models, base = cases.normal(*shape, seed=12)
    found = cases.merge(
        "della" if elect else "della_linear", models, base, seed=6, weight=WEIGHT,
        density=DENSITY, epsilon=EPSILON, rescale=rescale, normalize=normalize,
    )  # fmt: skip
    deltas, wide = as_numpy(models, base)
    kept = [
        dense.dropped(
            delta,
            dense.chances_by_rank(delta, density, epsilon) if density < 1 else 1.0,
            drawn,
            rescale,
        )
        for delta, density, epsilon, drawn in zip(
            deltas, DENSITY, [0.2, 0.35, 0.0], draws(shape, DENSITY, 6), strict=True
        )
    ]
    wanted = dense.added(wide, kept, WEIGHT, elect=elect, normalize=normalize)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_the_expectation_over_seeds_is_task_arithmetic(name: str) -> None:
    models, base = cases.normal(5, 8, seed=13, count=2)
    weight, density, seeds = [0.4, 0.7], [0.3, 0.6], 600
    settings: dict[str, Any] = {"weight": weight, "density": density}
    if name == "della_linear":
        settings["epsilon"] = [0.2, 0.3]
    wanted = cases.merge("task_arithmetic", models, base, weight=weight).numpy()
    found = np.stack(
        [
            cases.merge(name, models, base, seed=seed, **settings).numpy()
            for seed in range(seeds)
        ]
    )
    deltas, _ = as_numpy(models, base)
    variance = np.zeros(base.shape)
    for delta, w, middle, half in zip(
        deltas, weight, density, settings.get("epsilon", [0.0, 0.0]), strict=True
    ):
        chances = dense.chances_by_rank(delta, middle, half)
        variance += (w * delta) ** 2 * (1 - chances) / chances
    # The mean of n draws has the standard deviation sqrt(variance / n): none of 40 is
    # off by 5 of them (one in 40,000 tables of this size would be), and the mean of
    # their squares is 1 with the standard deviation sqrt(2 / 40) = 0.22.
    off = (found.mean(axis=0) - wanted) / np.sqrt(variance / seeds)
    assert np.abs(off).max() < 5
    assert abs((off**2).mean() - 1) < 5 * np.sqrt(2 / off.size)
    # The same for the variance itself, whose relative deviation is about sqrt(k / n)
    # with k the kurtosis of a rescaled Bernoulli variable, below 4 here.
    spread = found.var(axis=0, ddof=1) / variance
    assert np.abs(spread - 1).max() < 5 * np.sqrt(4 / seeds)


@pytest.mark.parametrize("rescale", ["none", "l1"])
@pytest.mark.parametrize("normalize", [True, False])
def test_ties_equals_the_dense_oracle(rescale: str, normalize: bool) -> None:
    models, base = cases.normal(6, 5, seed=14)
    found = cases.merge(
        "ties", models, base, weight=WEIGHT, density=DENSITY, rescale=rescale,
        normalize=normalize, lambda_=1.3,
    )  # fmt: skip
    deltas, wide = as_numpy(models, base)
    kept = []
    for delta, density in zip(deltas, DENSITY, strict=True):
        cut = np.sort(np.abs(delta).ravel())[::-1][int(density * 30) - 1]
        one = np.where(np.abs(delta) >= cut, delta, 0)
        scale = np.abs(delta).sum() / np.abs(one).sum() if rescale == "l1" else 1
        kept.append(one * scale)
    wanted = dense.added(
        wide, kept, WEIGHT, elect=True, normalize=normalize, factor=1.3
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_ties_of_equal_weights_is_the_mean_over_those_that_agree() -> None:
    base = torch.zeros(4)
    models = [
        torch.tensor([1.0, 2.0, 0.0, -1.0]),
        torch.tensor([3.0, -1.0, 0.0, -2.0]),
        torch.tensor([-1.0, -4.0, 5.0, 0.0]),
    ]
    merged = cases.merge("ties", models, base)
    assert merged.tolist() == [2.0, -2.5, 5.0, -1.5]


def test_where_signs_balance_the_positive_one_wins() -> None:
    models = [torch.tensor([2.0]), torch.tensor([-2.0])]
    assert cases.merge("ties", models, torch.zeros(1)).item() == 2.0


@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "breadcrumbs"])
def test_weights_that_sum_to_0_do_not_divide(name: str) -> None:
    base, model = torch.ones(1), torch.tensor([3.0])
    settings: dict[str, Any] = {"weight": [1.0, -1.0], "normalize": True}
    merged = cases.merge(name, [model, model], base, **settings)
    # Both terms are of one model; with an election only the positive one counts.
    assert merged.item() == (3.0 if name == "ties" else 1.0)


@pytest.mark.parametrize("name", ["ties", "breadcrumbs_ties", "dare_ties", "della"])
def test_models_that_are_the_base_change_nothing(name: str) -> None:
    _, base = cases.normal(3, 4, seed=15)
    given: dict[str, Any] = {"density": 0.5}
    if name != "ties" and name != "della":
        given["weight"] = 1.0
    assert cases.merge(name, [base, base], base, **given).equal(base)
