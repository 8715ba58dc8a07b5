import numpy as np
import pytest

from tests.bench import rows, spans_windows


def test_drawn_ids_are_distinct_and_hold_the_gold_at_its_place() -> None:
    rng = np.random.default_rng(0)
    pool = np.repeat(np.arange(60), np.arange(60, 0, -1))
    gold, places = rng.choice(pool, 300), rng.integers(0, 10, 300)
    ids = spans_windows._draw_ids(rng, pool, gold, places, 10)
    assert ids.shape == (300, 10)
    assert (np.diff(np.sort(ids), axis=1) > 0).all()
    assert np.array_equal(ids[np.arange(300), places], gold)


@pytest.mark.parametrize(
    ("made", "met", "direction"),
    [
        (rows.at_least(2, "a", 1, "B"), False, "value: at least"),
        (rows.at_most(2, "a", 1, "B"), True, "value: at most"),
        (
            rows.ratio_at_least(2, "a", 9, "B", against="b", ratio=1.0),
            False,
            "ratio: at least",
        ),
        (
            rows.ratio_at_most(2, "a", 9, "B", against="b", ratio=1.0),
            True,
            "ratio: at most",
        ),
    ],
)
def test_an_aim_is_a_number_met_or_not_and_its_direction_is_in_words(
    made: dict[str, object], met: bool, direction: str
) -> None:
    assert (made["aim"], made["met"]) == (2.0, met)
    assert str(made["against"]).endswith(f"aim for the {direction}")
