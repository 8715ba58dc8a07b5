import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from schemas import files
from schemas.errors import SchemaError
from transforms import checkpoint, parameters


@pytest.fixture(params=["llama", "neox"])
def folder(
    request: pytest.FixtureRequest, models: dict[str, str], tmp_path: Path
) -> Path:
    return Path(shutil.copytree(models[request.param], tmp_path / "copy"))


def elements(folder: Path) -> int:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return sum(parameter.numel() for parameter in model.parameters())


def test_headers_tell_what_the_loaded_model_has(folder: Path) -> None:
    found = parameters.count(str(folder))
    assert found.count == elements(folder)
    assert found.stored_bytes == 4 * found.count
    assert found.source == "weights' headers"


def test_the_configuration_alone_tells_the_same(folder: Path) -> None:
    with_weights = parameters.count(str(folder))
    (folder / "model.safetensors").unlink()
    found = parameters.count(str(folder))
    assert (found.count, found.source) == (with_weights.count, "config.json")
    assert found.stored_bytes == with_weights.stored_bytes


def test_a_part_of_the_weights_is_not_taken_for_all(folder: Path) -> None:
    whole = parameters.count(str(folder))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="50KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert parameters.count(str(folder)).source == whole.source
    shards[0].unlink()
    found = parameters.count(str(folder))
    assert (found.count, found.source) == (whole.count, "config.json")


def test_a_model_that_was_fetched_in_part_is_counted_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = ["config.json", "model.safetensors"]
    monkeypatch.setattr(
        checkpoint, "fetch", lambda *_: checkpoint.Checkpoint(folder=folder)
    )
    monkeypatch.setattr(files, "names", lambda _: held)
    assert parameters.count("s3://b/model").source == "weights' headers"
    held.append("model-00002-of-00002.safetensors")
    assert parameters.count("s3://b/model").source == "config.json"


def test_a_gguf_file_tells_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("a", np.zeros((3, 5), np.float32))
    writer.add_tensor("b", np.zeros(7, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = parameters.count(str(path))
    assert (found.count, found.stored_bytes) == (22, 74)


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, b"\x04" + b"\0" * 7 + b"[1]"])
def test_a_broken_header_is_named(content: bytes, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(SchemaError, match=r"model\.safetensors must be a whole"):
        parameters.count(str(folder))


def test_a_folder_that_tells_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"must hold config\.json or weights"):
        parameters.count(str(tmp_path))
