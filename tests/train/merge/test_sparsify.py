from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.train.merge import cases, dense
from train.merge import pieces, sparsify

Numbers = st.lists(st.integers(-3, 3), min_size=1, max_size=12)


def tensor(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32)


@given(numbers=Numbers, count=st.integers(-1, 13))
def test_the_least_are_those_that_a_stable_sort_puts_in_front(
    numbers: list[int], count: int
) -> None:
    order = sorted(range(len(numbers)), key=lambda place: numbers[place])
    wanted = {*order[: max(0, count)]}
    found = sparsify.least(tensor(*numbers), count)
    assert {*found.nonzero().flatten().tolist()} == wanted


def test_of_equal_ones_in_several_pieces_the_first_are_the_least() -> None:
    values = torch.ones(3 * pieces.ELEMENTS).index_fill_(0, torch.tensor([9]), 2.0)
    count = 2 * pieces.ELEMENTS + 5
    found = sparsify.least(values, count).nonzero().flatten().tolist()
    assert found == [place for place in range(count + 1) if place != 9]


@pytest.mark.parametrize(
    ("density", "kept"),
    [
        (0.0, []),
        (0.01, [3]),  # one at least
        (0.4, [1, 3]),
        (0.6, [0, 1, 3]),  # of the magnitude at the cut the first
        (1.0, [0, 1, 2, 3, 4]),
    ],
)
def test_the_largest_are_kept_and_of_equal_ones_the_first(
    density: float, kept: list[int]
) -> None:
    delta = tensor(-2, 3, 2, -4, 1)
    found = sparsify.keep_largest(delta, density, "none")
    assert found.tolist() == [
        x if i in kept else 0 for i, x in enumerate([-2, 3, 2, -4, 1])
    ]


@pytest.mark.parametrize(
    ("density", "gamma", "kept"),
    [
        (0.4, 0.2, [2, 3]),  # | 1 1 | 2 3 | 4 | by magnitude
        (0.4, 0.0, [3, 4]),
        (0.4, 0.6, [0, 1]),  # all that is not kept is an outlier
        (0.4, 1.0, [0, 1]),  # more outliers than there is room for
        (0.2, 0.6, [1]),  # of equal magnitudes the first is the crumb
        (1.0, 0.5, [0, 1, 2, 3, 4]),  # outliers stay where all is kept
        (0.0, 0.2, []),
        (0.1, 0.0, []),  # less than one is none here
    ],
)
def test_the_middle_is_kept_below_the_outliers(
    density: float, gamma: float, kept: list[int]
) -> None:
    delta = tensor(1, -1, 2, -3, 4)
    found = sparsify.keep_middle(delta, density, gamma, "none")
    assert found.tolist() == [
        x if i in kept else 0 for i, x in enumerate([1, -1, 2, -3, 4])
    ]


@pytest.mark.parametrize("density", [0.3, 0.6])
def test_l1_keeps_the_sum_of_magnitudes(density: float) -> None:
    (delta, *_), _ = cases.normal(7, 9, seed=21)
    generator = torch.Generator().manual_seed(1)
    for found in (
        sparsify.keep_largest(delta.clone(), density, "l1"),
        sparsify.keep_middle(delta.clone(), density, 0.1, "l1"),
        sparsify.keep_drawn(delta.clone(), density, generator, "l1"),
        sparsify.keep_ranked(delta.clone(), density, 0.1, generator, "l1"),
    ):
        assert 0 < found.count_nonzero() < found.numel()
        torch.testing.assert_close(found.abs().sum(), delta.abs().sum())


def test_l1_of_nothing_kept_is_nothing() -> None:
    assert sparsify.keep_largest(tensor(0, 0), 0.5, "l1").tolist() == [0, 0]
    assert sparsify.keep_middle(tensor(1, 2), 0.1, 0.0, "l1").tolist() == [0, 0]


@pytest.mark.parametrize("density", [0.2, 0.75])
def test_the_share_that_is_drawn_is_the_density(density: float) -> None:
    delta, count = torch.ones(100_000), 100_000
    generator = torch.Generator().manual_seed(3)
    for found in (
        sparsify.keep_drawn(delta.clone(), density, generator, "none"),
        sparsify.keep_ranked(delta.clone(), density, 0.15, generator, "none"),
    ):
        # The standard deviation of the share is at most that of a Bernoulli variable.
        allowed = 5 * np.sqrt(density * (1 - density) / count)
        assert abs(float(found.mean()) - density) < allowed


@given(
    numbers=st.lists(st.lists(st.integers(-3, 3), min_size=4, max_size=4), min_size=1),
    density=st.floats(0.3, 0.7),
    epsilon=st.floats(0, 0.25),
)
def test_chances_rise_with_the_rank_in_a_row_about_the_density(
    numbers: list[list[int]], density: float, epsilon: float
) -> None:
    rows = torch.tensor(numbers, dtype=torch.float64)
    found = sparsify.rank_chances(rows, density, epsilon)
    wanted = dense.chances_by_rank(rows.numpy(), density, epsilon)
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    np.testing.assert_allclose(found.mean(dim=1), density)


def test_rows_drawn_in_parts_are_those_drawn_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (delta, *_), _ = cases.normal(10, 6, seed=22)
    found = []
    for size in (1 << 22, 13, 1):
        monkeypatch.setattr(sparsify, "_ROWS_ELEMENTS", size)
        generator = torch.Generator().manual_seed(2)
        own = delta.clone()
        found.append(sparsify.keep_ranked(own, 0.5, 0.2, generator, "density"))
    assert found[0].equal(found[1])
    assert found[0].equal(found[2])


@pytest.mark.parametrize("shape", [(4, 3, 2), (4, 6)])
def test_a_row_is_what_belongs_to_one_index_of_the_first_axis(
    shape: tuple[int, ...],
) -> None:
    (delta, *_), _ = cases.normal(*shape, seed=23)
    found, flat = (
        sparsify.keep_ranked(one, 0.5, 0.4, torch.Generator().manual_seed(1), "density")
        for one in (delta.clone(), delta.reshape(4, 6))
    )
    assert found.reshape(4, 6).equal(flat)


@pytest.mark.parametrize("keep", ["drawn", "ranked"])
def test_nothing_is_drawn_where_all_or_none_is_kept(keep: str) -> None:
    generator = torch.Generator().manual_seed(1)
    state = generator.get_state()
    more: dict[str, Any] = {"epsilon": 0.1} if keep == "ranked" else {}
    for density in (1.0, 0.0) if keep == "ranked" else (1.0,):
        found = getattr(sparsify, f"keep_{keep}")(
            tensor(1, -2), density, generator=generator, rescale="density", **more
        )
        assert found.tolist() == [density, -2 * density]
    assert generator.get_state().equal(state)
