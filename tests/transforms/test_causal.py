import shutil
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import torch
import transformers

from schemas.errors import SchemaError
from tests import causal_models
from transforms import causal

CUT = (*causal_models.MAIN, "gemma2", "cohere", "granite", "mixtral")


def both(name: str) -> tuple[torch.Tensor, torch.Tensor, causal.Halves]:
    model = causal_models.make(name, 99)
    halves = causal.Halves(model)
    ids = torch.randint(99, (3, 20), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole = model(input_ids=ids).logits.flatten(0, 1)
        features = halves.features(ids).flatten(0, 1)
        parts = [halves.logits(part) for part in torch.split(features, 7)]
    return whole, torch.cat(parts), halves


@pytest.mark.parametrize("name", CUT)
def test_logits_of_some_positions_at_a_time_are_the_models_own(name: str) -> None:
    whole, parts, halves = both(name)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    assert halves.width == 99


@pytest.mark.parametrize("name", CUT)
def test_features_are_small_where_a_model_can_be_cut(name: str) -> None:
    halves = causal.Halves(causal_models.make(name, 99))
    assert halves.features(torch.zeros(1, 4, dtype=torch.int64)).shape == (1, 4, 16)


def test_a_model_that_cannot_be_cut_gives_its_logits_all_the_same() -> None:
    whole, parts, _ = both("opt")
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


def test_a_model_that_looks_ahead_is_refused() -> None:
    with pytest.raises(ValueError, match="must not look ahead"):
        causal.Halves(causal_models.make("bert", 99))


def test_a_body_runs_itself_again_after_its_stand_in_even_on_an_error() -> None:
    model = causal_models.make("llama", 99)
    halves = causal.Halves(model)
    ids = torch.arange(9)[None]
    before = model(input_ids=ids).logits
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        halves.logits(torch.zeros(4, 5))
    assert "forward" not in vars(model.base_model)
    assert torch.equal(model(input_ids=ids).logits, before)


def test_a_wrapped_forward_is_put_back() -> None:
    model = causal_models.make("llama", 99)
    wrapper = model.base_model.forward
    vars(model.base_model)["forward"] = wrapper
    causal.Halves(model)
    assert vars(model.base_model)["forward"] is wrapper


@pytest.mark.parametrize("name", [*causal_models.MAIN, "opt"])
def test_the_longest_input_is_read_from_the_configuration(name: str) -> None:
    model = causal_models.make(name, 99)
    assert causal.longest_input(model) == causal_models.CONTEXT


@pytest.mark.parametrize("has", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_a_cpu_computes_in_bfloat16_where_it_has_instructions_for_it(
    has: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = causal.choose_device("cpu")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert causal.choose_dtype("auto", cpu) == torch.float32
    monkeypatch.setattr(torch.cpu, has, lambda: True)
    assert causal.choose_dtype("auto", cpu) == torch.bfloat16
    assert causal.choose_dtype("float32", cpu) == torch.float32
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # it has, but must not use them
    assert causal.choose_dtype("auto", cpu) == torch.float32
    assert causal.choose_dtype("bfloat16", cpu) == torch.bfloat16


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_by_name(device: str) -> None:
    with pytest.raises(ValueError, match=device):
        causal.choose_device(device)


def test_pickled_weights_are_never_read(models, tmp_path) -> None:
    cpu = causal.choose_device("cpu")
    safe = causal.load_model(models["llama"], dtype=torch.float32, device=cpu)
    safe.config.save_pretrained(tmp_path)
    torch.save(safe.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled weights only"):
        causal.load_model(str(tmp_path), dtype=torch.float32, device=cpu)


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
    cpu = torch.device("cpu")
    with pytest.raises(SchemaError, match=rf"broken must hold .* but 1 are .* {key}"):
        causal.load_model(str(folder), dtype=torch.float32, device=cpu)


def test_loaded_weights_have_the_asked_for_type(models) -> None:
    cpu = causal.choose_device("cpu")
    loaded = causal.load_model(models["neox"], dtype=torch.bfloat16, device=cpu)
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
        causal.load_model(
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
        causal.load_model(
            "maker/gated", dtype=torch.float32, device=torch.device("cpu")
        )
