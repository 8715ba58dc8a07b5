from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.train.merge import cases

E = torch.eye(3)
ROOT = 0.5**0.5
BETWEEN = {
    "slerp": {"t": 0.5},
    "nuslerp": {},
    "multislerp": {},
    "karcher": {},
}
"""Settings with which a method goes to the middle of two tensors."""


def great_circle(x: np.ndarray, y: np.ndarray, t: float) -> np.ndarray:
    """Turns from x toward y by the share t of their angle, as a rotation."""
    ux, uy = x / np.linalg.norm(x), y / np.linalg.norm(y)
    across = uy - (ux @ uy) * ux
    across /= np.linalg.norm(across)
    angle = np.arctan2(uy @ across, uy @ ux)
    ex = np.cos(t * angle) * ux + np.sin(t * angle) * across
    # The factors of x and y that make this unit vector stretch both as they are.
    factors, *_ = np.linalg.lstsq(np.stack([ux, uy], axis=1), ex, rcond=None)
    return factors[0] * x + factors[1] * y


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("name", ["slerp", "nuslerp"])
def test_the_great_circle_is_a_rotation(name: str, t: float) -> None:
    models, _ = cases.normal(4, 5, seed=71, count=2)
    models[1] = models[1] + torch.randn(
        4, 5, generator=torch.Generator().manual_seed(1)
    )
    given: dict[str, Any] = {"t": t} if name == "slerp" else {"weight": [1 - t, t]}
    found = cases.merge(name, models, None, **given)
    wide = [model.double().numpy().ravel() for model in models]
    np.testing.assert_allclose(
        found.ravel(), great_circle(*wide, t), rtol=1e-5, atol=1e-6
    )


def test_slerp_starts_at_the_base() -> None:
    found = cases.methods.merge_tensors("slerp", [E[1]], E[0], {"t": 1 / 3})
    np.testing.assert_allclose(found, [0.75**0.5, 0.5, 0], atol=1e-7)


@pytest.mark.parametrize("name", ["slerp", "nuslerp", "multislerp", "karcher"])
def test_the_middle_of_two_orthogonal_unit_tensors_is_one_too(name: str) -> None:
    found = cases.merge(name, [E[0], E[1]], None, **BETWEEN[name])
    np.testing.assert_allclose(found, [ROOT, ROOT, 0], atol=1e-6)


@pytest.mark.parametrize("name", ["multislerp", "karcher"])
def test_the_length_is_the_mean_length(name: str) -> None:
    found = cases.merge(name, [E[0], 3 * E[1], 5 * E[2]], None)
    np.testing.assert_allclose(found, np.full(3, 3 / 3**0.5), rtol=1e-6)


@pytest.mark.parametrize("name", ["slerp", "nuslerp"])
def test_slerp_of_almost_one_direction_follows_the_chord(name: str) -> None:
    second = 3 * (E[0] + 1e-5 * E[1])
    given: dict[str, Any] = {"t": 0.25} if name == "slerp" else {"weight": [3, 1]}
    found = cases.merge(name, [E[0], second], None, **given)
    np.testing.assert_allclose(found, 0.75 * E[0] + 0.25 * second, rtol=1e-6)


@pytest.mark.parametrize("name", ["slerp", "nuslerp", "multislerp"])
def test_opposites_follow_the_chord(name: str) -> None:
    models, _ = cases.normal(3, 4, seed=72, count=1)
    weights: dict[str, Any] = {"weight": [0.5, 0.5]}
    given = {"t": 0.5} if name == "slerp" else weights
    found = cases.merge(name, [models[0], -3 * models[0]], None, **given)
    torch.testing.assert_close(found, -models[0])


@pytest.mark.parametrize("name", ["slerp", "nuslerp"])
def test_a_zero_tensor_counts_as_orthogonal(name: str) -> None:
    found = cases.merge(name, [torch.zeros(3), E[1]], None, **BETWEEN[name])
    np.testing.assert_allclose(found, ROOT * E[1], atol=1e-7)


@pytest.mark.parametrize("name", ["multislerp", "karcher"])
def test_a_zero_tensor_counts_in_the_length_alone(name: str) -> None:
    found = cases.merge(name, [torch.zeros(3), 4 * E[1]], None)
    np.testing.assert_allclose(found, 2 * E[1], rtol=1e-6)


@pytest.mark.parametrize("name", ["slerp", "nuslerp", "multislerp", "karcher"])
@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_zero_tensors_merge_to_zero(name: str, shape: tuple[int, ...]) -> None:
    zero = torch.zeros(shape)
    assert cases.merge(name, [zero, zero], None, **BETWEEN[name]).equal(zero)


@pytest.mark.parametrize("name", ["nuslerp", "multislerp"])
def test_with_a_base_differences_are_merged(name: str) -> None:
    models, base = cases.normal(4, 5, seed=73, count=2)
    found = cases.merge(name, models, base)
    plain = cases.merge(name, [model - base for model in models], None)
    torch.testing.assert_close(found, plain + base)


def test_more_than_two_models_that_are_the_base_leave_it() -> None:
    _, base = cases.normal(3, 4, seed=74)
    assert cases.merge("multislerp", [base] * 3, base).equal(base)


def test_directions_of_three_models_that_cancel_are_refused() -> None:
    models = [E[0], -E[0], torch.zeros(3)]
    with pytest.raises(ValueError, match="directions of the models must not cancel"):
        cases.merge("multislerp", models, None)


