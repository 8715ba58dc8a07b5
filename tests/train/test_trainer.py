import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

from schemas import manifest
from schemas.errors import SchemaError
from tests import tiny
from tests.train import shards
from tests.train.runs import other, silent, weights
from train import arguments, publish, runs, trainer
from train.config import TrainConfig
from train.loop import FusionTrainer

Run = Callable[..., trainer.TrainResult]


def test_a_finished_run_is_skipped(config: TrainConfig) -> None:
    first = trainer.train(config, silent)
    at = Path(config.output, "model.safetensors").stat().st_mtime_ns
    again = trainer.train(config, silent)
    assert (first.skipped, again.skipped) == (False, True)
    assert (first.steps, first.tokens) == (again.steps, again.tokens)
    assert Path(config.output, "model.safetensors").stat().st_mtime_ns == at


def test_other_settings_in_a_finished_folder_are_refused_by_name(
    config: TrainConfig,
) -> None:
    trainer.train(config, silent)
    changed = dataclasses.replace(config, clm_weight=0.5)
    with pytest.raises(SchemaError, match=r"clm_weight = 0\.9, and now it is 0\.5"):
        trainer.train(changed, silent)
    before = weights(config.output)
    trainer.train(dataclasses.replace(changed, overwrite=True), silent)
    assert weights(config.output) != before


def test_a_folder_that_is_not_ours_is_left_alone(config: TrainConfig) -> None:
    Path(config.output).mkdir()
    Path(config.output, "thesis.tex").write_text("years of work")
    with pytest.raises(SchemaError, match="holds other files"):
        trainer.train(config, silent)


def test_parts_of_a_step_add_up_to_the_step(config: TrainConfig) -> None:
    found = []
    config = dataclasses.replace(config, model=str(_plain(config)), max_steps=1)
    for accumulation in (1, 2, 4):
        run = other(config, f"in{accumulation}", accumulation=accumulation, max_steps=1)
        metrics = trainer.train(
            dataclasses.replace(run, model=str(_plain(run))), silent
        )
        found.append(metrics.metrics)
    for one in found[1:]:
        for key in ("loss", "clm_nats", "fusion_nats", "gradient_norm"):
            name = f"train/{key}"
            assert one[name] == pytest.approx(found[0][name], rel=1e-5)


def _plain(config: TrainConfig) -> Path:
    """A target without dropout."""
    folder = Path(config.output).parent / "plain"
    return folder if folder.exists() else tiny.neox(folder)


@pytest.mark.parametrize(
    ("schedule", "risen"),
    [
        ("constant", [0, 0, 0, 0, 0, 0]),
        ("linear", [0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6]),
        ("cosine", [0, 0.0669873, 1 / 4, 1 / 2, 3 / 4, 0.9330127]),
    ],
)
def test_loss_logged_is_the_mix_of_its_parts(
    config: TrainConfig, schedule: Any, risen: list[float]
) -> None:
    run = dataclasses.replace(config, clm_weight=0.25, clm_schedule=schedule)
    trainer.train(run, silent)
    lines = Path(run.output, "metrics.jsonl").read_text().splitlines()
    for part, line in zip(risen, map(json.loads, lines), strict=True):
        share = 0.25 + 0.75 * part
        assert line["train/clm_weight"] == pytest.approx(share)
        mixed = share * line["train/clm_nats"] + (1 - share) * line["train/fusion_nats"]
        assert line["train/loss"] == pytest.approx(mixed, rel=1e-5)


def test_rows_and_chunks_together_are_mixed_by_their_share(config: TrainConfig) -> None:
    plain = dataclasses.replace(config, model=str(_plain(config)), max_steps=1)
    kinds: list[dict[str, Any]] = [
        {"fusion_loss": "jsd"},
        {"fusion_loss": "chunks"},
        {"fusion_loss": "jsd", "chunk_share": 0.25},
    ]
    rows, chunks, both = (
        trainer.train(other(plain, f"kind{n}", **kind), silent).metrics
        for n, kind in enumerate(kinds)
    )
    assert both["train/fusion_nats"] == pytest.approx(rows["train/fusion_nats"])
    assert both["train/chunk_nats"] == pytest.approx(chunks["train/chunk_nats"])
    assert "train/chunk_nats" not in rows
    mixed = 0.75 * rows["train/loss"] + 0.25 * chunks["train/loss"]
    assert both["train/loss"] == pytest.approx(mixed, rel=1e-5)


