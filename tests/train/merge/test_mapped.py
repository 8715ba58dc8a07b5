from pathlib import Path

import pytest
import torch

from schemas import weights
from schemas.errors import FusionError
from train.merge import mapped, numbers
from train.merge.inputs import Input
from train.merge.reading import Opened, Reading

KEPT = {
    "odd": torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16),
    "behind": torch.tensor([[0.5, -4.0]]),  # its bytes are not aligned to its size
    "empty": torch.zeros(0, 2),
}
NAMES = {torch.bfloat16: "BF16", torch.float32: "F32"}


def write(folder: Path) -> None:
    told = [(key, NAMES[one.dtype], tuple(one.shape)) for key, one in KEPT.items()]
    content = weights.plan_header(told, "0")
    content += b"".join(bytes(numbers.to_bytes(one)) for one in KEPT.values())
    (folder / "model.safetensors").write_bytes(content)


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    write(tmp_path)
    reading = Reading(
        models=(Input(name="m", model=str(tmp_path)),),
        stamps=(weights.read_weights(str(tmp_path)).stamps,),
        lead=0,
        has_base=False,
        threads=1,
        output="",
        identity="",
    )
    return mapped.open_models(reading)


def test_mapped_tensors_are_those_of_the_file(opened: Opened, tmp_path: Path) -> None:
    places = weights.read_weights(str(tmp_path)).places
    assert places["behind"].start % 4
    for _ in range(2):
        for key, place in places.items():
            assert torch.equal(opened.stored(0, place), KEPT[key])


def test_what_is_written_to_a_mapping_never_reaches_the_file(
    opened: Opened, tmp_path: Path
) -> None:
    before = (tmp_path / "model.safetensors").read_bytes()
    opened.stored(0, weights.read_weights(str(tmp_path)).places["odd"]).fill_(7.0)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_file_that_was_written_anew_is_not_mapped(
    opened: Opened, tmp_path: Path
) -> None:
    place = weights.read_weights(str(tmp_path)).places["odd"]
    (tmp_path / "model.safetensors").unlink()
    write(tmp_path)
    with pytest.raises(FusionError, match="has been written anew or is another"):
        opened.stored(0, place)