@pytest.mark.parametrize("weight", [[1, -1], [2e-7, -2e-7 + 1e-9]])
def test_weights_of_nuslerp_that_sum_to_0_go_to_the_middle(weight: list[float]) -> None:
    found = cases.merge("nuslerp", [E[0], E[1]], None, weight=weight)
    np.testing.assert_allclose(found, [ROOT, ROOT, 0], atol=1e-6)


@pytest.mark.parametrize(("row_wise", "axis"), [(False, -1), (True, 0)])
@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 2), (6,)])
def test_nuslerp_of_vectors_is_nuslerp_of_each(
    row_wise: bool, axis: int, shape: tuple[int, ...]
) -> None:
    models, _ = cases.normal(*shape, seed=75, count=2)
    models[1] = models[1].flip(0)
    models[0][..., 0] = 0 if shape[0] > 5 else models[0][..., 0]
    given: dict[str, Any] = {"weight": [0.3, 0.7]}
    found = cases.merge(
        "nuslerp",
        models,
        None,
        nuslerp_flatten=False,
        nuslerp_row_wise=row_wise,
        **given,
    )
    vectors = [model.movedim(axis, -1) for model in models]
    for place in np.ndindex(*vectors[0].shape[:-1]):
        one = cases.merge("nuslerp", [v[place] for v in vectors], None, **given)
        np.testing.assert_allclose(
            found.movedim(axis, -1)[place], one, rtol=1e-4, atol=1e-5
        )


def test_vectors_of_zeros_and_of_one_direction_merge_without_nan() -> None:
    first = torch.tensor([[0.0, 0.0], [1.0, 2.0], [1.0, 0.0], [0.0, 0.0]])
    second = torch.tensor([[0.0, 0.0], [2.0, 4.0], [-1.0, 0.0], [2.0, 0.0]])
    found = cases.merge("nuslerp", [first, second], None, nuslerp_flatten=False)
    np.testing.assert_allclose(found, [[0, 0], [1.5, 3], [0, 0], [2 * ROOT, 0]])


def frechet_gradient(mean: np.ndarray, units: list[np.ndarray]) -> np.ndarray:
    """The sum of the logarithms of unit vectors at a point of the sphere."""
    whole = np.zeros_like(mean)
    for unit in units:
        angle = np.arccos(np.clip(mean @ unit, -1, 1))
        if angle:
            whole += angle / np.sin(angle) * (unit - (mean @ unit) * mean)
    return whole


@pytest.mark.parametrize("count", [2, 3, 6])
def test_the_karcher_mean_is_where_the_angles_pull_evenly(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    models = [
        torch.randn(40, generator=generator, dtype=torch.float64) + 0.7
        for _ in range(count)
    ]
    found = cases.merge("karcher", models, None, max_iter=50, tol=1e-12).numpy()
    units = [(model / model.norm()).numpy() for model in models]
    length = np.linalg.norm(found)
    assert length == pytest.approx(np.mean([float(model.norm()) for model in models]))
    np.testing.assert_allclose(frechet_gradient(found / length, units), 0, atol=1e-9)
    chord = np.mean(units, axis=0)
    assert np.abs(found / length - chord / np.linalg.norm(chord)).max() > 1e-6 or (
        count == 2
    )


def test_steps_of_karcher_end_at_their_greatest_number() -> None:
    models, _ = cases.normal(30, seed=76, count=4)
    found = cases.merge("karcher", models, None, max_iter=0)
    units = [model / model.norm() for model in models]
    mean: Tensor = sum(units, torch.zeros(30))
    length = torch.stack([model.norm() for model in models]).mean()
    torch.testing.assert_close(found, mean / mean.norm() * length)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_with_no_tolerance_karcher_ends_where_no_step_is_left(count: int) -> None:
    models = [E[axis] * (axis + 1) for axis in range(count)]
    found = cases.merge("karcher", models, None, max_iter=100, tol=0.0)
    wanted = sum(E[:count], torch.zeros(3)) / count**0.5 * (count + 1) / 2
    torch.testing.assert_close(found, wanted)


def test_without_tolerance_directions_that_cancel_leave_karcher_at_the_first() -> None:
    found = cases.merge("karcher", [2 * E[0], -4 * E[0]], None, tol=0.0)
    np.testing.assert_allclose(found, 3 * E[0])


def test_where_directions_cancel_karcher_stays_at_the_first() -> None:
    found = cases.merge("karcher", [2 * E[0], -4 * E[0]], None)
    np.testing.assert_allclose(found, 3 * E[0])


@pytest.mark.parametrize("seed", range(5))
def test_an_antipode_that_rounding_hides_does_not_move_karcher(seed: int) -> None:
    (model,), _ = cases.normal(37, seed=seed, count=1)
    found = cases.merge("karcher", [model, -model / 3], None)
    torch.testing.assert_close(found, model * 2 / 3)


@pytest.mark.parametrize("tol", [0.0, 1e-5])
@pytest.mark.parametrize("apart", [0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3])
def test_near_opposites_keep_the_mean_length(apart: float, tol: float) -> None:
    (model,), _ = cases.normal(4000, seed=5, count=1)
    across = torch.randn(4000, generator=torch.Generator().manual_seed(6))
    found = cases.merge("karcher", [model, apart * across - model / 3], None, tol=tol)
    torch.testing.assert_close(found.norm(), model.norm() * 2 / 3, rtol=5e-3, atol=0)
