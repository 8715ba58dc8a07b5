import numpy as np
import pytest
import torch

from tests.train.merge import cases, dense
from train.merge import methods, varm


def two_layers(seed: int) -> tuple[list[list[torch.Tensor]], list[torch.Tensor]]:
    """Three models of four tensors each, and their pivot."""
    made = [
        cases.normal(*shape, seed=seed + place)
        for place, shape in enumerate([(4, 5), (4,), (3, 4), ()])
    ]
    scaled = [
        [base + (1 + j) * (model - base) for j, model in enumerate(models)]
        for models, base in made
    ]
    return [list(one) for one in zip(*scaled, strict=True)], [base for _, base in made]


@pytest.mark.parametrize(
    ("granularity", "parts"),
    [
        ("matrix", [0, 1, 2, 3]),
        ("layer", [0, 0, 1, 1]),
        ("model", [0, 0, 0, 0]),
    ],
)
def test_varm_of_every_granularity_equals_the_dense_oracle(
    granularity: str, parts: list[int]
) -> None:
    models, bases = two_layers(51)
    found = []
    for place, part in enumerate(parts):
        same = [other for other, one in enumerate(parts) if one == part]
        sums = np.zeros(3)
        for other in same:
            more, count = varm.squares([model[other] for model in models], bases[other])
            assert count == bases[other].numel()
            sums += more
        settings: dict[str, object] = {"granularity": granularity}
        if granularity != "matrix":
            settings["weights"] = varm.ratios(sums.tolist())
        tensors = [model[place] for model in models]
        found.append(methods.merge_tensors("varm", tensors, bases[place], settings))
    wanted = dense.varm(
        [[one.double().numpy() for one in model] for model in models],
        [base.double().numpy() for base in bases],
        parts,
    )
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1.0, 1e-25])
def test_varm_by_parameter_is_varm_of_each_element(size: float) -> None:
    models, base = cases.normal(3, 4, seed=52)
    models, base = [size * (model - base) for model in models], 0 * base
    found = cases.merge("varm", models, base, granularity="parameter")
    for place in np.ndindex(3, 4):
        one = cases.merge("varm", [model[place] for model in models], base[place])
        np.testing.assert_allclose(found[place] / size, one / size, rtol=1e-5)


def test_a_model_that_went_twice_as_far_weighs_four_times_as_much() -> None:
    base = torch.zeros(2)
    models = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])]
    np.testing.assert_allclose(cases.merge("varm", models, base), [0.2, 1.6])


@pytest.mark.parametrize("granularity", ["matrix", "parameter"])
def test_where_nothing_changed_weights_are_equal(granularity: str) -> None:
    _, base = cases.normal(3, 4, seed=53)
    merged = cases.merge("varm", [base, base], base, granularity=granularity)
    assert merged.equal(base)
    assert varm.ratios([0.0, 0.0, 0.0, 0.0]) == [0.25] * 4


def test_where_a_parameter_did_not_change_in_any_model_it_stays() -> None:
    base = torch.tensor([1.0, 2.0])
    models = [torch.tensor([1.0, 3.0]), torch.tensor([1.0, 5.0])]
    merged = cases.merge("varm", models, base, granularity="parameter")
    np.testing.assert_allclose(merged, [1.0, 0.1 * 3 + 0.9 * 5])


@pytest.mark.parametrize("granularity", ["model", "layer"])
def test_weights_over_several_tensors_must_be_given(granularity: str) -> None:
    one = torch.ones(2)
    with pytest.raises(ValueError, match=f"weights of a {granularity} must be given"):
        cases.merge("varm", [one], one, granularity=granularity)


def test_weights_by_parameter_cannot_be_given() -> None:
    one = torch.ones(2)
    with pytest.raises(ValueError, match="each has its own"):
        cases.merge("varm", [one], one, granularity="parameter", weights=1.0)
