import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.train.merge import cases
from train.merge import methods

EVERY = sorted(methods.METHODS)
SUMS = sorted(name for name in EVERY if "lambda" in methods.METHODS[name].parameters)
WEIGHTED = sorted(
    name for name in EVERY if "weight" in methods.METHODS[name].parameters
)
SYMMETRIC = sorted(
    name for name in EVERY if not methods.METHODS[name].seeded and name != "slerp"
)
WEIGHTS = st.sampled_from([0.25, 0.5, 1.0, 2.0])
DENSITIES = st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0])
SEEDS = st.integers(0, 100)
a_few = settings(max_examples=15)
"""Each law is tried on every method, so on some tensors of each."""

Inputs = tuple[list[Tensor], Tensor]


def close(found: Tensor, wanted: Tensor) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def cancelling(models: list[Tensor]) -> bool:
    """Whether the directions of tensors have no mean to speak of."""
    units = [one / one.norm() for one in models if one.norm()]
    return bool(units) and float(sum(units, torch.zeros(())).norm()) < 0.1


@pytest.mark.parametrize("name", EVERY)
@a_few
@given(inputs=cases.models_and_base(), data=st.data())
def test_identical_models_merge_to_themselves(
    name: str, inputs: Inputs, data: st.DataObject
) -> None:
    (model, *_), base = inputs
    count = data.draw(st.integers(*cases.counts_of(name)))
    merged = cases.merge(name, [model] * count, base, **cases.ONE_FOR_ALL[name])
    close(merged, model)


@pytest.mark.parametrize("variant", ["paper", "authors", "mergekit"])
@a_few
@given(inputs=cases.models_and_base(), count=st.integers(1, 4))
def test_identical_models_merge_to_themselves_in_sce_of_all_elements(
    variant: str, inputs: Inputs, count: int
) -> None:
    (model, *_), base = inputs
    close(
        cases.merge("sce", [model] * count, base, select_topk=1, variant=variant), model
    )


@pytest.mark.parametrize("name", [n for n in WEIGHTED if n != "nuslerp"])
@a_few
@given(inputs=cases.models_and_base(most=1), weight=WEIGHTS)
def test_one_model_alone_is_the_result(
    name: str, inputs: Inputs, weight: float
) -> None:
    models, base = inputs
    if not methods.METHODS[name].parameters.get("normalize"):
        weight = 1.0
    how = cases.ONE_FOR_ALL[name] | {"weight": weight}
    close(cases.merge(name, models, base, **how), models[0])


@pytest.mark.parametrize("name", WEIGHTED)
@a_few
@given(inputs=cases.models_and_base(least=2), data=st.data())
def test_a_model_that_has_all_the_weight_is_the_result(
    name: str, inputs: Inputs, data: st.DataObject
) -> None:
    models, base = inputs
    models = models[: methods.METHODS[name].most]
    chosen = data.draw(st.integers(0, len(models) - 1))
    weight = [float(place == chosen) for place in range(len(models))]
    how = cases.ONE_FOR_ALL[name] | {"weight": weight}
    assume(name != "multislerp" or bool(models[chosen].ne(base).any()))
    close(cases.merge(name, models, base, **how), models[chosen])


@pytest.mark.parametrize("name", SYMMETRIC)
@a_few
@given(inputs=cases.models_and_base(least=2), data=st.data())
def test_the_order_of_models_changes_nothing(
    name: str, inputs: Inputs, data: st.DataObject
) -> None:
    models, base = inputs
    models = models[: methods.METHODS[name].most]
    if name in ("karcher", "multislerp"):
        assume(not cancelling([m - base * (name != "karcher") for m in models]))
    how = dict(cases.ONE_FOR_ALL[name])
    order = data.draw(st.permutations(range(len(models))))
    turned = dict(how)
    for key, numbers in (("weight", WEIGHTS), ("density", DENSITIES)):
        if key in methods.METHODS[name].parameters:
            several = st.lists(numbers, min_size=len(models), max_size=len(models))
            how[key] = data.draw(several)
            turned[key] = [how[key][place] for place in order]
    if name == "multislerp":
        how["weight"] = turned["weight"] = 1.0
    first = cases.merge(name, models, base, **how)
    close(cases.merge(name, [models[i] for i in order], base, **turned), first)


