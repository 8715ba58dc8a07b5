import dataclasses
import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch

from schemas import weights
from transforms import causal, checkpoint, loading, scorer
from transforms.scorer import ScorerSettings


@pytest.fixture
def folder(models: dict[str, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(models["llama"], tmp_path / "copy"))


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_copy_has_the_same_fingerprint(models, folder: Path) -> None:
    assert checkpoint.fingerprint(str(folder)) == checkpoint.fingerprint(
        models["llama"]
    )


def test_one_bit_of_a_weight_changes_the_fingerprint(folder: Path) -> None:
    before = checkpoint.fingerprint(str(folder))
    flip_last_byte(folder / "model.safetensors")
    assert checkpoint.fingerprint(str(folder)) != before


def test_the_configuration_changes_the_fingerprint_its_writer_does_not(folder: Path):
    before = checkpoint.fingerprint(str(folder))
    config = json.loads((folder / "config.json").read_text())
    config["transformers_version"] = "0"
    (folder / "config.json").write_text(json.dumps(config))
    assert checkpoint.fingerprint(str(folder)) == before
    config["rms_norm_eps"] = 0.5
    (folder / "config.json").write_text(json.dumps(config))
    assert checkpoint.fingerprint(str(folder)) != before


def test_the_files_that_an_index_lists_are_the_model(folder: Path) -> None:
    before = checkpoint.fingerprint(str(folder))
    listed = "model-of-another-name.safetensors"
    shutil.copy(folder / "model.safetensors", folder / listed)
    stray = folder / "model-stray.safetensors"
    shutil.copy(folder / "model.safetensors", stray)
    (folder / "model.safetensors").unlink()
    keys = weights.read_header(str(folder / listed)).places
    index = folder / weights.INDEX
    index.write_text(json.dumps({"weight_map": dict.fromkeys(keys, listed)}))
    indexed = checkpoint.fingerprint(str(folder))
    assert indexed != before
    flip_last_byte(stray)
    assert checkpoint.fingerprint(str(folder)) == indexed
    # Transformers loads it whatever the index says.
    shutil.copy(stray, folder / "model.safetensors")
    assert checkpoint.fingerprint(str(folder)) != indexed
    (folder / listed).unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"index\.json lists, but lacks {listed}"
    ):
        checkpoint.fingerprint(str(folder))


def test_a_gguf_file_is_its_own_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" * 9)
    before = checkpoint.fingerprint(str(path))
    assert checkpoint.locate(str(path)).gguf_file == "m.gguf"
    flip_last_byte(path)
    assert checkpoint.fingerprint(str(path)) != before


def test_a_folder_without_weights_or_configuration_is_refused(folder: Path) -> None:
    (folder / "config.json").rename(folder / "other.json")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        checkpoint.fingerprint(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights"):
        checkpoint.locate(str(folder))


@pytest.mark.parametrize("name", ["./none", "/none", "a/b/c", "none.gguf", "~/none"])
def test_a_path_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=name):
        checkpoint.locate(name)


def test_a_revision_is_what_the_hub_is_asked_for(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot(model: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert model == "maker/model"
        place = tmp_path / (revision or "newest")
        made = models["neox" if revision == "older" else "llama"]
        shutil.copytree(made, place, dirs_exist_ok=True)
        return str(place)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    hub = ScorerSettings(model="maker/model")
    assert scorer.pinned(hub).revision == "newest"
    assert checkpoint.locate("maker/model", revision="older").commit == "older"
    newest, older = (
        scorer.fingerprint_of(dataclasses.replace(hub, revision=revision))
        for revision in (None, "older")
    )
    assert newest != older
    cpu = causal.choose_device("cpu")
    kinds = [
        loading.load_model(
            "maker/model", dtype=torch.float32, device=cpu, revision=revision
        ).config.model_type
        for revision in (None, "older")
    ]
    assert kinds == ["llama", "gpt_neox"]
