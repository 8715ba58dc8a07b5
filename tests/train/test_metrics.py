import dataclasses
import json
import math
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.integrations.integration_utils import rewrite_logs

from tests import tiny
from tests.train import shards
from train import loss, metrics, trainer
from train.config import TrainConfig
from train.data import Collator, Example
from train.loss import Objective
from train.metrics import Meter, Work
from train.rows import select_rows
from transforms.functional.codec import Distributions

VOCABULARY = 7


@pytest.fixture
def rows() -> loss.Rows:
    """Four positions of one row; the third has no fused row."""
    ids = torch.tensor([[[3, 5], [2, 4], [-1, -1], [6, 1], [-1, -1]]])
    probs = torch.tensor([[[0.6, 0.2], [0.3, 0.5], [0, 0], [0.7, 0.3], [0, 0]]])
    return select_rows(
        torch.tensor([[0, 3, 2, 1, 6]]),
        torch.tensor([[True, True, True, True, False]]),
        ids,
        probs,
        torch.tensor([[0.2, 0.2, 0.0, 0.0, 0.0]]),
    )


def logits() -> torch.Tensor:
    """Likeliest ids 3, 2, 0, 6: the fused rows' are 3, 4, none, 6."""
    z = torch.linspace(-1, 1, 4 * VOCABULARY).reshape(4, VOCABULARY).sin()
    z[range(4), [3, 2, 0, 6]] = 5.0
    return z


def test_agreement_and_kept_mass_are_of_positions_with_a_fused_row(
    rows: loss.Rows,
) -> None:
    counts = {"clm_count": torch.tensor(4.0), "fusion_count": torch.tensor(3.0)}
    z, goal = logits(), Objective()
    found = loss.logits_loss(z, rows, goal, **counts)
    headed = loss.head_loss(z, torch.eye(VOCABULARY), None, rows, goal, **counts)
    q = z.double().softmax(-1)
    kept = q[0, [3, 5]].sum() + q[1, [2, 4]].sum() + q[3, [6, 1]].sum()
    for one in (found, headed):
        assert one.agree_sum == 2
        assert float(one.kept_sum) == pytest.approx(float(kept), rel=1e-6)


def test_what_fused_rows_say_is_summed_without_the_target(rows: loss.Rows) -> None:
    found = metrics.of_rows(rows)
    assert float(found["mass_sum"]) == pytest.approx(0.8 + 0.8 + 1.0)
    assert float(found["tail_sum"]) == pytest.approx(0.4)
    assert found["gold_sum"] == 2  # 3 and 6 come next, 4 does not


def test_positions_beside_the_clm_loss_are_in_no_figure(rows: loss.Rows) -> None:
    # Under `reference` the fusion loss has positions that the text's loss has not.
    counted = torch.tensor([1.0, 1.0, 1.0, 0.0])
    less = dataclasses.replace(rows, clm_weights=counted, weights=torch.ones(4))
    counts = {"clm_count": torch.tensor(3.0), "fusion_count": torch.tensor(4.0)}
    found = loss.logits_loss(logits(), less, Objective(), **counts)
    told = metrics.of_rows(less)
    assert (found.agree_sum, told["gold_sum"]) == (1, 1)
    assert float(told["mass_sum"]) == pytest.approx(0.8 + 0.8)
    assert float(found.kept_sum) < 2


def test_a_source_has_its_share_of_the_positions_that_have_a_fused_row() -> None:
    counts = np.array([1, 1, 0, 1, 1, 1], np.int32)
    ids = np.where(counts[:, None] > 0, 2, -1).astype(np.int32)
    row = Example(
        input_ids=np.arange(6, dtype=np.int32),
        segment_lengths=np.array([4, 2], np.int32),
        loss_mask=np.array([True, True, True, False, True, False]),
        rows=Distributions(
            counts=counts,
            ids=ids,
            probs=np.where(ids > 0, 1.0, 0.0).astype(np.float32),
            tail=np.zeros(6, np.float32),
        ),
        weights=np.array([[0.25, 0.75], [1.0, 0.0]], np.float32),
    )
    for packed in (True, False):
        batch = Collator(keep_packed=packed, vocabulary=9)([row, row])
        assert batch["sources"].tolist() == [2 * (2 * 0.25 + 1), 2 * (2 * 0.75)]
        assert batch["attended"] == 2 * (16 + 4)
        assert batch["tokens"] == 12


def test_a_line_holds_the_means_of_all_steps_since_the_last() -> None:
    now = [0.0]
    meter = Meter(
        ["a", "b"], Work(of_token=100, of_pair=2), 1000.0, clock=lambda: now[0]
    )
    names = ("clm", "fusion", "agree", "kept", "mass", "tail", "gold", "chunk")
    for step in (1.0, 3.0):
        meter.add_counts(10.0, 50.0, [3.0, 1.0])
        sums = {f"{n}_sum": torch.tensor(step * i) for i, n in enumerate(names, 1)}
        # Positions that count, what those with a row weigh, chunks, covered positions.
        meter.add_losses(sums, torch.tensor([8.0, 2.0, 5.0, 4.0]), processes=1)
    now[0] = 6.0
    with meter.paused():
        now[0] = 10.0
    assert meter.take(lambda values: values) == {
        "train/tokens_per_s": round(20 / 6, 1),
        "train/flops_per_s": round((2000 + 200) / 6),
        "train/mfu": round(2200 / 6 / 1000, 4),
        "train/clm_nats": 4 / 16,
        "train/fusion_nats": 8 / 4,
        "train/chunk_nats": 32 / 10,
        "train/coverage": 0.5,
        "train/agreement": 12 / 8,
        "train/kept_mass": 20 / 8,
        "train/tail_mass": 24 / 8,
        "train/target_kept_mass": 16 / 8,
        "train/fused_accuracy": 28 / 8,
        "train/source/a": 6 / 8,
        "train/source/b": 2 / 8,
    }
    again = meter.take(lambda values: values)
    assert again["train/clm_nats"] == again["train/source/a"] == 0


