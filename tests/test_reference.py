import gzip
import json

import pytest

from tests import reference


def write(folder, content):
    (folder / "loss.json.gz").write_bytes(gzip.compress(json.dumps(content).encode()))


@pytest.mark.parametrize("name", ["alignment", "merge"])
def test_the_golden_files_hold_cases(name, monkeypatch):
    monkeypatch.delenv("FUSEBEAM_REFERENCE", raising=False)
    assert reference.cases(name)


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
