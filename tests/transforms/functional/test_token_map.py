import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_array_equal

from schemas.errors import SchemaError
from tests.transforms.functional.toys import toy
from transforms.functional import counterparts, token_map

SOURCE = toy("ab", " a", b"\xff", None, "b", fingerprint="source")
TARGET = toy("a", "b", b"\xfe", " ", fingerprint="target")
ASKED = {
    "source_fingerprint": "source",
    "target_fingerprint": "target",
    "strategy": "mined",
}


def saved() -> io.BytesIO:
    file = io.BytesIO()
    made = counterparts.build_mined(SOURCE, TARGET)
    token_map.save_map(made, file, source=SOURCE, target=TARGET)
    file.seek(0)
    return file


def test_a_map_reads_back_as_it_was_written_and_always_as_the_same_bytes():
    made = counterparts.build_mined(SOURCE, TARGET)
    assert saved().getvalue() == saved().getvalue()
    found = token_map.load_map(saved(), **ASKED)
    for name in ("target_ids", "distances", "how"):
        assert_array_equal(getattr(found, name), getattr(made, name))
    assert (found.target_size, found.counts) == (6, None)


def test_a_file_shows_people_both_tokens():
    rows = pq.read_table(saved()).to_pylist()
    assert rows[2] == {
        "source_id": 2,
        "source_token": "ab",
        "target_id": 2,
        "target_token": "a",
        "distance": 1,
        "how": "edit",
    }
    assert rows[4]["source_token"] == "\\xff"
    assert rows[5] == dict.fromkeys(rows[5]) | {"source_id": 5, "how": "none"}
    assert rows[0]["how"] == "role"
    assert rows[0]["distance"] is None


def test_ids_of_any_shape_translate_and_padding_has_no_target():
    made = counterparts.build_mined(SOURCE, TARGET)
    ids = np.array([[6, 2, -1], [5, 0, 151_935]], np.int32)
    assert made.translate(ids).tolist() == [[3, 2, -1], [-1, 0, -1]]
    assert made.translate(ids).dtype == np.int32


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"source_fingerprint": "new"}, "source_fingerprint .* 'new', got 'source'"),
        ({"target_fingerprint": "new"}, "target_fingerprint .* 'new', got 'target'"),
        ({"strategy": "first"}, "strategy .* 'first', got 'mined'"),
        ({"counts": "new"}, "counts .* 'new', got ''"),
    ],
)
def test_another_map_is_refused_by_name_with_the_cure(asked, message):
    with pytest.raises(SchemaError, match=f"{message}.*--overwrite"):
        token_map.load_map(saved(), **{**ASKED, **asked})


def test_another_version_is_refused_by_name():
    table = pq.read_table(saved())
    other = {**table.schema.metadata, b"format": b"fusebeam.token_map.2"}
    file = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(other), file)
    file.seek(0)
    with pytest.raises(SchemaError, match=r"token_map.1', got 'fusebeam.token_map.2'"):
        token_map.load_map(file, **ASKED)


def test_a_file_of_other_columns_is_refused():
    file = io.BytesIO()
    pq.write_table(pq.read_table(saved()).drop_columns("how"), file)
    file.seek(0)
    with pytest.raises(SchemaError, match="must have a column 'how'"):
        token_map.load_map(file, **ASKED)


def test_a_file_that_is_no_map_is_refused(tmp_path):
    path = tmp_path / "map.parquet"
    path.write_bytes(b"PAR1 but nothing more PAR1")
    with pytest.raises(SchemaError, match="must be a Parquet file"):
        token_map.load_map(str(path), **ASKED)
    with pytest.raises(FileNotFoundError):
        token_map.load_map(str(tmp_path / "none.parquet"), **ASKED)


@pytest.mark.parametrize("ids", [[5], [-2]])
def test_target_ids_beyond_the_target_are_refused(ids):
    with pytest.raises(SchemaError, match=r"must be in \[-1, 5\)"):
        token_map.TokenMap(
            source_fingerprint="source",
            target_fingerprint="target",
            target_size=5,
            strategy="first",
            counts=None,
            target_ids=np.array(ids, np.int32),
            distances=np.zeros(1, np.int32),
            how=np.zeros(1, np.uint8),
        )
