import zlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import reference as fixtures
from train.merge import methods, sce

MERGES = fixtures.cases("merge")
FORKS = fixtures.cases("loss", "sce")
AS_MERGEKIT = {"sce": {"variant": "mergekit", "select_topk": 1.0}}
"""mergekit's defaults where ours are others, of methods that draw nothing.

What DARE and DELLA draw is each program's own, so theirs are equal only where nothing
is drawn; there is nothing to rescale then, so that our defaults serve.
"""


def name_of(case: dict[str, Any]) -> str:
    told = ",".join(f"{k}={v}" for k, v in case["parameters"].items())
    return f"{case['method']}({told})-{zlib.crc32(repr(case['models']).encode()):08x}"


def inputs_of(case: dict[str, Any]) -> tuple[list[Tensor], Tensor | None]:
    """Models and base; where a method knows no base, it is one of the models."""
    models = [torch.tensor(one) for one in case["models"]]
    base = None if case.get("base") is None else torch.tensor(case["base"])
    if base is not None and methods.METHODS[case["method"]].base == "none":
        return [base, *models], None
    return models, base


@pytest.mark.reference
@pytest.mark.parametrize("case", MERGES, ids=name_of)
def test_a_merge_equals_that_of_mergekit(case: dict[str, Any]) -> None:
    models, base = inputs_of(case)
    name = case["method"]
    given = AS_MERGEKIT.get(name, {}) | case["parameters"]
    generator = torch.Generator() if methods.METHODS[name].seeded else None
    merged = methods.merge_tensors(name, models, base, given, generator)
    np.testing.assert_allclose(merged, case["merged"], rtol=1e-5, atol=1e-5)


@pytest.mark.reference
@pytest.mark.parametrize("case", FORKS, ids=lambda case: f"{case['select_topk']}")
def test_sce_equals_that_of_its_authors(case: dict[str, Any]) -> None:
    assert case["variant"] == "authors_fork"
    models = [torch.tensor(one) for one in case["models"]]
    base = torch.tensor(case["base"])
    given = {"select_topk": case["select_topk"], "variant": "authors"}
    merged = methods.merge_tensors("sce", models, base, given)
    np.testing.assert_allclose(merged, case["merged"], rtol=1e-5, atol=1e-5)


@pytest.mark.reference
@pytest.mark.parametrize("case", FORKS, ids=lambda case: f"{case['select_topk']}")
def test_the_weights_of_sce_equal_those_of_its_authors(case: dict[str, Any]) -> None:
    deltas = [torch.tensor(one) - torch.tensor(case["base"]) for one in case["models"]]
    marks = sce.select(deltas, case["select_topk"], without_variance=True)
    weights = sce.calculate([delta * marks for delta in deltas], 0.0)
    np.testing.assert_allclose(weights, case["weights"], rtol=1e-5)
