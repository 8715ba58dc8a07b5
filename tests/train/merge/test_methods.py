from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.merge import cases
from train.merge import methods

EVERY = sorted(methods.METHODS)
SEEDED = sorted(name for name in EVERY if methods.METHODS[name].seeded)
ONE = torch.ones(2)


def given_of(name: str) -> dict[str, Any]:
    """Settings under which a method drops what it can drop."""
    known = methods.METHODS[name].parameters
    some = {"density": 0.5, "gamma": 0.1, "epsilon": 0.2, "select_topk": 0.5}
    return cases.ONE_FOR_ALL[name] | {k: v for k, v in some.items() if k in known}


def test_every_method_of_the_design_is_there() -> None:
    assert set(EVERY) == {
        "linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "slerp",
        "model_stock", "breadcrumbs", "breadcrumbs_ties", "della", "della_linear",
        "varm", "nuslerp", "multislerp", "karcher", "sce",
    }  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("stored", "merged"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_the_arithmetic_is_in_float32_or_float64(
    name: str, stored: torch.dtype, merged: torch.dtype
) -> None:
    models, base = cases.normal(4, 6, seed=1, count=2)
    models = [model.to(stored) for model in models]
    found = cases.merge(name, models, base.to(stored), **given_of(name))
    assert found.dtype == merged
    assert found.shape == base.shape


@pytest.mark.parametrize("name", EVERY)
def test_one_tensor_of_float64_makes_all_of_them_so(name: str) -> None:
    models, base = cases.normal(4, 6, seed=1, count=2)
    mixed = [models[0].double(), models[1]]
    found = cases.merge(name, mixed, base, **given_of(name))
    wide = [model.double() for model in models]
    assert found.equal(cases.merge(name, wide, base.double(), **given_of(name)))


@pytest.mark.parametrize("name", EVERY)
def test_a_merge_changes_none_of_its_arguments(name: str) -> None:
    models, base = cases.normal(4, 6, seed=2, count=2)
    before = [tensor.clone() for tensor in (*models, base)]
    given = given_of(name)
    copy = dict(given)
    merged = cases.merge(name, models, base, **given)
    merged.zero_()
    after = [*models, base]
    assert all(one.equal(other) for one, other in zip(before, after, strict=True))
    assert given == copy


@pytest.mark.parametrize("name", [n for n in EVERY if n not in ("slerp", "nuslerp")])
def test_a_merge_of_one_model_is_a_tensor_of_its_own(name: str) -> None:
    models, base = cases.normal(4, seed=3, count=1 if name != "model_stock" else 2)
    before = models[0].clone()
    cases.merge(name, models, base, **cases.ONE_FOR_ALL[name]).zero_()
    assert models[0].equal(before)


@pytest.mark.parametrize("name", EVERY)
def test_a_transposed_view_merges_as_its_copy_does(name: str) -> None:
    models, base = cases.normal(4, 6, seed=4, count=2)
    views = [model.T for model in models]
    copies = [view.contiguous() for view in views]
    found = cases.merge(name, views, base.T, **given_of(name))
    assert found.equal(cases.merge(name, copies, base.T.contiguous(), **given_of(name)))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4)])
def test_empty_tensors_merge_to_empty_ones(name: str, shape: tuple[int, ...]) -> None:
    empty = torch.empty(shape)
    assert cases.merge(name, [empty, empty], empty, **given_of(name)).shape == shape


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 5), (5, 1), (2, 3, 4)])
def test_tensors_of_any_number_of_axes_merge(name: str, shape: tuple[int, ...]) -> None:
    models, base = cases.normal(*shape, seed=5, count=2)
    models = [base + abs(model) for model in models]
    merged = cases.merge(name, models, base, **given_of(name))
    assert merged.shape == shape
    assert merged.isfinite().all()


@pytest.mark.parametrize("name", EVERY)
def test_a_merge_does_not_hang_on_the_number_of_threads(name: str) -> None:
    models, base = cases.normal(150, 240, seed=6, count=2)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            found.append(cases.merge(name, models, base, **given_of(name)))
        finally:
            torch.set_num_threads(before)
    assert found[0].equal(found[1])


@pytest.mark.parametrize("name", SEEDED)
def test_one_seed_gives_one_result_to_the_byte_and_another_another(name: str) -> None:
    models, base = cases.normal(8, 8, seed=7)
    given = given_of(name)
    first, again = (cases.merge(name, models, base, seed=1, **given) for _ in "ab")
    other = cases.merge(name, models, base, seed=2, **given)
    assert first.numpy().tobytes() == again.numpy().tobytes()
    assert not first.equal(other)


@pytest.mark.parametrize(
    ("name", "models", "base", "message"),
    [
        ("ties", [ONE, torch.ones(3)], ONE, r"model 0, \(2,\), got \(3,\) in model 1"),
        ("ties", [ONE, ONE], torch.ones(2, 1), r"got \(2, 1\) in the base"),
        ("linear", [ONE, ONE.int()], None, "got torch.int32 in model 1; take such"),
        ("linear", [ONE.bool(), ONE], None, "got torch.bool in model 0"),
        ("linear", [ONE, torch.tensor([1, torch.nan])], None, "at 1 of 2 .* model 1"),
        ("ties", [ONE, ONE], ONE / 0, "NaN or inf at 2 of 2 places in the base"),
        ("ties", [ONE, ONE], None, "ties merges differences from a base: give one"),
        ("linear", [ONE, ONE], ONE, "linear takes no base: name it among the models"),
        ("linear", [], None, "at least 1 models, the base apart, got 0"),
        ("slerp", [ONE, ONE], ONE, "got 2 and a base"),
        ("slerp", [ONE], None, "got 1 and no base"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    name: str, models: list[Tensor], base: Tensor | None, message: str
) -> None:
    given = {"t": 0.5} if name == "slerp" else {}
    with pytest.raises(ValueError, match=message):
        methods.merge_tensors(name, models, base, given)


@pytest.mark.parametrize("name", SEEDED)
def test_a_draw_without_a_generator_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="give a generator that is seeded for this"):
        methods.merge_tensors(name, [ONE], ONE, cases.ONE_FOR_ALL[name])


def test_a_result_beyond_the_range_is_refused_with_its_greatest_input() -> None:
    huge = torch.full((2,), 3e38)
    with pytest.raises(ValueError, match=r"linear leaves the range of torch.float32"):
        methods.merge_tensors(
            "linear", [huge, huge], None, {"weight": 1, "normalize": False}
        )


def test_a_result_keeps_no_gradient() -> None:
    model = torch.ones(2, requires_grad=True)
    assert not methods.merge_tensors("linear", [model], None, {}).requires_grad
