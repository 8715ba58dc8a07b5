"""What is taken for the content of a model's files, and what is read for it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import merge, verify
from schemas import files, manifest
from schemas.errors import SchemaError
from tests import merging
from train.merge import checksums
from train.merge.inputs import Input


@pytest.fixture
def made(tmp_path: Path) -> dict[str, str]:
    """Returns a base and two models without manifests."""
    return merging.several(tmp_path / "made", shard="1GB")


@pytest.fixture
def merged(made: dict[str, str], tmp_path: Path) -> Path:
    """Returns a model that FuseBeam wrote."""
    folder = tmp_path / "merged"
    assert merge.merge_models(merging.given(made, str(folder), "linear", **ALONE))
    return folder


ALONE = {"slices": "0"}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Returns the files of weights that are read whole, as they are."""
    checksums._read.cache_clear()
    take, seen = files.checksum, []

    def checksum(path: str) -> str:
        if path.endswith(".safetensors"):
            seen.append(path)
        return take(path)

    monkeypatch.setattr(files, "checksum", checksum)
    return seen


def fingerprint(folder: Path) -> str:
    return Input(name="one", model=str(folder)).fingerprint()


def test_a_manifest_spares_the_reading_of_its_files(
    merged: Path, tmp_path: Path, read: list[str]
) -> None:
    told = fingerprint(merged)
    assert not read
    bare = shutil.copytree(merged, tmp_path / "bare")
    (bare / manifest.NAME).unlink()
    assert fingerprint(bare) == told
    assert read == [str(bare / "model.safetensors")]


@pytest.mark.parametrize("harm", ["longer", "newer"])
def test_a_manifest_is_not_believed_of_what_it_may_not_have_seen(
    harm: str, merged: Path, read: list[str]
) -> None:
    told, path = fingerprint(merged), merged / "model.safetensors"
    was = path.stat().st_mtime_ns
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content + (b"\0" if harm == "longer" else b""))
    if harm == "longer":
        os.utime(path, ns=(was, was))
    assert fingerprint(merged) != told
    assert read == [str(path)]


def test_a_manifest_is_not_believed_of_an_older_file_that_was_put_there(
    merged: Path, tmp_path: Path, read: list[str]
) -> None:
    told, path = fingerprint(merged), merged / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    other = tmp_path / "older"
    other.write_bytes(content)
    os.utime(other, ns=(0, 0))
    os.replace(other, path)
    assert fingerprint(merged) != told
    assert read == [str(path)]


@pytest.mark.parametrize(
    "content",
    [
        b'["a", "list"]',
        b"no JSON",
        b"\xff",
        b'{"schema_version": 1}',
        b'{"schema_version": 1, "files": ["model.safetensors"]}',
        b'{"schema_version": 1, "files": [{"name": "model.safetensors"}]}',
    ],
)
def test_a_manifest_of_others_says_nothing(
    content: bytes, made: dict[str, str], read: list[str]
) -> None:
    told = fingerprint(Path(made["m1"]))
    files.write_bytes(f"{made['m1']}/{manifest.NAME}", content)
    assert fingerprint(Path(made["m1"])) == told
    assert len(read) == 1


def test_models_are_read_once_for_all_merges_of_a_process(
    made: dict[str, str], tmp_path: Path, read: list[str]
) -> None:
    for name in ("one", "two"):
        out = str(tmp_path / name)
        assert merge.merge_models(merging.given(made, out, "linear", **ALONE))
    inputs = [path for path in read if path.startswith(str(tmp_path / "made"))]
    assert len(inputs) == 3


def test_verifying_reads_models_whatever_their_manifests_say(
    made: dict[str, str], merged: Path, tmp_path: Path
) -> None:
    out, path = str(tmp_path / "out"), merged / "model.safetensors"
    told = merging.given({**made, "m2": str(merged)}, out, "linear", **ALONE)
    assert merge.merge_models(told)
    verify.verify([out])
    was, content = path.stat().st_mtime_ns, bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(was, was))
    with pytest.raises(SchemaError, match="must be made of the m2 now in"):
        verify.verify([out])
