import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

from schemas.errors import SchemaError
from tests import tiny
from tests.train import shards
from tests.train.runs import Killed, silent
from train import adapters, checkpoints, trainer
from train import model as models
from train.config import TrainConfig


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    shards.write(folder / "fused", vocabulary=400)
    tiny.neox(folder / "neox")
    return folder


@pytest.fixture
def config(inputs: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        data=str(inputs / "fused"),
        model=str(inputs / "neox"),
        output=str(tmp_path / "out"),
        batch_size=4,
        accumulation=2,
        max_steps=4,
        learning_rate=1e-2,
        save_steps=2,
        logging_steps=1,
        threads=1,
        device="cpu",
        lora_rank=4,
        lora_dropout=0.1,
    )


def loaded(folder: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(Path(folder, "model.safetensors"))


def test_merged_model_is_the_target_with_the_kept_adapters(
    config: TrainConfig,
) -> None:
    run = dataclasses.replace(config, keep_adapter=True)
    trainer.train(run, silent)
    merged = transformers.AutoModelForCausalLM.from_pretrained(run.output)
    kept = Path(run.output, adapters.FOLDER)
    adapted = adapters.wrap(models.load(Path(run.model)), run, resume=kept)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted.eval()(ids).logits)
    assert not Path(config.output + ".partial").exists()


def test_adapters_alone_are_trained_and_none_is_on_the_head(
    config: TrainConfig,
) -> None:
    trainer.train(config, silent)
    before, after = loaded(config.model), loaded(config.output)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    linear = ("query_key_value", "attention.dense", "dense_h_to_4h", "dense_4h_to_h")
    assert len(changed) == 8
    assert all(name.endswith(tuple(f"{x}.weight" for x in linear)) for name in changed)
    assert not Path(config.output, adapters.FOLDER).exists()


def test_targets_that_are_named_alone_are_adapted(config: TrainConfig) -> None:
    run = dataclasses.replace(config, lora_targets=("query_key_value",), max_steps=2)
    trainer.train(run, silent)
    before, after = loaded(config.model), loaded(config.output)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert all("query_key_value.weight" in name for name in changed)
    assert len(changed) == 2


def test_an_adapted_head_learns_through_its_adapter(config: TrainConfig) -> None:
    run = dataclasses.replace(config, lora_targets=("lm_head",), lora_dropout=0.0)
    trainer.train(run, silent)
    before, after = loaded(config.model), loaded(config.output)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["embed_out.weight"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_target_under_adapters_is_probed_in_float32(
    config: TrainConfig, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def probe(model: Any) -> models.Traits:
        probed.append({p.dtype for p in model.parameters()})
        return original(model)

    probed: list[set[torch.dtype]] = []
    original = models.probe
    monkeypatch.setattr(models, "probe", probe)
    run = dataclasses.replace(config, dtype=dtype, max_steps=1)
    trainer.train(run, silent)
    assert probed == [{torch.float32}]


def test_a_checkpoint_of_adapters_is_small_and_gone_on_with_to_the_same_bytes(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def complete(folder: Path) -> None:
        original(folder)
        raise Killed

    whole = dataclasses.replace(config, output=str(tmp_path / "whole"))
    trainer.train(whole, silent)
    original = checkpoints.complete
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "complete", complete)
        with pytest.raises(Killed):
            trainer.train(config, silent)
    (folder,) = Path(config.output + ".partial", "checkpoints").iterdir()
    names = {path.name for path in folder.iterdir()}
    assert "adapter_model.safetensors" in names
    assert "model.safetensors" not in names
    sizes = [p.stat().st_size for p in folder.rglob("*.safetensors")]
    assert sum(sizes) < Path(config.model, "model.safetensors").stat().st_size / 2
    trainer.train(config, silent)
    wanted = Path(whole.output, "model.safetensors").read_bytes()
    assert Path(config.output, "model.safetensors").read_bytes() == wanted


def test_activations_computed_twice_leave_adapters_their_gradients(
    config: TrainConfig, tmp_path: Path
) -> None:
    found = []
    for twice in (False, True):
        run = dataclasses.replace(
            config,
            output=str(tmp_path / f"twice{twice}"),
            gradient_checkpointing=twice,
            max_steps=2,
            lora_dropout=0.0,
        )
        found.append(trainer.train(run, silent).metrics)
    for name in ("train/loss", "train/gradient_norm"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-6)
    assert found[0]["train/gradient_norm"] > 0


def test_targets_that_name_nothing_are_refused(config: TrainConfig) -> None:
    run = dataclasses.replace(config, lora_targets=("q_proj",))
    with pytest.raises(SchemaError, match=r"lora_targets must name .* got q_proj"):
        trainer.train(run, silent)


def test_a_quantised_target_without_a_gpu_is_refused_with_the_cure(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: object() if name == "bitsandbytes" else found(name, *more),
    )
    run = dataclasses.replace(config, quantise="4bit")
    with pytest.raises(SchemaError, match="4bit must have a GPU, and the device is cp"):
        trainer.train(run, silent)


def test_a_missing_package_is_named_with_its_extra(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(SchemaError, match=r"install fusebeam\[train,lora\]"):
        adapters.load(Path(config.model), config, dtype="float32", device="cpu")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora_rank": 0}, "lora_rank must be above 0"),
        ({"lora_alpha": 0.0}, "lora_alpha must be above 0"),
        ({"lora_dropout": 1.0}, r"lora_dropout must be in \[0, 1\)"),
        ({"deepspeed": "x.json", "sharding": "fsdp"}, "sharding must be none where"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    config: TrainConfig, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(config, **changes)
