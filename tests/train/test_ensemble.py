import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from schemas import files
from schemas.errors import SchemaError
from tests import causal_models, tiny
from tests.train import held_out
from train import ensemble, evaluate
from train.ensemble import Ensemble
from train.evaluate import EvaluateConfig
from transforms import causal, tokenizer
from transforms.scorer import Scorer

WINDOWS = [held_out.window(n, ("code", "prose")[n % 2]) for n in range(5)]


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Returns three models of one tokenizer, with weights of their own."""
    made = tmp_path_factory.mktemp("trio")
    return [str(tiny.llama(made / f"llama{seed}", seed)) for seed in range(3)]


@pytest.fixture
def config(trio: list[str], tmp_path: Path) -> EvaluateConfig:
    return EvaluateConfig(
        name="all",
        model=trio[0],
        ensemble=tuple(trio[1:]),
        windows=held_out.write(tmp_path / "windows", WINDOWS),
        output=str(tmp_path / "evaluation"),
        device="cpu",
        threads=1,
    )


def alone(config: EvaluateConfig, model: str) -> EvaluateConfig:
    """Asks for a member alone."""
    return EvaluateConfig(
        name=Path(model).name,
        model=model,
        windows=config.windows,
        output=config.output,
        device="cpu",
        threads=1,
    )


def members(names: Sequence[str]) -> list[Any]:
    return [AutoModelForCausalLM.from_pretrained(name).eval() for name in names]


def mixed(models: Sequence[Any], weights: Sequence[float], ids: Tensor) -> np.ndarray:
    """Mixes probabilities in float64, the plain way: (t, v)."""
    with torch.no_grad():
        found = [model(input_ids=ids).logits[0].double().numpy() for model in models]
    peaks = [np.exp(logits - logits.max(-1, keepdims=True)) for logits in found]
    probs = [peak / peak.sum(-1, keepdims=True) for peak in peaks]
    return sum(weight * each for weight, each in zip(weights, probs, strict=True))


@pytest.mark.parametrize("weights", [(1 / 3,) * 3, (0.7, 0.3, 0.0), (0.0, 0.0, 1.0)])
def test_probabilities_are_the_weighted_mean_of_the_members(
    weights: tuple[float, ...], trio: list[str]
) -> None:
    models = members(trio)
    ids = torch.arange(20)[None] * 7 % 290
    with torch.inference_mode():
        found = Ensemble(models, weights)(ids).logits[0]
    assert found.dtype == torch.float32
    np.testing.assert_allclose(
        found.double().exp().numpy(), mixed(models, weights, ids), atol=2e-6
    )


def test_members_of_several_architectures_are_mixed_cut_or_not() -> None:
    # The head of opt cannot be cut off: its features are its logits.
    models = [causal_models.make(name, 96) for name in ("llama", "opt", "gemma2")]
    one = Ensemble(models, (0.5, 0.25, 0.25))
    halves = causal.Halves(one)
    ids = torch.arange(24)[None] * 5 % 96
    with torch.inference_mode():
        features = halves.features(ids)[0]
        some = torch.cat([halves.logits(features[:9]), halves.logits(features[9:])])
    wanted = mixed(models, (0.5, 0.25, 0.25), ids)
    np.testing.assert_allclose(some.double().exp().numpy(), wanted, atol=2e-6)
    assert features.shape[-1] < 3 * 96  # llama's and gemma's are not logits
    assert causal.longest_input(one) == causal_models.CONTEXT


def test_an_ensemble_of_one_is_that_model(trio: list[str]) -> None:
    (model,) = members(trio[:1])
    own = tokenizer.load(trio[0])
    wanted = Scorer(model, own, top_k=0).score(WINDOWS).scores
    found = Scorer(Ensemble([model], (1.0,)), own, top_k=0).score(WINDOWS).scores
    for one, other in zip(found, wanted, strict=True):
        assert one.nll_nats == pytest.approx(other.nll_nats, rel=1e-6)


def test_an_ensemble_costs_at_most_the_mean_of_its_members(
    config: EvaluateConfig, trio: list[str]
) -> None:
    # -log is convex (Jensen): -log mean p <= mean -log p, token by token.
    found = evaluate.evaluate_model(config)
    costs = [evaluate.evaluate_model(alone(config, model)) for model in trio]
    for domain, sums in found.items():
        mean = math.fsum(cost[domain]["nats"] for cost in costs) / 3
        assert sums["nats"] <= mean
        assert sums["bytes"] == costs[0][domain]["bytes"]


def test_a_result_is_of_all_members_and_what_they_weigh(
    config: EvaluateConfig, trio: list[str]
) -> None:
    first = evaluate.evaluate_model(config)
    assert evaluate.evaluate_model(config) == first
    for change in (
        {"ensemble": tuple(trio[2:])},
        {"ensemble_weights": (1.0, 1.0, 2.0)},
        {"ensemble": ()},
    ):
        with pytest.raises(SchemaError, match="was measured with model = "):
            evaluate.evaluate_model(EvaluateConfig(**{**vars(config), **change}))
    # Weights have no unit: these are the same.
    same = EvaluateConfig(**{**vars(config), "ensemble_weights": (2.0, 2.0, 2.0)})
    assert evaluate.measured(same) == first


def test_the_command_takes_the_members_and_what_they_weigh(
    config: EvaluateConfig, trio: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--{name}={getattr(config, name)}" for name in ("windows", "output")]
    words += ["--name=all", f"--model={trio[0]}", "--device=cpu", "--threads=1"]
    words += ["--ensemble", *trio[1:], "--ensemble_weights", "2", "1", "1"]
    assert evaluate.main(words) == 0
    weighted = EvaluateConfig(**{**vars(config), "ensemble_weights": (0.5, 0.25, 0.25)})
    found = evaluate.measured(weighted)
    assert found is not None
    assert f"{evaluate.bits_per_byte(found)['all']:.4f}" in capsys.readouterr().out


def test_models_of_other_tokens_are_refused(
    config: EvaluateConfig, models: dict[str, str]
) -> None:
    other = EvaluateConfig(**{**vars(config), "ensemble": (models["neox"],)})
    with pytest.raises(ValueError, match=r"must have one vocabulary, but .* tokens"):
        evaluate.evaluate_model(other)


def test_models_of_other_borders_are_refused(
    config: EvaluateConfig, trio: list[str], tmp_path: Path
) -> None:
    # One vocabulary, but texts begin and end with another token of it.
    copy = shutil.copytree(trio[1], tmp_path / "other")
    path = copy / "tokenizer_config.json"
    told = files.read_json(str(path))
    own = tokenizer.load(trio[1])
    told["bos_token"] = told["eos_token"] = own.vocabulary()[own.start_id + 1]
    path.write_text(json.dumps(told))
    other = EvaluateConfig(**{**vars(config), "ensemble": (str(copy),)})
    with pytest.raises(
        ValueError, match=r"has start token \d+ and .* \d+; take it out"
    ):
        evaluate.evaluate_model(other)


def test_models_of_other_widths_are_refused() -> None:
    models = [causal_models.make("llama", width) for width in (96, 104)]
    with pytest.raises(ValueError, match=r"number of logits.*got 96, 104"):
        Ensemble(models, (0.5, 0.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ensemble_weights": (1.0, 1.0)}, "a weight for each of its 3 models, got 2"),
        ({"ensemble_weights": (1.0, -1.0, 1.0)}, "at least 0, and not all 0, got 1, -"),
        ({"ensemble_weights": (0.0, 0.0, 0.0)}, "not all 0, got 0, 0, 0"),
        ({"ensemble_weights": (1.0, 1.0, math.inf)}, "finite"),
        ({"ensemble": (), "ensemble_weights": (1.0, 1.0)}, "each of its 1 models"),
        ({"tasks": ("arc",)}, "tasks are asked of one model"),
    ],
)
def test_what_makes_no_ensemble_is_refused_before_any_work(
    change: dict[str, Any], message: str, config: EvaluateConfig
) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluateConfig(**{**vars(config), **change})


def test_shares_sum_to_one() -> None:
    assert ensemble.shares((), 4) == (0.25,) * 4
    assert ensemble.shares((1.0, 3.0), 2) == (0.25, 0.75)
