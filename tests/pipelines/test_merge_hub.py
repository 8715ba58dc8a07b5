"""Models of the hub that are merged; the hub is a stub."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import NotASafetensorsRepoError
from huggingface_hub.utils import (
    SafetensorsFileMetadata,
    SafetensorsRepoMetadata,
    TensorInfo,
)

from pipelines import cli, merge, verify
from schemas import files, manifest
from tests import merging
from tests.merging import SMALL, Made, run
from train.merge import plan, work


def test_a_model_of_the_hub_is_read_at_one_commit(
    made: Made, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, asked = shutil.copytree(made["m1"], tmp_path / "0123abc"), []

    def download(name: str, *, revision: str | None, allow_patterns: object) -> str:
        asked.append((name, revision))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    run({**made, "m1": "org/m1"}, out, "linear")
    assert asked[0] == ("org/m1", None)
    assert set(asked[1:]) == {("org/m1", "0123abc")}
    told = (Path(out) / "README.md").read_text()
    assert "| m1 | org/m1@0123abc |" in told
    assert '"m1" = "org/m1@0123abc"' in told
    found = manifest.read(out, work.STAGE)
    assert found.origins["models"]["m1"] == "org/m1@0123abc"
    _, left = verify.between([out])
    assert left == [f"{out} was not compared with m1: org/m1@0123abc is of the hub"]
    asked.clear()
    run({**made, "m1": "org/m1@0123abc"}, out, "linear")
    assert set(asked) == {("org/m1", "0123abc")}
    plainly = merging.plainly(made, "linear", {}, ["m1", "m2"])
    assert merging.same(merging.state(out), plainly)


@contextlib.contextmanager
def hub_that_stays(snapshot: Path) -> Iterator[None]:
    """Fetches nothing anew, so that files keep their times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: snapshot)
        yield


@pytest.fixture
def hub(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, list[str]]:
    """Returns the cache of a hub that holds m1, and the files that are fetched."""
    snapshot, fetched = tmp_path / "0123abc", []
    snapshot.mkdir()

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert name == "org/m1"
        for path in sorted(Path(made["m1"]).iterdir()):
            if any(path.match(pattern) for pattern in allow_patterns):
                fetched.append(path.name)
                shutil.copy(path, snapshot)
        return str(snapshot)

    def told(name: str, *, revision: str) -> Any:
        assert (name, revision) == ("org/m1", "0123abc")
        found = {}
        for path in Path(made["m1"]).glob("model-*.safetensors"):
            size = int.from_bytes(path.read_bytes()[:8], "little")
            tensors = json.loads(path.read_bytes()[8 : 8 + size])
            metadata = tensors.pop("__metadata__")
            listed = {key: TensorInfo(**entry) for key, entry in tensors.items()}
            found[path.name] = SafetensorsFileMetadata(metadata, listed)
        return SafetensorsRepoMetadata(None, True, {}, found)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.get_safetensors_metadata", told)
    return snapshot, fetched


def test_showing_fetches_no_weights_of_the_hub(
    made: Made, hub: tuple[Path, list[str]], out: str, tmp_path: Path, capsys: Any
) -> None:
    shown = []
    for place in (made["m1"], "org/m1"):
        given = merging.table({**made, "m1": place}, out, method="ties", **SMALL)
        path = merging.recipe(tmp_path, given)
        assert cli.main(["merge", path, "--show"]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert "config.json" in hub[1]
    assert not [name for name in hub[1] if name.endswith(".safetensors")]


def test_the_hub_is_asked_for_headers_that_are_not_here_and_named_if_it_fails(
    made: Made, hub: tuple[Path, list[str]], out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(name: str, *, revision: str) -> None:
        raise NotASafetensorsRepoError("no such files")

    monkeypatch.setattr("huggingface_hub.get_safetensors_metadata", silent)
    given = merging.given({**made, "m1": "org/m1"}, out, "ties", show=True)
    told = r"headers of org/m1@0123abc, .* \(NotASafetensorsRepoError: no such files\)"
    with pytest.raises(FileNotFoundError, match=told):
        merge.plan_merge(given)
    for path in Path(made["m1"]).glob("model-*"):
        shutil.copy(path, hub[0])
    assert merge.plan_merge(given).shards


def test_every_worker_may_have_its_own_copy_of_a_model_of_the_hub(
    made: Made, hub: tuple[Path, list[str]], out: str
) -> None:
    given = merging.given({**made, "m1": "org/m1"}, out, "linear", **SMALL)
    found = merge.plan_merge(given)
    files.write_bytes(f"{out}/{plan.NAME}", b"")
    (task,) = merge._works(given.config, found, "identity")
    for path in hub[0].glob("model-*"):  # the cache of another container, same host
        os.utime(path, ns=(0, 0))
    with hub_that_stays(hub[0]):
        task.make(plan.to_line(found.shards[0]))
    assert (Path(out) / found.shards[0].file).exists()