def test_weights_of_other_sources_than_those_named_are_refused() -> None:
    meter = Meter(["a"], Work(of_token=1, of_pair=1), 1.0)
    with pytest.raises(ValueError, match=r"weight of each source, \['a'\], but have 2"):
        meter.add_counts(1.0, 1.0, [0.5, 0.5])


@pytest.mark.parametrize("tied", [True, False])
def test_operations_are_six_a_weight_and_twelve_a_pair(tied: bool) -> None:
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=6,
        tie_word_embeddings=tied,
    )
    model = transformers.LlamaForCausalLM(config)
    attention = 8 * 12 + 2 * 8 * 6 + 12 * 8
    layer = attention + 3 * 8 * 12 + 2 * 8
    work = metrics.work_of(model)
    assert work == Work(of_token=6 * (3 * layer + 8 + 50 * 8), of_pair=12 * 3 * 12)
    assert work(10.0, 40.0) == 10 * work.of_token + 40 * work.of_pair
    model.model.layers.requires_grad_(False)
    frozen = work.of_token - 2 * 3 * layer
    assert metrics.work_of(model).of_token == frozen


def test_weights_packed_in_four_bits_count_as_what_they_stand_for() -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).requires_grad_(False)
    wanted = metrics.work_of(model)
    for layer in model.model.layers.modules():
        if isinstance(layer, torch.nn.Linear):
            shape = layer.weight.shape
            # As bitsandbytes has it: two numbers a byte, in a column.
            packed = torch.zeros(shape.numel() // 2, 1, dtype=torch.uint8)
            layer.weight = torch.nn.Parameter(packed, requires_grad=False)
            layer.weight.quant_state = types.SimpleNamespace(shape=shape)
    assert metrics.work_of(model) == wanted


def test_trackers_get_the_names_of_the_file() -> None:
    names = [f"train/{n}" for n in ("loss", "source/eval_x", "source/test", "tokens")]
    names += ["eval/bits_per_byte/all", "eval/bits_per_byte/train/x", "eval/seconds"]
    line: metrics.Line = {"step": 3, **dict.fromkeys(names, 0.5)}
    assert rewrite_logs(metrics.spell(line)) == dict.fromkeys(names, 0.5)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("watched")
    return TrainConfig(
        data=str(shards.write(folder / "fused", vocabulary=300)),
        model=str(tiny.llama(folder / "target")),
        output=str(folder / "out"),
        batch_size=2,
        max_steps=3,
        logging_steps=1,
        threads=1,
        device="cpu",
    )


def events_of(folder: Path) -> dict[str, dict[int, float]]:
    """Returns what TensorBoard shows of a folder: values by name and step."""
    from tensorboard.backend.event_processing import event_accumulator

    found = event_accumulator.EventAccumulator(str(folder)).Reload()
    return {
        name: {event.step: event.value for event in found.Scalars(name)}
        for name in found.Tags()["scalars"]
    }


def test_tensorboard_shows_what_the_file_says(config: TrainConfig) -> None:
    trainer.train(dataclasses.replace(config, report_to=("tensorboard",)), _silent)
    lines = Path(config.output, "metrics.jsonl").read_text().splitlines()
    wanted: dict[str, dict[int, Any]] = {}
    for line in map(json.loads, lines):
        for name in line.keys() - {"step"}:
            wanted.setdefault(name, {})[line["step"]] = line[name]
    (run,) = Path(config.output, "runs").iterdir()
    shown = events_of(run)
    assert shown.keys() == wanted.keys()
    for name, values in wanted.items():
        assert shown[name] == pytest.approx(values, rel=1e-6), name
    assert wanted["train/source/one"] == {1: 0.75, 2: 0.75, 3: 0.75}
    assert 0 < wanted["train/coverage"][3] < 1
    masses = zip(
        wanted["train/kept_mass"].values(),
        wanted["train/tail_mass"].values(),
        strict=True,
    )
    assert all(math.isclose(kept + tail, 1, rel_tol=1e-5) for kept, tail in masses)


def _silent(_: str) -> None:
    pass


def test_mfu_is_the_share_of_the_peak_that_is_told(config: TrainConfig) -> None:
    output = f"{config.output}-peak"
    told = dataclasses.replace(config, output=output, max_steps=1, peak_tflops=0.5)
    line = trainer.train(told, _silent).metrics
    assert line["train/mfu"] == round(line["train/flops_per_s"] / 0.5e12, 4)
    with pytest.raises(ValueError, match="peak_tflops must be above 0"):
        dataclasses.replace(config, peak_tflops=0.0)
