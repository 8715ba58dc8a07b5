import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import SchemaError
from transforms.functional import cooccurrence
from transforms.functional.cooccurrence import Counts, Tokens


def tokens(text: str, *pieces: str, controls: tuple[int, ...] = ()) -> Tokens:
    """Makes a tokenization: BOS (0), the pieces by id from 2 on, and EOS (1)."""
    assert "".join(pieces) == text
    numbers = {piece: 2 + i for i, piece in enumerate(dict.fromkeys(pieces))}
    ends = np.cumsum([0, *(len(piece.encode()) for piece in pieces), 0])
    mask = np.zeros(2 + len(numbers), np.bool_)
    mask[[0, 1, *controls]] = True
    return Tokens(
        token_ids=np.array([0, *(numbers[piece] for piece in pieces), 1], np.int32),
        byte_ends=ends.astype(np.int32),
        controls=mask,
    )


def table(counts: Counts) -> dict[tuple[int, int], int]:
    columns = (counts.source_ids, counts.target_ids, counts.counts)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {(source, target): count for source, target, count in rows}


def counted(text: str, source: Tokens, target: Tokens) -> dict[tuple[int, int], int]:
    pairs = cooccurrence.find_pairs(text.encode(), source, target)
    return table(cooccurrence.tally([pairs]))


def test_the_picture_of_the_module_holds():
    text = "unbelievable"
    found = counted(
        text,
        tokens(text, "un", "believ", "able"),
        tokens(text, "unbeliev", "able"),
    )
    assert found == {(2, 2): 1, (3, 2): 1, (4, 3): 1}


def test_a_source_id_counts_once_at_a_target_position():
    assert counted("aa", tokens("aa", "a", "a"), tokens("aa", "aa")) == {(2, 2): 1}


def test_a_source_token_counts_at_every_target_position_it_spans():
    assert counted("aa", tokens("aa", "aa"), tokens("aa", "a", "a")) == {(2, 2): 2}


def test_a_space_in_front_does_not_count_as_a_letter():
    text = "a b"
    found = counted(text, tokens(text, "a", " b"), tokens(text, "a", " ", "b"))
    assert found == {(2, 2): 1, (3, 4): 1, (2, 3): 1}


def test_control_tokens_are_aligned_and_not_counted():
    text = "<s>a"
    plain, control = (tokens(text, "<s>", "a", controls=c) for c in ((), (2,)))
    assert counted(text, plain, plain) == {(2, 2): 1, (3, 3): 1}
    assert counted(text, plain, control) == {(3, 3): 1}
    assert counted(text, control, plain) == {(3, 3): 1}


rows = st.dictionaries(
    st.tuples(st.integers(0, 3), st.integers(0, 2**31 - 1)), st.integers(1, 9)
)


def counts_of(found: dict[tuple[int, int], int]) -> Counts:
    ordered = sorted(found)
    return Counts(
        source_ids=np.array([s for s, _ in ordered], np.int32),
        target_ids=np.array([t for _, t in ordered], np.int32),
        counts=np.array([found[pair] for pair in ordered], np.int64),
    )


@given(st.lists(rows, max_size=5))
def test_sums_are_those_of_every_pair_in_any_order(parts):
    wanted: dict[tuple[int, int], int] = {}
    for pair, count in itertools.chain.from_iterable(p.items() for p in parts):
        wanted[pair] = wanted.get(pair, 0) + count
    for each in (parts, parts[::-1]):
        assert table(cooccurrence.add(map(counts_of, each))) == wanted


@pytest.mark.parametrize(
    ("targets", "counts"), [([2, 1], [1, 1]), ([1, 1], [1, 1]), ([1, 2], [1, 0])]
)
def test_pairs_out_of_order_or_without_a_count_are_refused(targets, counts):
    with pytest.raises(SchemaError, match="must rise"):
        Counts(
            source_ids=np.zeros(2, np.int32),
            target_ids=np.array(targets, np.int32),
            counts=np.array(counts, np.int64),
        )
