import shutil
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import torch
import transformers

from schemas.errors import SchemaError
from transforms import loading

CPU = torch.device("cpu")


def test_pickled_weights_are_never_read(models, tmp_path) -> None:
    safe = loading.load_model(models["llama"], dtype=torch.float32, device=CPU)
    safe.config.save_pretrained(tmp_path)
    torch.save(safe.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled weights only"):
        loading.load_model(str(tmp_path), dtype=torch.float32, device=CPU)


@pytest.mark.parametrize("change", ["lost", "cut"])
def test_a_model_that_lacks_a_weight_is_refused(
    models: dict[str, str], tmp_path: Path, change: str
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(models["llama"], folder)
    path, key = folder / "model.safetensors", "model.norm.weight"
    held = safetensors.torch.load_file(path)
    whole = held.pop(key)
    more = {} if change == "lost" else {key: whole[:-1].clone()}
    safetensors.torch.save_file({**held, **more}, path, {"format": "pt"})
    with pytest.raises(SchemaError, match=rf"broken must hold .* but 1 are .* {key}"):
        loading.load_model(str(folder), dtype=torch.float32, device=CPU)


def test_loaded_weights_have_the_asked_for_type(models) -> None:
    loaded = loading.load_model(models["neox"], dtype=torch.bfloat16, device=CPU)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.bfloat16}
    assert not loaded.training


def test_a_model_without_room_on_its_device_is_named_with_the_cure(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, device: torch.device) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB.\nand more")

    monkeypatch.setattr(transformers.PreTrainedModel, "to", fail)
    law = r"^cuda:3 must have room for .*llama in float32, but has not \(CUDA out of"
    with pytest.raises(ValueError, match=law + r" memory\. Tried 2 GiB\.\); pass --dt"):
        loading.load_model(
            models["llama"], dtype=torch.float32, device=torch.device("cuda:3")
        )


def test_what_the_hub_says_of_a_gated_model_is_told_with_the_cure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("401 Client Error.\n\nCannot access gated repo.\nSee the page.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    told = r"\(OSError: 401 Client Error\. Cannot access gated repo\.\); a gated model"
    with pytest.raises(FileNotFoundError, match=told + " needs HF_TOKEN or hf auth"):
        loading.load_model("maker/gated", dtype=torch.float32, device=CPU)
