import gzip
import json

import pytest

from tests import reference


def write(folder, content):
    (folder / "loss.json.gz").write_bytes(gzip.compress(json.dumps(content).encode()))


@pytest.mark.reference
@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("alignment", None),
        ("loss", "fusellm"),
        ("loss", "fusechat"),
        ("loss", "sce"),
        ("merge", None),
    ],
)
def test_the_folder_that_is_named_holds_every_kind_of_case(name, part):
    assert reference.cases(name, part)


def test_another_folder_is_read_where_the_environment_names_one(tmp_path, monkeypatch):
    write(tmp_path, {"sce": [1, 2]})
    monkeypatch.setenv("FUSEBEAM_REFERENCE", str(tmp_path))
    assert reference.cases("loss", "sce") == [1, 2]


def test_an_absent_file_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSEBEAM_REFERENCE", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        reference.cases("alignment")


def test_an_empty_list_fails(tmp_path, monkeypatch):
    write(tmp_path, {"sce": []})
    monkeypatch.setenv("FUSEBEAM_REFERENCE", str(tmp_path))
    with pytest.raises(ValueError, match="at least one case"):
        reference.cases("loss", "sce")
