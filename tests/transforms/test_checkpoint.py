import json
import shutil
from pathlib import Path

import pytest

from transforms import checkpoint


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
