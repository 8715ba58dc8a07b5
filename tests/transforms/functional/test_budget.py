import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.functional import budget
from transforms.functional.budget import Prices, Stage, Volume

# k, vocabulary, bytes a token: the columns of real files (docs/log.md)
SCORES = [
    (4, 49_152, 15.66),
    (10, 49_152, 28.79),
    (32, 49_152, 78.08),
    (64, 49_152, 143.99),
]
FUSED = [
    (4, 49_152, 9.07),
    (10, 49_152, 16.20),
    (32, 49_152, 41.14),
    (4, 4_096, 8.63),
    (10, 4_096, 14.79),
    (32, 4_096, 33.58),
]
STAGES = (
    Stage(name="a", tokens=1.0, bytes=3e9, cpu_hours=2.0),
    Stage(name="b", tokens=None, bytes=1e9, cpu_hours=1.0, gpu_hours=10.0),
)
sizes = st.lists(st.floats(0, 1e7).map(round).map(float), min_size=1, max_size=9)


@pytest.mark.parametrize(("k", "vocabulary", "measured"), SCORES)
def test_scores_take_what_real_files_took_to_a_tenth(
    k: int, vocabulary: int, measured: float
) -> None:
    found = budget.scores_bytes_per_token(k, 0, vocabulary)
    assert found == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(("k", "vocabulary", "measured"), FUSED)
def test_fused_rows_take_what_real_files_took_to_a_tenth(
    k: int, vocabulary: int, measured: float
) -> None:
    found = budget.fused_bytes_per_token(k, vocabulary)
    assert found == pytest.approx(measured, rel=0.1)


def test_a_drawn_id_takes_hardly_less_than_its_bits() -> None:
    more = budget.scores_bytes_per_token(10, 3, 2**16)
    without = budget.scores_bytes_per_token(10, 0, 2**16)
    assert more - without == pytest.approx(3 * 0.95 * 2)


def test_a_slice_takes_row_groups_of_one_file_until_it_is_full() -> None:
    # windows of 100 bytes, groups of 400: the first file has 3 groups, two a slice
    found = budget.volume([1200.0, 0.0, 1.0], 0.01, group_windows=4, slice_bytes=500)
    assert found == Volume(text_bytes=1201.0, windows=12.01, slices=3, groups=4)


@given(sizes, st.integers(1, 300), st.integers(1, 10**6))
def test_slices_and_groups_cover_the_text_and_reach_over_no_two_files(
    file_bytes: list[float], group_windows: int, slice_bytes: int
) -> None:
    found = budget.volume(
        file_bytes, 0.01, group_windows=group_windows, slice_bytes=slice_bytes
    )
    files = sum(size > 0 for size in file_bytes)
    assert files <= found.slices <= found.groups
    assert found.groups * group_windows >= math.floor(found.windows)
    group_bytes = group_windows / 0.01
    assert found.slices * (slice_bytes + group_bytes) >= sum(file_bytes)


def test_hours_are_tokens_over_tokens_a_second_over_3600() -> None:
    assert budget.hours(3.6e9, 1e3) == 1000


def test_a_model_of_seven_billion_is_scored_by_two_and_trained_by_six_times() -> None:
    scored = budget.tokens_per_second(4e14, 7 * 10**9, budget.FORWARD_FLOPS)
    trained = budget.tokens_per_second(4e14, 7 * 10**9, budget.TRAINING_FLOPS)
    assert scored == pytest.approx(28_571, rel=1e-4)
    assert budget.hours(1e9, scored) == pytest.approx(14e18 / 4e14 / 3600)
    assert budget.hours(1e9, trained) == pytest.approx(6 * 7e9 * 1e9 / 4e14 / 3600)


def test_two_checkpoints_of_twelve_bytes_a_parameter_lie_beside_the_models() -> None:
    assert budget.training_bytes(10**9, 2 * 10**9, 3) == 24e9 + 6e9


def test_money_is_hours_times_prices() -> None:
    prices = Prices(gpu_hour=2.5, cpu_hour=0.1, gb_month=0.02)
    assert prices.work(STAGES) == pytest.approx(10 * 2.5 + 3 * 0.1)
    assert prices.month(STAGES) == pytest.approx(4 * 0.02)


def test_without_a_price_nothing_is_said_of_money() -> None:
    assert Prices(gb_month=1.0).work(STAGES) is None
    assert Prices(gpu_hour=1.0).month(STAGES) is None
    assert Prices(gpu_hour=1.0).work(STAGES) == 10


@given(st.floats(1, 1e12), st.integers(1, 50))
def test_bytes_grow_with_tokens_at_their_bytes_a_token(tokens: float, k: int) -> None:
    of = Volume(text_bytes=4 * tokens, windows=tokens / 1000, slices=1, groups=1)
    each = budget.scores_bytes_per_token(k, 0, 32_000)
    overhead = budget.scores_bytes(tokens, of, each) - tokens * each
    assert 0 < overhead < 0.06 * tokens + 3000