def test_a_training_on_chunks_lowers_what_chunks_differ_by(config: TrainConfig) -> None:
    run = dataclasses.replace(
        config, fusion_loss="chunks", clm_weight=0.0, learning_rate=1e-2
    )
    trainer.train(run, silent)
    lines = Path(run.output, "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line)["train/chunk_nats"] for line in lines]
    assert found[-1] < 0.9 * found[0]


def test_under_reference_the_mean_is_over_each_part_of_a_step(
    config: TrainConfig,
) -> None:
    plain = dataclasses.replace(config, model=str(_plain(config)), max_steps=1)
    plain = dataclasses.replace(plain, reference="fusellm", tail="renormalise")
    whole = [
        trainer.train(other(plain, f"n{n}", accumulation=n), silent).metrics
        for n in (1, 2)
    ]
    # Parts of unlike length weigh the same: near to the mean of all, and not the same.
    assert whole[1]["train/loss"] == pytest.approx(whole[0]["train/loss"], rel=0.05)
    assert abs(whole[1]["train/loss"] - whole[0]["train/loss"]) > 1e-6
    for name in ("clm_nats", "fusion_nats"):
        found, wanted = (metrics[f"train/{name}"] for metrics in whole)
        assert found == pytest.approx(wanted, rel=1e-5)


def test_settings_of_the_objective_reach_the_loss(config: TrainConfig) -> None:
    plain = dataclasses.replace(config, model=str(_plain(config)), max_steps=1)
    hot = {"tail": "renormalise"}
    runs: dict[str, dict[str, Any]] = {
        "bucket": {},
        "across": {"attend_across": True},
        "confidence": {"position_weights": "confidence"},
        "target": {"target_temperature": 2.0},
        "renormalise": hot,
        "teacher": {"teacher_temperature": 2.0, **hot},
        "reference": {"reference": "fusechat", **hot},
    }
    found = {
        trainer.train(other(plain, name, **more), silent).metrics["train/fusion_nats"]
        for name, more in runs.items()
    }
    assert len(found) == len(runs)


def test_model_folder_is_an_ordinary_one(config: TrainConfig, target: Path) -> None:
    trainer.train(config, silent)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(config.output)
    assert loaded.config.use_cache
    before = safetensors.torch.load_file(target / "model.safetensors")
    after = safetensors.torch.load_file(f"{config.output}/model.safetensors")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert Path(config.output, name).read_bytes() == (target / name).read_bytes()
    assert not list(Path(config.output).glob("*.bin"))


def test_a_chat_template_goes_along_and_generation_ends_where_nothing_said_so(
    config: TrainConfig, tmp_path: Path
) -> None:
    folder = tiny.llama(tmp_path / "chat")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    for name in ("config.json", "generation_config.json"):
        told = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(told | {"eos_token_id": None}))
    data = shards.write(tmp_path / "narrow", vocabulary=300)
    run = dataclasses.replace(config, model=str(folder), data=str(data), max_steps=1)
    trainer.train(run, silent)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(run.output)
    assert loaded.generation_config.eos_token_id == 2
    spoken = transformers.AutoTokenizer.from_pretrained(run.output)
    assert spoken.chat_template == "{{ messages }}"


def test_trackers_that_are_not_installed_are_refused_before_any_work(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs.integrations, "is_wandb_available", lambda: False)
    run = dataclasses.replace(config, report_to=("wandb",))
    with pytest.raises(ValueError, match=r"wandb is not; run .*fusebeam\[track\]"):
        trainer.train(run, silent)
    assert not Path(f"{run.output}.partial").exists()


def test_tied_and_narrow_weights_stay_tied_and_narrow(
    config: TrainConfig, tmp_path: Path
) -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    llama = transformers.LlamaConfig(
        vocab_size=400, intermediate_size=32, tie_word_embeddings=True, **shape
    )
    model = transformers.LlamaForCausalLM(llama).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "tied")
    run = dataclasses.replace(config, model=str(tmp_path / "tied"), max_steps=2)
    trainer.train(run, silent)
    before = safetensors.torch.load_file(tmp_path / "tied" / "model.safetensors")
    after = safetensors.torch.load_file(f"{run.output}/model.safetensors")
    assert {n: v.dtype for n, v in after.items()} == {
        n: v.dtype for n, v in before.items()
    }
    assert "lm_head.weight" not in after


