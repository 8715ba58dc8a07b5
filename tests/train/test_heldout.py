import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.distributed.fsdp import fully_shard

from schemas import manifest
from schemas.errors import SchemaError
from tests import tiny
from tests.train import held_out, shards
from tests.train.runs import Killed, silent, weights
from train import checkpoints, evaluate, heldout, publish, trainer
from train import model as models
from train.config import TrainConfig
from train.data import Collator
from train.evaluate import Domains, EvaluateConfig
from train.heldout import Standing
from train.loop import FusionTrainer
from train.loss import Objective
from train.model import Traits
from train.shards import FusedFolder
from transforms import tokenizer

MADE = [held_out.window(n, ("code", "prose")[n % 2]) for n in range(5)]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("heldout")
    return TrainConfig(
        data=str(shards.write(folder / "fused", vocabulary=300)),
        model=str(dropping(folder / "target")),
        output=str(folder / "out"),
        eval_data=held_out.write(folder / "windows", MADE),
        eval_steps=1,
        batch_size=2,
        max_steps=6,
        learning_rate=1e-3,
        save_steps=3,
        logging_steps=2,
        threads=1,
        device="cpu",
        peak_tflops=1.0,
    )


def dropping(folder: Path) -> Path:
    """A target with dropout, so that the state of random numbers matters."""
    tiny.llama(folder)
    path = folder / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"attention_dropout": 0.2})
    )
    return folder


def into(config: TrainConfig, folder: Path, **changes: Any) -> TrainConfig:
    return dataclasses.replace(config, output=str(folder), **changes)


def lines(output: str | Path) -> list[dict[str, float]]:
    text = Path(output, "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def bits(output: str | Path) -> dict[int, float]:
    """Bits per byte over all domains by the step they were measured at."""
    name = "eval/bits_per_byte/all"
    return {int(ln["step"]): ln[name] for ln in lines(output) if name in ln}


@pytest.fixture(scope="module")
def trained(config: TrainConfig) -> TrainConfig:
    """The run to its end, evaluated at every step; nothing is chosen by it."""
    trainer.train(config, silent)
    return config


def test_the_last_figure_is_what_the_saved_model_is_measured_at(
    trained: TrainConfig, tmp_path: Path
) -> None:
    assert trained.eval_data is not None
    for step, model in ((0, trained.model), (6, trained.output)):
        asked = EvaluateConfig(
            name="it",
            model=model,
            windows=trained.eval_data,
            output=str(tmp_path / str(step)),
            device="cpu",
            threads=1,
        )
        wanted = evaluate.bits_per_byte(evaluate.evaluate_model(asked))
        (line,) = (
            ln
            for ln in lines(trained.output)
            if ln["step"] == step and "eval/seconds" in ln
        )
        found = {
            name.removeprefix("eval/bits_per_byte/"): value
            for name, value in line.items()
            if name.startswith("eval/bits_per_byte/")
        }
        assert found == pytest.approx(wanted, rel=1e-6)
        assert set(found) == {"code", "prose", "all"}


def test_evaluations_change_no_weight_and_come_where_they_are_asked_for(
    trained: TrainConfig, tmp_path: Path
) -> None:
    without = into(trained, tmp_path / "out", eval_data=None, eval_steps=None)
    trainer.train(without, silent)
    assert weights(without.output) == weights(trained.output)
    assert list(bits(trained.output)) == [0, 1, 2, 3, 4, 5, 6]
    assert [ln["step"] for ln in lines(without.output)] == [2, 3, 4, 6]
    seldom = into(trained, tmp_path / "ends", eval_steps=None)
    trainer.train(seldom, silent)
    assert list(bits(seldom.output)) == [0, 6]
    assert bits(seldom.output)[6] == bits(trained.output)[6]


def test_evaluations_that_choose_nothing_are_no_part_of_what_a_run_is(
    trained: TrainConfig,
) -> None:
    assert trainer.train(dataclasses.replace(trained, eval_steps=2), silent).skipped
    with pytest.raises(SchemaError, match="eval_data"):
        trainer.train(dataclasses.replace(trained, keep_best=True), silent)


def test_the_card_tells_bits_per_byte_before_and_after(trained: TrainConfig) -> None:
    card = Path(trained.output, "README.md").read_text()
    found = bits(trained.output)
    assert f"| all | {found[0]:.4f} | {found[6]:.4f} |" in card
    last = next(ln for ln in reversed(lines(trained.output)) if "train/loss" in ln)
    assert f"| loss, nats | {last['train/loss']:.4f} |" in card
    assert "seconds" not in card


SCRIPT = {0: 9.0, 1: 5.0, 2: 3.0, 3: 4.0, 4: 3.5, 5: 3.6, 6: 8.0}
"""Bits per byte by step: the second is the best."""


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts figures in place of those that are measured."""

    def measure(self: FusionTrainer) -> Domains:
        nats = SCRIPT[self.state.global_step] * 100 * 0.6931471805599453
        return {"a": {"nats": nats, "bytes": 100, "windows": 1, "failed": 0}}

    monkeypatch.setattr(FusionTrainer, "_measure", measure)


def run_until(
    config: TrainConfig, step: int, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Runs until a checkpoint is whole; returns the checkpoints that are there."""

    def complete(folder: Path) -> None:
        original(folder)
        if checkpoints.step_of(folder) == step:
            raise Killed

    original = checkpoints.complete
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "complete", complete)
        with pytest.raises(Killed):
            trainer.train(config, silent)
    folder = Path(config.output + ".partial", "checkpoints")
    return sorted(path.name for path in folder.glob("checkpoint-*"))


