import subprocess
import sys
import tracemalloc
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import SchemaError
from transforms.functional import splits

words = st.lists(st.sampled_from([f"w{n}" for n in range(40)]), max_size=60)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "base",
        "base=1.1",
        "base=x",
        "Base=1",
        "base=.5",
        "a=.5,a=.5",
        "a=nan,b=1",
        "a=0,b=1",
        "a=1,",
    ],
)
def test_splits_that_do_not_read_as_shares_of_one_are_refused(text):
    with pytest.raises(ValueError, match="split"):
        splits.parse_splits(text)


def test_splits_keep_their_order_and_shares():
    shares = splits.parse_splits("base=.5, fusion=.3,dev=.1,heldout=.1")
    assert list(shares) == ["base", "fusion", "dev", "heldout"]
    assert list(shares.values()) == [0.5, 0.3, 0.1, 0.1]


def test_documents_fall_into_splits_by_their_shares():
    shares = splits.parse_splits("base=.5,fusion=.3,dev=.2")
    drawn = [splits.assign_split(f"document {n}", shares) for n in range(20_000)]
    for name, share in shares.items():
        # five standard deviations of a binomial share
        assert abs(drawn.count(name) / 20_000 - share) < 5 * 0.5 / 20_000**0.5


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_case_and_white_space_do_not_change_the_split(text):
    shares = {"a": 0.5, "b": 0.5}
    respaced = "\n" + "  ".join(text.lower().split()) + " "
    assert splits.assign_split(respaced, shares) == splits.assign_split(
        splits.normalize_text(text), shares
    )


def test_shingles_and_splits_agree_between_processes():
    code = (
        "from transforms.functional import splits;"
        "print(splits.shingles('a b ' * 20).tolist(), splits.assign_split('x',"
        "{'a': .5, 'b': .5}))"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


@given(words)
def test_equal_runs_of_words_and_only_they_share_a_shingle(document):
    hashes = splits.shingles(" ".join(document), 3)
    runs = {tuple(document[at : at + 3]) for at in range(len(document) - 2)}
    assert len(hashes) == max(len(runs), 1)
    assert (np.diff(hashes.astype(object)) > 0).all()


def test_order_of_words_counts():
    one, other = (splits.shingles(text, 2) for text in ("a b", "b a"))
    assert one.tolist() != other.tolist()


def test_short_documents_are_one_shingle():
    assert len(splits.shingles("just a few words")) == 1
    assert splits.shingles("Just a  few words").tolist() == (
        splits.shingles("just a few words").tolist()
    )
    assert splits.shingles("").shape == (1,)


def test_punctuation_does_not_hide_a_copy():
    plain = "one two three four five six seven eight nine ten eleven twelve thirteen"
    assert (
        splits.shingles(plain.replace(" ", ", ")).tolist()
        == splits.shingles(plain).tolist()
    )


def test_scripts_without_spaces_have_a_shingle_for_each_run_of_characters():
    assert len(splits.shingles("敏捷的棕色狐狸跳过了懒狗又跑回家")) == 4


@given(st.lists(words, min_size=1, max_size=4), words)
def test_overlap_is_the_share_of_sets(protected, document):
    rows = [splits.shingles(" ".join(one), 2) for one in protected]
    own = splits.shingles(" ".join(document), 2)
    found = splits.ProtectedIndex.build(rows).overlap(own)
    sets = [set(row.tolist()) for row in rows]
    mine = set(own.tolist())
    assert found.own_share == pytest.approx(len(mine & set.union(*sets)) / len(mine))
    assert found.protected_share == pytest.approx(
        max(len(mine & one) / len(one) for one in sets)
    )


def text_of(first: int, last: int) -> str:
    return " ".join(f"word{n}" for n in range(first, last))


def test_a_document_that_holds_half_of_a_protected_one_is_near():
    index = splits.ProtectedIndex.build([splits.shingles(text_of(0, 100))])
    quote = text_of(1000, 2000) + " " + text_of(0, 60)
    assert index.overlap(splits.shingles(quote)).is_near_copy
    brief = text_of(1000, 2000) + " " + text_of(0, 40)
    assert not index.overlap(splits.shingles(brief)).is_near_copy


def test_a_document_made_of_pieces_of_protected_ones_is_near():
    index = splits.ProtectedIndex.build(
        splits.shingles(text_of(at, at + 400)) for at in (0, 1000, 2000)
    )
    mixed = " ".join(text_of(at, at + 50) for at in (0, 1000, 2000))
    found = index.overlap(splits.shingles(mixed))
    assert found.own_share >= 0.5 > found.protected_share
    assert found.is_near_copy


def test_an_empty_index_is_near_nothing():
    index = splits.ProtectedIndex.build([])
    assert not index.overlap(splits.shingles("a b c")).is_near_copy


def test_an_index_that_contradicts_itself_is_refused():
    hashes = np.array([2, 1], np.uint64)
    numbers, sizes = np.zeros(2, np.int32), np.array([2], np.int64)
    with pytest.raises(SchemaError, match="rise"):
        splits.ProtectedIndex(hashes=hashes, documents=numbers, sizes=sizes)
    with pytest.raises(SchemaError, match="count"):
        splits.ProtectedIndex(hashes=hashes[::-1], documents=numbers, sizes=sizes + 1)


def test_long_documents_need_few_times_their_size():
    text = " ".join(f"word{n * 7919 % 50021}" for n in range(300_000))
    splits.shingles(text[:1000])
    tracemalloc.start()
    try:
        splits.shingles(text)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 9 * len(text)


@given(st.text(alphabet="aB \n\u00a0\u2028\x1cﬁ世", max_size=60), st.integers(1, 9))
def test_work_in_parts_changes_nothing(text, size):
    normal = splits.normalize_text(text)
    whole = splits.shingles(text, n_words=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "_PART_CHARACTERS", size)
        patch.setattr(splits, "_PART_WORDS", size)
        assert splits.normalize_text(text) == normal
        np.testing.assert_array_equal(splits.shingles(text, n_words=2), whole)
    plain = unicodedata.normalize("NFKC", text).lower()
    assert normal == " ".join(plain.split())
