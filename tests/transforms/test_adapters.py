import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from schemas.errors import SchemaError
from schemas.scores import Score
from tests import adapting
from tests.transforms.scoring import WINDOWS, assert_close
from train import adapters as trained
from transforms import adapters, checkpoint, extras, loading, scorer, tokenizer
from transforms.adapters import Parts
from transforms.loading import Loading
from transforms.scorer import ScorerSettings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def adapter(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    return adapting.write(tmp_path_factory.mktemp("adapter"), models["llama"])


def change_config(folder: str, **fields: object) -> None:
    path = Path(folder) / checkpoint.ADAPTER
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.fixture
def own(adapter: str, tmp_path: Path) -> str:
    """Returns a copy of the adapter that a test may change."""
    return str(shutil.copytree(adapter, tmp_path / "own"))


def test_an_adapters_scores_are_those_of_the_model_that_it_is_merged_into(
    models: dict[str, str], adapter: str, tmp_path: Path
) -> None:
    merged = trained.merged(Path(models["llama"]), Path(adapter))
    merged.save_pretrained(tmp_path)
    for file in Path(models["llama"]).glob("tokenizer*"):
        shutil.copy(file, tmp_path)

    def scores(model: str, how: Loading = loading.PLAIN) -> list[Score]:
        settings = ScorerSettings(model=model, dtype="float32", loading=how)
        return scorer.load(settings).score(WINDOWS).scores

    wanted, plain = scores(str(tmp_path)), scores(models["llama"])
    for found in (scores(adapter), scores(models["llama"], Loading(adapter=adapter))):
        for one, other, bare in zip(found, wanted, plain, strict=True):
            assert_close(one, other)
            assert np.abs(one.gold_logprob - bare.gold_logprob).max() > 0.1


def test_a_model_laid_over_host_and_disk_takes_no_adapter(
    models: dict[str, str], adapter: str
) -> None:
    how = Loading(adapter=adapter, device_map="auto", max_memory=("cpu=1KB",))
    with pytest.raises(ValueError, match=r"weights in memory, but .* kept elsewhere"):
        loading.load_model(models["llama"], dtype=torch.float32, device=CPU, how=how)


def test_a_model_laid_out_within_memory_takes_one(
    models: dict[str, str], adapter: str
) -> None:
    plain, laid = (
        loading.load_model(
            models["llama"],
            dtype=torch.float32,
            device=CPU,
            how=Loading(adapter=adapter, device_map=device_map),
        )
        for device_map in ("none", "balanced")
    )
    for name, weight in plain.named_parameters():
        assert torch.equal(weight, laid.get_parameter(name))


def test_an_adapter_has_its_bases_tokenizer_or_its_own(
    models: dict[str, str], own: str
) -> None:
    base = tokenizer.load(models["llama"])
    assert tokenizer.load(own).fingerprint == base.fingerprint
    for file in Path(models["neox"]).glob("tokenizer*"):
        shutil.copy(file, own)
    theirs = tokenizer.load(models["neox"])
    assert tokenizer.load(own).fingerprint == theirs.fingerprint != base.fingerprint


def test_a_fingerprint_covers_base_and_adapter(
    models: dict[str, str], adapter: str, own: str
) -> None:
    whole = scorer.model_fingerprint(adapter)
    assert whole != scorer.model_fingerprint(models["llama"])
    settings = ScorerSettings(model=models["llama"], loading=Loading(adapter=own))
    # Of the configuration only what shapes the output counts.
    change_config(own, base_model_name_or_path="elsewhere", inference_mode=False)
    assert scorer.fingerprint_of(settings) == whole
    change_config(own, lora_alpha=99)
    scaled = scorer.fingerprint_of(settings)
    path = Path(own) / adapters.WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    other = scorer.model_fingerprint(models["neox"])
    assert len({whole, scaled, scorer.fingerprint_of(settings), other}) == 4


def test_a_base_is_of_the_revision_that_the_adapter_names(own: str) -> None:
    change_config(own, base_model_name_or_path="maker/model", revision="abc")
    assert adapters.split(own) == Parts(
        model="maker/model", revision="abc", adapter=own
    )


def test_a_whole_model_beside_which_an_adapter_lies_is_refused(
    models: dict[str, str], own: str
) -> None:
    shutil.copytree(models["llama"], own, dirs_exist_ok=True)
    with pytest.raises(ValueError, match=r"holds both; .* --adapter"):
        adapters.split(own)


def test_an_adapter_for_an_adapter_is_refused(own: str, adapter: str) -> None:
    with pytest.raises(ValueError, match="own is an adapter too"):
        adapters.split(own, adapter)


def test_an_adapter_that_names_no_base_is_refused(own: str) -> None:
    change_config(own, base_model_name_or_path=None)
    with pytest.raises(ValueError, match=r"pass --model=BASE --adapter=.*own"):
        adapters.split(own)


@pytest.mark.parametrize("change", ["lost", "strange", "cut"])
def test_weights_that_are_not_the_models_are_refused(
    models: dict[str, str], own: str, change: str
) -> None:
    path = Path(own) / adapters.WEIGHTS
    held = safetensors.torch.load_file(path)
    key = next(iter(held))
    whole = held.pop(key)
    more = {
        "strange": {key: whole, "of.no.layer": whole.clone()},
        "cut": {key: whole[:-1]},
    }
    held |= {name: w.contiguous() for name, w in more.get(change, {}).items()}
    safetensors.torch.save_file(held, path, {"format": "pt"})
    how = Loading(adapter=own)
    with pytest.raises(SchemaError, match=r"adapter .*own must fit .*llama, but"):
        loading.load_model(models["llama"], dtype=torch.float32, device=CPU, how=how)


def test_an_adapter_of_another_model_is_refused(
    models: dict[str, str], adapter: str
) -> None:
    how = Loading(adapter=adapter)
    with pytest.raises(SchemaError, match=r"must fit .*neox, but"):
        loading.load_model(models["neox"], dtype=torch.float32, device=CPU, how=how)


def test_pickled_adapters_and_those_of_other_kinds_are_refused(
    models: dict[str, str], own: str
) -> None:
    parts = adapters.split(own)
    change_config(own, peft_type="PROMPT_TUNING")
    with pytest.raises(ValueError, match=r"of LoRA's kind .*'PROMPT_TUNING'"):
        adapters.fingerprint(parts)
    weights = Path(own) / adapters.WEIGHTS
    weights.rename(weights.with_name("adapter_model.bin"))
    with pytest.raises(FileNotFoundError, match=r"own lacks adapter_model.safetensors"):
        adapters.fingerprint(parts)
    with pytest.raises(ValueError, match="it holds an adapter only"):
        checkpoint.locate(own)


def test_adapters_and_quantized_weights_do_not_go_together(
    models: dict[str, str], adapter: str
) -> None:
    for model, more in ((models["llama"], {"adapter": adapter}), (adapter, {})):
        with pytest.raises(ValueError, match="not quantized, got quantization int8"):
            loading.load_model(
                model,
                dtype=torch.float32,
                device=CPU,
                how=Loading(quantization="int8", **more),
            )


def test_a_missing_package_is_named_with_the_extra_that_brings_it() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fusebeam\[lora\]'"):
        extras.require("no_such_package", "lora", "adapter x")
