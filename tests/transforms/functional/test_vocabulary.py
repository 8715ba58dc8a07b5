import io

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from schemas.errors import SchemaError
from tests.transforms.functional.toys import toy
from transforms.functional import vocabulary


def seqs(pairs: vocabulary.VocabularyMap) -> list[list[int]]:
    return [pairs.seq(s).tolist() for s in range(pairs.source_size)]


def starts(pairs: vocabulary.VocabularyMap) -> list[list[int]]:
    return [pairs.start_seq(s).tolist() for s in range(pairs.source_size)]


def source_of(*pieces, **roles):
    return toy(*pieces, fingerprint="source", **roles)


def test_same_bytes_map_to_that_token_and_others_to_the_targets_own_tokens():
    target = toy("a", "b", "ab", "aba")
    pairs = vocabulary.build_map(source_of("ab", "abab", "b"), target)
    assert seqs(pairs)[2:] == [[4], [5, 3], [3]]


def test_a_token_of_the_same_bytes_wins_even_where_the_target_would_split_them():
    target = toy("a", "b", "ab")
    target.encode_middle_batch = lambda texts: [[2, 3] for _ in texts]
    assert seqs(vocabulary.build_map(source_of("ab"), target))[2:] == [[4]]


def test_equal_fingerprints_are_the_identity_for_every_id():
    same = toy("a", None, "b", fingerprint="source")
    pairs = vocabulary.build_map(same, source_of("a", None, "b"))
    assert seqs(pairs) == [[0], [1], [2], [3], [4]]
    assert same.encoded == []


def test_the_token_that_the_target_would_write_beats_a_fallback_of_the_same_bytes():
    # ids 2 and 3 are fallbacks of "a" and of a byte that is no text; 4 is "a" itself
    target = toy(b"a", b"\xe4", "a")
    target.encode_middle_batch = lambda texts: [[4] for _ in texts]
    assert seqs(vocabulary.build_map(source_of("a", b"\xe4"), target))[2:] == [[4], [3]]


def test_among_equal_bytes_that_the_target_never_writes_the_lowest_id_wins():
    target = toy(b"\xe4", b"\xe4")
    assert seqs(vocabulary.build_map(source_of(b"\xe4"), target))[2:] == [[2]]


def test_bytes_that_are_not_text_become_their_beginning_and_single_bytes():
    target = toy("a", "b", "ab", b"\xe4", b"\xb8")
    pairs = vocabulary.build_map(source_of(b"ab\xe4\xb8", b"\xb8a", b"a\xff"), target)
    assert seqs(pairs)[2:] == [[4, 5, 6], [6, 2], []]


def test_control_tokens_map_by_role_and_never_by_spelling():
    source = source_of("a", None, None, "<s>", pad_id=3, unk_id=None)
    target = toy("a", None, None, "<s>", "b", bos_id=3, eos_id=4, pad_id=None, unk_id=0)
    pairs = vocabulary.build_map(source, target)
    assert seqs(pairs) == [[3], [4], [2], [], [], [5]]


def test_one_token_for_begin_and_end_means_the_end():
    source = source_of("a", bos_id=1, eos_id=1, pad_id=1)
    assert seqs(vocabulary.build_map(source, toy("a", pad_id=0)))[1] == [1]
    no_eos = vocabulary.build_map(source, toy("a", eos_id=None))
    assert seqs(no_eos)[1] == [0]


def test_a_dummy_prefix_of_the_source_stands_for_nothing_at_the_start():
    source = source_of(" a", "a", " ", has_dummy_prefix=True)
    target = toy("a", " a", " ", "b")
    pairs = vocabulary.build_map(source, target)
    assert seqs(pairs)[2:] == [[3], [2], [4]]
    assert starts(pairs) == [[0], [1], [2], [2], []]


def test_a_dummy_prefix_of_the_target_is_written_at_the_start():
    target = toy("a", " a", " ", "b", has_dummy_prefix=True)
    pairs = vocabulary.build_map(source_of("a", " a", "b"), target)
    assert seqs(pairs)[2:] == [[2], [3], [5]]
    assert starts(pairs)[2:] == [[3], [4, 3], [4, 5]]


@pytest.mark.parametrize("both", [False, True])
def test_the_start_needs_no_table_of_its_own_where_both_begin_alike(both):
    target = toy("a", has_dummy_prefix=both)
    pairs = vocabulary.build_map(source_of("a", has_dummy_prefix=both), target)
    assert pairs.start_offsets is None
    assert starts(pairs) == seqs(pairs)


def test_the_bytes_of_source_tokens_are_kept():
    pairs = vocabulary.build_map(source_of("ab", b"\xff", None), toy("a", "b"))
    offsets, flat = pairs.text
    assert offsets.tolist() == [0, 0, 0, 2, 3, 3]
    assert flat.tobytes() == b"ab\xff"


@pytest.mark.parametrize("dummy", [False, True])
def test_a_map_reads_back_as_it_was_written_and_always_as_the_same_bytes(dummy):
    target = toy("a", "b", " ", fingerprint="target", has_dummy_prefix=dummy)
    built = vocabulary.build_map(source_of("ab", "a", b"\xff", None), target)
    files = io.BytesIO(), io.BytesIO()
    for file in files:
        vocabulary.save_map(built, file)
    assert files[0].getvalue() == files[1].getvalue()
    files[0].seek(0)
    found = vocabulary.load_map(
        files[0], source_fingerprint="source", target_fingerprint="target"
    )
    assert found.target_size == built.target_size
    assert (found.start_offsets is not None) == dummy
    for name in ("mid", "start", "text"):
        for one, other in zip(getattr(found, name), getattr(built, name), strict=True):
            assert_array_equal(one, other)


def test_a_map_of_other_tokenizers_is_refused_by_name(tmp_path):
    path = str(tmp_path / "map.parquet")
    vocabulary.save_map(vocabulary.build_map(source_of("a"), toy("a", "b")), path)
    with pytest.raises(
        SchemaError, match=r"target_fingerprint .* must be 'new', got 'toy' in /"
    ):
        vocabulary.load_map(path, source_fingerprint="source", target_fingerprint="new")
    with pytest.raises(
        SchemaError, match=r"source_fingerprint .* must be 'new', got 'sou"
    ):
        vocabulary.load_map(path, source_fingerprint="new", target_fingerprint="toy")


def test_a_file_that_is_no_map_is_refused(tmp_path):
    path = tmp_path / "map.parquet"
    path.write_bytes(b"PAR1 but nothing more PAR1")
    with pytest.raises(SchemaError, match="must be a Parquet file"):
        vocabulary.load_map(str(path), source_fingerprint="s", target_fingerprint="t")


def test_target_ids_beyond_the_target_are_refused():
    with pytest.raises(SchemaError, match=r"must be in \[0, 2\), got 2 to 2"):
        vocabulary.VocabularyMap(
            source_fingerprint="s",
            target_fingerprint="t",
            target_size=2,
            offsets=np.array([0, 1]),
            ids=np.array([2], np.int32),
            start_offsets=None,
            start_ids=None,
            byte_offsets=np.array([0, 0]),
            flat_bytes=np.zeros(0, np.uint8),
        )
