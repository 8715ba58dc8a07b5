from hypothesis import given
from hypothesis import strategies as st

from transforms.functional import batches

LENGTHS = st.lists(st.integers(1, 600), max_size=60)


@given(LENGTHS, st.integers(1, 2000))
def test_each_window_is_in_one_batch(lengths: list[int], budget: int) -> None:
    planned = batches.plan_batches(lengths, budget)
    assert sorted(p for batch in planned for p in batch) == list(range(len(lengths)))
    assert all(planned)


@given(LENGTHS, st.integers(1, 2000))
def test_a_batch_keeps_its_budget_and_little_of_it_is_padding(lengths, budget) -> None:
    for batch in batches.plan_batches(lengths, budget):
        held = [lengths[place] for place in batch]
        padded = len(held) * max(held)
        assert len(batch) == 1 or padded <= budget
        assert padded - sum(held) <= padded / 32


@given(LENGTHS)
def test_the_longest_come_first(lengths: list[int]) -> None:
    planned = batches.plan_batches(lengths, 1000)
    flat = [lengths[place] for batch in planned for place in batch]
    assert flat == sorted(lengths, reverse=True)


def test_windows_of_one_length_fill_the_budget() -> None:
    planned = batches.plan_batches([100] * 25, 1000)
    assert [len(batch) for batch in planned] == [10, 10, 5]