@pytest.mark.usefixtures("scripted")
def test_the_best_weights_are_published_whenever_the_run_is_killed(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = into(config, tmp_path / "out", keep_best=True)
    assert run_until(chosen, 3, monkeypatch) == ["checkpoint-2", "checkpoint-3"]
    best = weights(Path(chosen.output + ".partial", "checkpoints", "checkpoint-2"))
    assert run_until(chosen, 6, monkeypatch) == ["checkpoint-2", "checkpoint-6"]
    result = trainer.train(chosen, silent)
    assert weights(chosen.output) == best
    assert result.steps == 6
    assert manifest.read(chosen.output, publish.STAGE).counts["best_step"] == 2
    assert "after step 2 of 6" in Path(chosen.output, "README.md").read_text()
    again = into(config, tmp_path / "again", keep_best=True)
    trainer.train(again, silent)
    for name in ("model.safetensors", "README.md", manifest.NAME):
        assert Path(again.output, name).read_bytes() == (
            Path(chosen.output, name).read_bytes()
        )
    assert bits(again.output) == bits(chosen.output)


@pytest.mark.usefixtures("scripted")
def test_a_run_without_progress_ends_at_the_same_step_whenever_it_is_killed(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = into(config, tmp_path / "out", patience=2, save_steps=1)
    run_until(stopped, 4, monkeypatch)  # the last checkpoint: patience is out
    result = trainer.train(stopped, silent)
    assert result.steps == 4
    assert list(bits(stopped.output)) == [0, 1, 2, 3, 4]
    again = into(config, tmp_path / "again", patience=2, save_steps=100)
    assert trainer.train(again, silent).steps == 4
    assert weights(again.output) == weights(stopped.output)


def test_standing_counts_what_does_not_undercut_by_the_margin() -> None:
    standing = Standing()
    for step, value in enumerate([5.0, 4.9, 4.4, 4.45, 4.2], 1):
        standing = standing.after(step, value, 0.5)
    assert standing == Standing(best=4.2, best_step=5, mark=4.4, bad=2)


def test_an_older_checkpoint_without_evaluations_is_the_beginning(
    tmp_path: Path,
) -> None:
    standing = Standing(best=1 / 3, best_step=7, mark=0.4, bad=1)
    assert heldout.read(tmp_path) == heldout.read(None) == Standing()
    heldout.write(tmp_path, standing, keep=True)
    assert heldout.read(tmp_path) == standing


def test_processes_add_up_what_they_measured() -> None:
    one = {"nats": 1.5, "bytes": 10, "windows": 2, "failed": 1}
    two = {"nats": 2.5, "bytes": 30, "windows": 1, "failed": 0}
    both = {"nats": 4.0, "bytes": 40, "windows": 3, "failed": 1}
    assert heldout.joined([{"b": one}, {"b": two, "a": two}, {}]) == {
        "a": two,
        "b": both,
    }


def test_a_model_called_whole_is_measured_as_one_in_halves(config: TrainConfig) -> None:
    assert config.eval_data is not None
    model = transformers.AutoModelForCausalLM.from_pretrained(config.model)
    own = model.forward
    model.forward = silent  # as training leaves it
    measured = heldout.HeldOut(
        folder=config.eval_data,
        tokenizer=tokenizer.load(config.model),
        bfloat16=False,
    )
    model.train()
    alone = measured.measure(model, (0, 1))
    whole = measured.measure_sharded(model)
    for domain, found in alone.items():
        assert whole[domain] == pytest.approx(found, rel=1e-6)
    assert model.training
    assert model.forward is silent
    assert own is not silent


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A group of one process, over which FSDP shards."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def gradient(config: TrainConfig, measured: heldout.HeldOut | None) -> Any:
    """Returns what was measured before a step of a sharded model, and its gradient."""
    model = transformers.AutoModelForCausalLM.from_pretrained(config.model)
    models.give_objective(
        model, Traits(plain_head=True, keeps_segments=True), Objective()
    )
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    for layer in (*model.model.layers, model):
        fully_shard(layer, mesh=mesh)
    model.train()
    found = measured and measured.measure_sharded(model)
    torch.manual_seed(0)
    folder = FusedFolder(config.data)
    batch = Collator(keep_packed=True, vocabulary=300)([folder.read(0, 0).example(0)])
    count = torch.tensor(10.0)
    counts = {"clm_count": count, "fusion_count": count}
    model(**batch, clm_weight=0.9, **counts)["loss"].backward()
    return found, [p.grad.full_tensor() for p in model.parameters()]


@pytest.mark.usefixtures("alone")
def test_a_sharded_model_is_measured_and_then_trained_as_if_it_were_not(
    config: TrainConfig,
) -> None:
    assert config.eval_data is not None
    measured = heldout.HeldOut(
        folder=config.eval_data,
        tokenizer=tokenizer.load(config.model),
        bfloat16=False,
    )
    found, gradients = gradient(config, measured)
    plain = transformers.AutoModelForCausalLM.from_pretrained(config.model)
    for domain, wanted in measured.measure(plain, (0, 1)).items():
        assert found[domain] == pytest.approx(wanted, rel=1e-6)
    _, others = gradient(config, None)
    for one, other in zip(gradients, others, strict=True):
        assert torch.equal(one, other)


def test_bfloat16_is_measured_near_float32(config: TrainConfig) -> None:
    assert config.eval_data is not None
    model = transformers.AutoModelForCausalLM.from_pretrained(config.model)
    wide, narrow = (
        evaluate.bits_per_byte(
            heldout.HeldOut(
                folder=config.eval_data,
                tokenizer=tokenizer.load(config.model),
                bfloat16=bfloat16,
            ).measure(model, (0, 1))
        )
        for bfloat16 in (False, True)
    )
    assert narrow == pytest.approx(wide, rel=1e-2)
    assert narrow != wide


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eval_data": None}, "eval_data must be given"),
        ({"eval_steps": None, "patience": 2}, "eval_steps must be given"),
        ({"eval_steps": None, "keep_best": True}, "eval_steps must be given"),
        ({"eval_steps": 0}, "eval_steps must be above 0"),
        ({"patience": 0}, "patience must be above 0"),
        ({"min_delta": -0.1}, "min_delta must be at least 0"),
    ],
)
def test_settings_of_evaluations_that_do_not_fit_are_refused(
    config: TrainConfig, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(config, **changes)


def test_a_batch_that_does_not_fit_is_an_error_where_all_must_call_alike() -> None:
    def fail(**_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    whole = heldout._Whole(fail, None, torch.float32)
    with pytest.raises(SchemaError, match="memory must hold 6 tokens of held-out"):
        whole(input_ids=torch.zeros(2, 3))
