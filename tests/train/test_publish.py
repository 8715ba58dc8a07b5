import errno
import os
from pathlib import Path

import pytest

from schemas import files, manifest
from schemas.errors import SchemaError
from train import publish
from train.config import TrainConfig


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "runs").mkdir(parents=True)
    for name in (manifest.NAME, "a.safetensors", "runs/events"):
        (folder / name).write_text(name)
    return folder


def test_what_a_model_replaces_comes_back_where_its_name_cannot_be_had(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.safetensors").write_text("old")
    rename = os.rename

    def refuse(source: Path, target: Path) -> None:
        if Path(source) == model:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        with pytest.raises(OSError, match="cross-device"):
            publish.publish(model, str(out))
    assert (out / "a.safetensors").read_text() == "old"
    publish.publish(model, str(out))
    assert (out / "a.safetensors").read_text() == "a.safetensors"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_remote_model_holds_what_the_folder_holds_and_nothing_else(
    model: Path,
) -> None:
    files.write_bytes("memory://published/model/old.safetensors", b"")
    files.write_bytes(f"memory://published/model/{manifest.NAME}", b"old")
    publish.publish(model, "memory://published/model")
    assert [p.rpartition("model/")[2] for p in files.tree("memory://published")] == [
        "a.safetensors",
        manifest.NAME,
        "runs/events",
    ]
    told = files.read_bytes(f"memory://published/model/{manifest.NAME}")
    assert told == manifest.NAME.encode()


def test_a_model_on_its_way_is_no_model_and_is_sent_again(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = "memory://interrupted/model"
    files.write_bytes(f"{out}/{manifest.NAME}", b"old")

    def stopped(source: str, target: str) -> None:
        if target.endswith(manifest.NAME):
            raise KeyboardInterrupt
        files.write_bytes(target, files.read_bytes(source))

    with monkeypatch.context() as patch:
        patch.setattr("schemas.copies.copy", stopped)
        with pytest.raises(KeyboardInterrupt):
            publish.publish(model, out)
    assert files.names(out) == ["a.safetensors"]
    assert not publish.finished(out, {}, overwrite=False)
    publish.publish(model, out)
    assert files.names(out) == ["a.safetensors", manifest.NAME]


def test_a_remote_folder_of_others_is_left_alone() -> None:
    files.write_bytes("memory://others/model/letter.txt", b"x")
    with pytest.raises(SchemaError, match="must be a new folder"):
        publish.finished("memory://others/model", {}, overwrite=False)


@pytest.mark.parametrize(
    "places",
    [
        {"output": "s3://b/model"},
        {"output": "m", "checkpoints": "gs://b/c"},
        {"output": "s3://b/model", "checkpoints": "s3://b/c"},
    ],
)
def test_checkpoints_must_lie_on_a_disk(places: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"checkpoints must .* disk.*--checkpoints="):
        TrainConfig(data="d", model="m", **places)  # type: ignore[arg-type]
