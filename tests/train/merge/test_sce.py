import numpy as np
import pytest
import torch

from tests.train.merge import cases, dense
from train.merge import sce

VARIANTS = ["paper", "authors", "mergekit"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(30,), (5, 6), (2, 3, 5)])
@pytest.mark.parametrize(("share", "count"), [(0.1, 3), (0.5, 15), (1.0, 30)])
def test_sce_equals_the_dense_oracle(
    variant: str, shape: tuple[int, ...], share: float, count: int
) -> None:
    models, base = cases.normal(*shape, seed=61)
    models = [base + (1 + j) * (model - base) for j, model in enumerate(models)]
    found = cases.merge("sce", models, base, variant=variant, select_topk=share)
    wide = [model.double().numpy() for model in models]
    wanted = dense.sce(base.double().numpy(), wide, count, variant)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_the_papers_tenth_is_the_default() -> None:
    models, base = cases.normal(5, 6, seed=62)
    found = cases.merge("sce", models, base)
    assert found.equal(
        cases.merge("sce", models, base, variant="paper", select_topk=0.1)
    )
    assert int(found.ne(base).sum()) == 3


def test_the_paper_divides_by_nothing_and_the_programs_do() -> None:
    base, models = torch.zeros(1), [torch.tensor([3.0]), torch.tensor([-1.0])]
    found = {
        variant: cases.merge("sce", models, base, variant=variant, select_topk=1).item()
        for variant in VARIANTS
    }
    assert found == pytest.approx({"paper": 2.7, "authors": 3.0, "mergekit": 3.0})


def test_only_the_authors_merge_what_is_not_selected() -> None:
    models, base = cases.normal(50, seed=63)
    changed = {
        variant: int(
            cases.merge("sce", models, base, variant=variant, select_topk=0.2)
            .ne(base)
            .sum()
        )
        for variant in VARIANTS
    }
    assert changed == {"paper": 10, "authors": 50, "mergekit": 10}


def test_elements_without_variance_do_not_count_toward_the_share() -> None:
    base = torch.zeros(8)
    models = [torch.tensor([1.0, 2, 3, 4, 5, 5, 5, 5])] * 2
    models[1] = models[1] * torch.tensor([2.0, 2, 2, 2, 1, 1, 1, 1])
    deltas = [model - base for model in models]
    marks = sce.select(deltas, 0.5, without_variance=True)
    assert marks.tolist() == [False, False, True, True, False, False, False, False]


def test_of_equal_variances_those_of_least_index_are_selected() -> None:
    deltas = [torch.ones(4), -torch.ones(4)]
    marks = sce.select(deltas, 0.5, without_variance=True)
    assert marks.tolist() == [True, True, False, False]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("variant", "stays"), [("paper", False), ("authors", False), ("mergekit", True)]
)
def test_without_variance_mergekit_stays_at_the_base_and_the_others_take_all(
    count: int, variant: str, stays: bool
) -> None:
    (model,), base = cases.normal(5, 4, seed=64, count=1)
    merged = cases.merge("sce", [model] * count, base, variant=variant, select_topk=0.1)
    torch.testing.assert_close(merged, base if stays else model)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_share_of_less_than_one_element_selects_none(variant: str) -> None:
    models, base = cases.normal(5, seed=65)
    merged = cases.merge("sce", models, base, variant=variant, select_topk=0.1)
    assert merged.equal(base) == (variant != "authors")


@pytest.mark.parametrize("variant", VARIANTS)
def test_models_that_are_the_base_leave_it(variant: str) -> None:
    _, base = cases.normal(3, 4, seed=66)
    for share in (0.0, 0.5, 1.0):
        given = {"variant": variant, "select_topk": share}
        assert cases.merge("sce", [base, base], base, **given).equal(base)


def test_small_differences_weigh_alike_in_mergekit_and_by_size_elsewhere() -> None:
    small = [torch.tensor([1e-4, 3e-4]), torch.tensor([3e-4, 1e-4])]
    small[1] = small[1] * 2
    squares = np.array([1 + 9, 36 + 4]) / 50
    weights = sce.calculate(small, 0.0)
    np.testing.assert_allclose(weights, squares, rtol=1e-5)
    assert sce.calculate(small, 1e-6) == [0.5, 0.5]


def test_the_share_of_elements_is_rounded_as_the_programs_do() -> None:
    deltas = [torch.arange(100.0), -torch.arange(100.0) - 1]
    # In 64 bits 0.29 * 100 falls short of 29.
    assert int(sce.select(deltas, 0.29, without_variance=True).sum()) == 29


def test_small_differences_are_averaged_evenly_in_mergekit_alone() -> None:
    base, models = torch.zeros(2), [torch.tensor([1e-4, 0]), torch.tensor([3e-4, 0])]
    found = {
        variant: cases.merge("sce", models, base, variant=variant, select_topk=1)[0]
        for variant in VARIANTS
    }
    assert found["mergekit"].item() == pytest.approx(2e-4)
    for variant in ("paper", "authors"):
        assert found[variant].item() == pytest.approx(0.1 * 1e-4 + 0.9 * 3e-4)