@pytest.mark.parametrize("variant", ["paper", "authors", "mergekit"])
@a_few
@given(inputs=cases.models_and_base(least=2), data=st.data())
def test_the_order_of_models_changes_nothing_in_any_sce(
    variant: str, inputs: Inputs, data: st.DataObject
) -> None:
    models, base = inputs
    turned = data.draw(st.permutations(models))
    share = data.draw(st.sampled_from([0.0, 1.0]))
    given = {"variant": variant, "select_topk": share}
    first = cases.merge("sce", models, base, **given)
    close(cases.merge("sce", list(turned), base, **given), first)


@a_few
@given(inputs=cases.models_and_base(least=2, most=2), t=st.floats(0, 1))
def test_slerp_from_the_other_end_comes_to_the_same(inputs: Inputs, t: float) -> None:
    models, base = inputs
    first = cases.merge("slerp", models, base, t=t)
    close(cases.merge("slerp", models[::-1], base, t=1 - t), first)


@pytest.mark.parametrize("name", SUMS)
@a_few
@given(inputs=cases.models_and_base(), density=DENSITIES, seed=SEEDS)
def test_with_lambda_0_the_base_stays(
    name: str, inputs: Inputs, density: float, seed: int
) -> None:
    models, base = inputs
    how = {"weight": 0.5, "lambda": 0.0}
    if "density" in methods.METHODS[name].parameters:
        how["density"] = density
    if "epsilon" in methods.METHODS[name].parameters:
        how["epsilon"] = 0.05
    assert cases.merge(name, models, base, seed, **how).equal(base)


@pytest.mark.parametrize(
    "name", [n for n in SUMS if "density" in methods.METHODS[n].parameters]
)
@a_few
@given(inputs=cases.models_and_base(), seed=SEEDS)
def test_with_density_0_the_base_stays(name: str, inputs: Inputs, seed: int) -> None:
    models, base = inputs
    merged = cases.merge(name, models, base, seed, weight=1.0, density=0.0)
    assert merged.equal(base)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("elected", [True, False])
@a_few
@given(inputs=cases.models_and_base(), data=st.data())
def test_with_density_1_methods_differ_only_in_whether_they_elect(
    normalize: bool, elected: bool, inputs: Inputs, data: st.DataObject
) -> None:
    models, base = inputs
    count = len(models)
    weight = data.draw(st.lists(WEIGHTS, min_size=count, max_size=count))
    how = {"weight": weight, "normalize": normalize, "lambda": 0.7}
    names = ("task_arithmetic", "dare_linear", "della_linear", "breadcrumbs")
    if elected:
        names = ("ties", "dare_ties", "della", "breadcrumbs_ties")
    first, *others = (cases.merge(name, models, base, **how) for name in names)
    assert all(one.equal(first) for one in others)


@pytest.mark.parametrize("name", SUMS)
@a_few
@given(inputs=cases.models_and_base(), seed=SEEDS)
def test_twice_the_lambda_goes_twice_as_far(
    name: str, inputs: Inputs, seed: int
) -> None:
    models, base = inputs
    once, twice = (
        cases.merge(name, models, base, seed, weight=0.5, **{"lambda": factor})
        for factor in (0.5, 1.0)
    )
    close(twice - base, 2 * (once - base))


@pytest.mark.parametrize("name", EVERY)
@a_few
@given(inputs=cases.models_and_base(least=2), seed=SEEDS)
def test_what_is_finite_stays_finite_and_keeps_its_shape(
    name: str, inputs: Inputs, seed: int
) -> None:
    models, base = inputs
    models = models[: methods.METHODS[name].most]
    known = methods.METHODS[name].parameters
    some = {"density": 0.5, "gamma": 0.2, "select_topk": 0.3, "weight": 0.4}
    how = {"t": 0.6} if name == "slerp" else {}
    how |= {key: value for key, value in some.items() if key in known}
    assume(name != "multislerp" or not cancelling([m - base for m in models]))
    merged = cases.merge(name, models, base, seed, **how)
    assert merged.isfinite().all()
    assert merged.shape == base.shape


@pytest.mark.parametrize("name", ["linear", "varm", "karcher", "slerp", "model_stock"])
@a_few
@given(inputs=cases.models_and_base(least=2), power=st.sampled_from([-20, -3, 4]))
def test_a_merge_scales_with_its_inputs(name: str, inputs: Inputs, power: int) -> None:
    models, base = inputs
    models, scale = models[: methods.METHODS[name].most], 2.0**power
    given = cases.ONE_FOR_ALL[name]
    whole = cases.merge(name, models, base, **given)
    scaled = cases.merge(name, [m * scale for m in models], base * scale, **given)
    close(scaled / scale, whole)
