import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from transforms.functional import chances

PROMISED = [[0.5660068737884073, 0.30176797985482184]]


def test_chances_are_a_pure_function_of_purpose_window_position_and_draw() -> None:
    whole = chances.derive("score", "w", 7, 3)
    assert_array_equal(chances.derive("score", "w", 4, 3), whole[:4])
    # what was drawn yesterday is drawn tomorrow
    assert chances.derive("score", "w", 1, 2).tolist() == PROMISED
    for other in (
        chances.derive("fuse", "w", 7, 3),
        chances.derive("score", "v", 7, 3),
    ):
        assert not (other == whole).any()


def test_chances_are_uniform_and_uncorrelated() -> None:
    found = np.stack([chances.derive("score", f"w{i}", 50, 4) for i in range(500)])
    assert found.min() >= 0
    assert found.max() < 1
    counts = np.histogram(found, 20, (0, 1))[0]
    assert abs(counts / found.size - 0.05).max() < 5 * np.sqrt(0.05 / found.size)
    centered = (found - 0.5).reshape(-1, 4)
    assert_allclose(centered.T @ centered / len(centered), np.eye(4) / 12, atol=0.003)


def test_without_draws_positions_have_no_chances() -> None:
    found = chances.derive("score", "a", 3, 0)
    assert found.shape == (3, 0)
    assert found.dtype == np.float64