def test_card_and_manifest_name_target_sources_settings_and_data(
    config: TrainConfig, target: Path
) -> None:
    how = {"clm_schedule": "cosine", "chunk_share": 0.25, "label_smoothing": 0.1}
    run = dataclasses.replace(config, **how)  # type: ignore[arg-type]
    result = trainer.train(run, silent)
    card = Path(config.output, "README.md").read_text()
    found = manifest.read(config.output, publish.STAGE)
    for words in (
        "and how likely another model finds its chunks (0.9 to 0.1 at first)",
        "| share of the text's own loss | 0.9, rising towards 1 along half a cosine |",
        "| fusion loss | cross-entropy to the fused distribution |",
        "| likelihood of chunks | 0.25 of the fusion loss, at temperature 100 |",
        "| label smoothing | 0.1 |",
        f"| target | {target.name} |",
        found.inputs["model"],
        found.inputs["data"],
        "| clm_weight | 0.9 |",
        f"| one | org/one-7b | {'1' * 32} |",
        f"| two | two-9b | {'2' * 32} |",
        f"{result.tokens:,} tokens",
    ):
        assert words in card
    assert str(target.parent) not in card
    assert found.counts["steps"] == 6
    assert {"README.md", "model.safetensors"} <= {f.name for f in found.files}


def test_card_names_sources_by_alias_where_the_data_tells_no_models(
    config: TrainConfig, tmp_path: Path
) -> None:
    folder = shards.write(tmp_path / "older", vocabulary=400)
    path = folder / manifest.NAME
    value = json.loads(path.read_text())
    del value["origins"]["models"]
    path.write_text(json.dumps(value))
    run = dataclasses.replace(config, data=str(folder), max_steps=1)
    trainer.train(run, silent)
    card = Path(run.output, "README.md").read_text()
    assert f"| one | one | {'1' * 32} |" in card


def test_data_fused_for_another_tokenizer_is_refused(
    config: TrainConfig, tmp_path: Path
) -> None:
    folder = shards.write(tmp_path / "other", vocabulary=400)
    path = folder / manifest.NAME
    value = json.loads(path.read_text())
    value["settings"]["target_tokenizer"] = "0" * 32
    path.write_text(json.dumps(value))
    with pytest.raises(SchemaError, match="must be fused for the tokenizer of"):
        trainer.train(dataclasses.replace(config, data=str(folder)), silent)


def test_a_loss_that_is_no_number_ends_the_run(config: TrainConfig) -> None:
    run = dataclasses.replace(config, learning_rate=1e30, clip=0.0)
    with pytest.raises(ValueError, match="must be finite"):
        trainer.train(run, silent)


def test_a_run_shorter_than_the_logging_interval_ends_with_its_last_line(
    config: TrainConfig,
) -> None:
    run = dataclasses.replace(config, max_steps=3, logging_steps=10, save_steps=10)
    result = trainer.train(run, silent)
    (line,) = map(
        json.loads, Path(run.output, "metrics.jsonl").read_text().split("\n")[:-1]
    )
    assert line == result.metrics
    assert (line["step"], result.steps) == (3, 3)


def test_a_loss_that_is_no_number_in_the_last_steps_is_refused(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: FusionTrainer, *args: Any, **more: Any) -> Any:
        loss = original(self, *args, **more)
        return loss * float("nan") if self.state.global_step == 4 else loss

    original = FusionTrainer.compute_loss
    monkeypatch.setattr(FusionTrainer, "compute_loss", broken)
    run = dataclasses.replace(config, logging_steps=4, save_steps=100)
    with pytest.raises(ValueError, match="must be finite, it is nan at step 6"):
        trainer.train(run, silent)
    assert not Path(run.output).exists()


def test_weights_that_the_last_update_broke_are_refused(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: FusionTrainer, model: Any, *args: Any, **more: Any) -> Any:
        loss = original(self, model, *args, **more)
        if self.state.global_step == 5:
            next(model.parameters()).register_hook(lambda g: g * float("nan"))
        return loss

    original = FusionTrainer.compute_loss
    monkeypatch.setattr(FusionTrainer, "compute_loss", broken)
    with pytest.raises(ValueError, match="trained weights must be finite"):
        trainer.train(config, silent)
    assert not Path(config.output).exists()


