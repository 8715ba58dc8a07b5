import itertools

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


@given(LENGTHS, st.integers(1, 2000), st.none() | st.integers(1, 600))
def test_packed_batches_hold_each_window_once_and_in_order(lengths, budget, most):
    planned = list(batches.fill_batches(lengths, budget, most))
    assert [p for batch in planned for p in batch] == list(range(len(lengths)))
    for batch in planned:
        held = [lengths[place] for place in batch]
        assert len(batch) == 1 or sum(held) <= budget
        assert len(batch) == 1 or most is None or max(held) <= most


@given(LENGTHS, st.integers(1, 2000))
def test_packed_batches_are_as_full_as_the_next_window_lets_them(lengths, budget):
    planned = list(batches.fill_batches(lengths, budget))
    for batch, following in itertools.pairwise(planned):
        assert sum(lengths[p] for p in batch) + lengths[following[0]] > budget


@given(LENGTHS, st.integers(1, 60), st.none() | st.integers(1, 600))
def test_pools_hold_each_window_once(lengths, budget, most) -> None:
    planned = list(batches.plan_pools(lengths, budget, most))
    assert sorted(p for batch in planned for p in batch) == list(range(len(lengths)))
    for batch in planned:
        held = [lengths[place] for place in batch]
        assert len(batch) == 1 or len(held) * max(held) <= budget
        assert len(batch) == 1 or most is None or max(held) <= most


def test_a_pool_waits_for_no_more_than_the_tokens_of_its_batches() -> None:
    asked: list[int] = []

    def lazily():
        for place in range(1000):
            asked.append(place)
            yield 10

    planned = batches.plan_pools(lazily(), 20)
    assert next(planned) == [0, 1]
    assert len(asked) == 64 * 20 // 10


@given(LENGTHS)
def test_one_pool_is_planned_as_a_whole(lengths: list[int]) -> None:
    assert list(batches.plan_pools(lengths, 10**6)) == batches.plan_batches(
        lengths, 10**6
    )
