import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from transforms.functional import listed

ENTRIES = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(0, 9),
        st.sampled_from([-0.5, -1.0, -1.0001, -2.0, -np.inf, np.nan, 1e-7]),
    ),
    max_size=30,
    unique_by=lambda entry: entry[:2],
)


def columns(entries: list[tuple[int, int, float]]):
    positions, ids, logprobs = zip(*entries, strict=True) if entries else ((), (), ())
    return (
        np.array(positions, np.int64),
        np.array(ids, np.int64),
        np.array(logprobs, np.float32),
    )


@given(ENTRIES, st.integers(0, 4), st.integers(0, 9), st.integers(0, 11), st.randoms())
def test_the_likeliest_are_those_of_a_stable_sort(
    entries, k, complete, n_ids, random
) -> None:
    doubled = entries + random.sample(entries, len(entries) // 2)
    random.shuffle(doubled)
    ids, logprobs = listed.keep_top_k(
        *columns(doubled), 4, complete=complete, n_ids=n_ids, k=k
    )
    for position in range(4):
        here = [(i, p) for at, i, p in entries if at == position]
        here.sort(key=lambda one: (np.isnan(one[1]), -one[1], one[0]))
        told = [(i, p) for i, p in here[:complete] if i < n_ids and np.isfinite(p)][:k]
        behind = k - len(told)
        assert ids[position].tolist() == [i for i, _ in told] + [-1] * behind
        wanted = [min(p, 0) for _, p in told] + [-np.inf] * behind
        assert_array_equal(logprobs[position], np.array(wanted, np.float32))


@given(ENTRIES, st.lists(st.integers(0, 9), min_size=4, max_size=4))
def test_the_gold_token_is_found_or_said_to_be_missing(entries, gold_ids) -> None:
    told = {(at, i): p for at, i, p in entries}
    found, there = listed.gold_of(*columns(entries), np.array(gold_ids, np.int32))
    for position, gold_id in enumerate(gold_ids):
        wanted = told.get((position, gold_id))
        assert there[position] == (wanted is not None)
        if wanted is not None:
            assert_array_equal(found[position], np.float32(np.minimum(wanted, 0)))