def test_progress_tells_step_loss_speed_and_time_left(config: TrainConfig) -> None:
    lines: list[str] = []
    trainer.train(config, lines.append)
    assert len(lines) == 6
    for number, line in enumerate(lines, 1):
        told = r"agree \d+%  \S+ tokens/s  MFU \d+%  ETA \d+:\d\d:\d\d"
        assert re.match(rf"step {number}/6  loss \d.*{told}$", line)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("clm_weight", 1.5),
        ("label_smoothing", 1.0),
        ("learning_rate", 0.0),
        ("batch_size", 0),
        ("accumulation", 3),
        ("clip", -1.0),
        ("epochs", float("inf")),
        ("learning_rate", float("nan")),
        ("threads", 0),
        ("output", "gs://bucket/out"),
        ("chunk_share", 1.0),
        ("chunk_temperature", 0.0),
        ("teacher_temperature", 2.0),  # in a bucket
        ("target_temperature", -1.0),
        ("reference", "fusellm"),  # without --tail=renormalise
    ],
)
def test_settings_out_of_range_are_refused_by_name(
    config: TrainConfig, setting: str, value: object
) -> None:
    with pytest.raises(ValueError, match=setting):
        dataclasses.replace(config, **{setting: value})


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("fusion_loss", "jsd"),
        ("chunk_share", 0.5),
        ("position_weights", "kept"),
        ("label_smoothing", 0.1),
        ("target_temperature", 2.0),
    ],
)
def test_what_the_authors_code_has_not_is_refused_under_reference(
    config: TrainConfig, setting: str, value: object
) -> None:
    run = dataclasses.replace(config, reference="fusellm", tail="renormalise")
    with pytest.raises(ValueError, match=f"{setting} must be .* reference is fusellm"):
        dataclasses.replace(run, **{setting: value})


def test_chunks_alone_have_no_share_beside_rows(config: TrainConfig) -> None:
    with pytest.raises(ValueError, match="chunk_share must be 0 for chunks alone"):
        dataclasses.replace(config, fusion_loss="chunks", chunk_share=0.5)


def test_activations_computed_twice_change_nothing(config: TrainConfig) -> None:
    runs = [
        other(config, f"twice{twice}", gradient_checkpointing=twice, max_steps=2)
        for twice in (False, True)
    ]
    plain = str(_plain(config))
    losses = [
        trainer.train(dataclasses.replace(run, model=plain), silent).metrics
        for run in runs
    ]
    assert losses[1]["train/loss"] == pytest.approx(losses[0]["train/loss"], rel=1e-6)


def test_a_run_in_bfloat16_ends_near_the_one_in_float32(config: TrainConfig) -> None:
    plain = dataclasses.replace(config, model=str(_plain(config)), max_steps=2)
    runs = [other(plain, name, dtype=name) for name in ("float32", "bfloat16")]
    wide, narrow = (trainer.train(run, silent).metrics for run in runs)
    assert narrow["train/loss"] == pytest.approx(wide["train/loss"], rel=1e-2)
    assert narrow["train/loss"] != wide["train/loss"]
    assert manifest.read(runs[1].output, publish.STAGE).settings["dtype"] == "bfloat16"
    trained = safetensors.torch.load_file(f"{runs[1].output}/model.safetensors")
    assert {value.dtype for value in trained.values()} == {torch.float32}


def test_kernels_that_cannot_run_are_refused(config: TrainConfig) -> None:
    with pytest.raises(ValueError, match=r"kernels must run on CUDA.* device is cpu"):
        trainer.train(dataclasses.replace(config, kernels=True), silent)


def test_arguments_keep_the_words_of_the_settings(config: TrainConfig) -> None:
    args = arguments.training(
        config, Path(config.output), steps=200, device="cpu", dtype="float32"
    )
    assert args.warmup_steps == 2
    assert args.max_grad_norm == 1.0
    assert (args.adam_beta1, args.adam_beta2) == (0.9, 0.95)
    assert not args.bf16


def test_shares_of_rows_and_steps_are_those_that_are_written(
    config: TrainConfig,
) -> None:
    # In floating point 1.1 x 100 and 0.07 x 100 are a little above 110 and 7.
    asked = dataclasses.replace(
        config, max_steps=None, epochs=1.1, batch_size=10, warmup_ratio=0.07
    )
    assert trainer._steps(asked, 100) == 11
    args = arguments.training(
        asked, Path(config.output), steps=100, device="cpu", dtype="float32"
    )
    assert args.warmup_steps == 7
