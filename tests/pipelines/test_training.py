import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import recipe, training
from pipelines.progress import Stage
from pipelines.recipe import Recipe
from schemas import files, manifest
from schemas.errors import SchemaError
from tests.train import shards

Read = Callable[..., Recipe]


@pytest.fixture
def read(tmp_path: Path, models: dict[str, str]) -> Read:
    """Returns what writes a recipe of two arms, whose data are there, and reads it."""
    shards.write(tmp_path / "run" / "fused", vocabulary=400)

    def text(rate: str, overwrite: bool = False, two: str = "") -> Recipe:
        path = tmp_path / "recipe.toml"
        path.write_text(
            f"""
output = "{tmp_path}/run"
[corpus]
inputs = ["a.jsonl"]
[prepare]
splits = "fusion=.5,dev=.2,heldout=.3"
[target]
model = "{models["neox"]}"
[sources.one]
model = "m"
[train]
batch_size = 2
max_steps = 2
threads = 1
device = "cpu"
learning_rate = {rate}
[arms.one]
clm_weight = 0.5
[arms.two]
clm_weight = 0.5
{two}
"""
        )
        return recipe.read(str(path), overwrite=overwrite)

    return text


def train(plan: Recipe, name: str) -> None:
    (arm,) = [arm for arm in plan.arms if arm.name == name]
    training.train_arm(plan, arm, Stage(name))


def weights(plan: Recipe, name: str) -> tuple[str, int]:
    """Returns a digest of an arm's weights, and when they were written."""
    path = Path(plan.models[name], "model.safetensors")
    return files.checksum(str(path)), path.stat().st_mtime_ns


def test_an_arm_of_the_same_settings_takes_the_model_that_is_there(
    read: Read, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = read("1e-3")
    train(plan, "one")
    train(plan, "two")
    assert "the same settings as one: its model is taken" in capsys.readouterr().out
    assert weights(plan, "two")[0] == weights(plan, "one")[0]


def test_a_model_of_settings_of_before_is_neither_taken_nor_put_over_a_finished_one(
    read: Read, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read("1e-3")
    train(before, "one")
    stale = weights(before, "one")
    plan = read("1e-2")
    train(plan, "two")
    assert "is taken" not in capsys.readouterr().out
    assert weights(plan, "one") == stale
    made = weights(plan, "two")
    assert made[0] != stale[0]
    train(read("1e-2", overwrite=True), "two")
    assert weights(plan, "two") == made


def test_a_model_of_data_of_before_is_not_taken_either(
    read: Read, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = read("1e-3")
    train(plan, "one")
    data = plan.folder("fused")
    fused = manifest.read(data, "fused")
    manifest.write(data, dataclasses.replace(fused, fingerprint="0" * 32))
    train(plan, "two")
    assert "is taken" not in capsys.readouterr().out


def test_a_model_of_settings_of_before_gives_way_to_another_arm_s_only_if_told(
    read: Read, capsys: pytest.CaptureFixture[str]
) -> None:
    train(read("1e-3"), "two")
    plan = read("1e-2")
    before = weights(plan, "two")
    train(plan, "one")
    with pytest.raises(SchemaError, match=r"models/two was written with learning_rate"):
        train(plan, "two")
    assert weights(plan, "two") == before
    train(read("1e-2", overwrite=True), "two")
    assert "the same settings as one" in capsys.readouterr().out
    assert weights(plan, "two")[0] == weights(plan, "one")[0]


@pytest.fixture
def dev(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the dev split choose the least learning rate."""

    def evaluate_model(config: Any, _: Any) -> dict[str, Any]:
        nats = float(config.name.removeprefix("two."))
        return {"a": {"nats": nats, "bytes": 1, "windows": 1, "failed": 0}}

    monkeypatch.setattr(training.evaluate, "evaluate_model", evaluate_model)


def test_a_choice_of_rates_replaces_a_model_of_none_of_them_only_if_told(
    read: Read, dev: None
) -> None:
    train(read("1e-3"), "two")
    rates = "learning_rate = [3e-3, 2e-3]"
    plan = read("1e-3", two=rates)
    before = weights(plan, "two")
    with pytest.raises(SchemaError, match=r"models/two was written with learning_rate"):
        train(plan, "two")
    assert weights(plan, "two") == before
    assert not Path(plan.folder("trials")).exists()
    train(read("1e-3", overwrite=True, two=rates), "two")
    assert weights(plan, "two")[0] != before[0]


def test_a_choice_of_rates_replaces_what_was_chosen_of_fewer(
    read: Read, dev: None
) -> None:
    train(read("1e-3"), "two")
    plan = read("1e-3", two="learning_rate = [1e-3, 2e-3]")
    before = weights(plan, "two")
    train(plan, "two")
    assert weights(plan, "two")[0] == before[0]
    more = read("1e-3", two="learning_rate = [1e-3, 2e-3, 5e-4]")
    train(more, "two")
    assert weights(more, "two")[0] != before[0]
    chosen = files.read_json(files.join(more.models["two"], training.CHOICE))
    assert chosen["chosen"] == 5e-4
