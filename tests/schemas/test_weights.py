import dataclasses
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save_file

from schemas import files, weights
from schemas.errors import FusionError, SchemaError


@pytest.fixture
def folder(tmp_path: Path) -> str:
    tensors = {
        "b": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "a": torch.arange(5, dtype=torch.bfloat16),
        "none": torch.zeros(0, 4),
        "one": torch.tensor(7),
    }
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    return str(tmp_path)


def test_every_tensor_is_found_as_the_format_s_own_reader_finds_it(folder: str) -> None:
    found = weights.read_weights(folder)
    with safe_open(f"{folder}/model.safetensors", "pt") as file:
        assert set(found.places) == set(file.keys())
        for key, place in found.places.items():
            assert place.shape == tuple(file.get_tensor(key).shape)
    raw = weights.read_bytes(folder, found.places["b"], *found.stamps.values())
    assert torch.frombuffer(raw, dtype=torch.float32).tolist() == [0, 1, 2, 3, 4, 5]


def test_a_file_laid_out_beforehand_is_read_by_the_format_s_own_reader() -> None:
    numbers = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    halves = torch.arange(3, dtype=torch.bfloat16)
    laid = [("x", "F32", (2, 3)), ("y", "BF16", (3,))]
    head = weights.plan_header(laid, "print")
    assert len(head) % 8 == 0
    parts = [numbers.numpy().tobytes(), halves.view(torch.uint8).numpy().tobytes()]
    found = load(head + b"".join(parts))
    assert torch.equal(found["x"], numbers)
    assert torch.equal(found["y"], halves)


def test_a_file_is_done_where_its_fingerprint_says_so(tmp_path: Path) -> None:
    path = str(tmp_path / "model.safetensors")
    assert not weights.is_done(path, "mine")
    files.write_bytes(path, weights.plan_header([("x", "I8", (0,))], "mine"))
    assert weights.is_done(path, "mine")
    assert not weights.is_done(path, "other", overwrite=True)
    with pytest.raises(SchemaError, match=r"made with other settings or inputs"):
        weights.is_done(path, "other")
    files.write_bytes(path, b"broken")
    assert not weights.is_done(path, "mine", overwrite=True)
    with pytest.raises(SchemaError, match="must be a whole safetensors file"):
        weights.is_done(path, "mine")


def test_a_tensor_in_two_files_is_named(folder: str) -> None:
    save_file({"a": torch.ones(2)}, f"{folder}/model-00002-of-00002.safetensors")
    with pytest.raises(SchemaError, match=r"but a is in model-00002.* and in model\.s"):
        weights.read_weights(folder)


def test_an_index_chooses_the_files(folder: str) -> None:
    Path(folder, weights.ALONE).rename(f"{folder}/model-00001-of-00002.safetensors")
    save_file({"a": torch.ones(2)}, f"{folder}/model-00002-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00002-of-00002.safetensors"}}
    files.write_json(f"{folder}/{weights.INDEX}", index)
    assert set(weights.read_weights(folder).places) == {"a"}
    files.write_json(f"{folder}/{weights.INDEX}", {"weight_map": 3})
    with pytest.raises(SchemaError, match="must say in weight_map"):
        weights.read_weights(folder)


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', "a has 4 bytes for"),
        ('{"a":{"dtype":"Q4","shape":[2],"data_offsets":[0,4]}}', "unknown type Q4"),
        (
            '{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}',
            r"should have \d+ bytes, it has",
        ),
        ('{"a":{"dtype":"F32"}}', "shape"),
        ("[1]", "cannot be read"),
    ],
)
def test_a_header_that_cannot_be_is_named(
    told: str, reason: str, tmp_path: Path
) -> None:
    content = told.encode()
    head = len(content).to_bytes(8, "little") + content
    (tmp_path / "model.safetensors").write_bytes(head)
    with pytest.raises(SchemaError, match=reason):
        weights.read_weights(str(tmp_path))


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="must hold weights as"):
        weights.read_weights(str(tmp_path))


def test_another_file_than_planned_is_refused(folder: str) -> None:
    found = weights.read_weights(folder)
    place, (stamp,) = found.places["b"], found.stamps.values()
    smaller = dataclasses.replace(stamp, bytes=7)
    with pytest.raises(FusionError, match=rf"another \(7 and {stamp.bytes} bytes\)"):
        weights.read_bytes(folder, place, smaller)


def test_a_file_that_is_written_anew_in_its_size_is_refused(folder: str) -> None:
    found = weights.read_weights(folder)
    place, (stamp,) = found.places["b"], found.stamps.values()
    path = Path(folder, "model.safetensors")
    was = path.stat()
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns + 1))
    told = rf"{path} must be the file that .* has been written anew"
    with pytest.raises(FusionError, match=told):
        weights.read_bytes(folder, place, stamp)


def test_machines_may_have_copies_of_their_own(folder: str) -> None:
    found = weights.read_weights(folder)
    place, (stamp,) = found.places["b"], found.stamps.values()
    elsewhere = dataclasses.replace(stamp, where="another 9 /model", version="9 9")
    assert weights.read_bytes(folder, place, elsewhere)


def test_containers_of_one_name_may_have_copies_at_other_places(
    folder: str, tmp_path: Path
) -> None:
    found = weights.read_weights(folder)
    place, (stamp,) = found.places["b"], found.stamps.values()
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert weights.read_bytes(str(copy), place, stamp)
