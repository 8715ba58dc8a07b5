"""Runs of recipes with pairs: what is done, what is not done again, and its bytes."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipelines import fuse, recipe, run, verify
from pipelines.fuse import FuseConfig
from pipelines.progress import Stage
from pipelines.recipe import Recipe
from schemas import files
from schemas.errors import SchemaError
from tests import small_run, tiny
from train import trainer

Contents = Callable[[str], dict[str, str]]


@pytest.fixture(scope="module")
def sources(
    tmp_path_factory: pytest.TempPathFactory, models: dict[str, str]
) -> dict[str, str]:
    """Returns a source of another tokenizer than the pivot's, and one of the same."""
    alike = tiny.llama(tmp_path_factory.mktemp("sources") / "alike", seed=5)
    return {"other": models["neox"], "alike": str(alike)}


def read(
    folder: Path,
    corpus: list[str],
    models: Mapping[str, str],
    sources: Mapping[str, str],
    *,
    overwrite: bool = False,
) -> Recipe:
    """Writes a recipe of pairs, whose run's folder is `run` beside it, and reads it."""
    text = small_run.recipe(
        corpus,
        models["llama"],
        sources,
        output=f"{folder}/run",
        slice_bytes=4000,
        prepare={
            **small_run.TABLES["prepare"],
            "models": [models["llama"], models["neox"]],
        },
        pairs={},
        arms={"many": {"fusion": "fused"}},
        train={
            "epochs": 1,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "clm_weight": 0.5,
            "threads": 1,
            "save_steps": 2,
        },
        evaluate={"threads": 1},
        **{"merges.mean": {"method": "linear"}},
    )
    (folder / "recipe.toml").write_text(text)
    return recipe.read(f"{folder}/recipe.toml", overwrite=overwrite)


@pytest.fixture(scope="module")
def plan(
    tmp_path_factory: pytest.TempPathFactory,
    corpus: list[str],
    models: dict[str, str],
    sources: dict[str, str],
) -> Recipe:
    """Returns the recipe of a run that is done, of two pairs."""
    made = read(tmp_path_factory.mktemp("pairs"), corpus, models, sources)
    run.run(made)
    return made


def stamps(folder: str) -> dict[str, int]:
    root = Path(folder)
    return {
        str(path.relative_to(root)): path.stat().st_mtime_ns
        for path in root.rglob("*")
        if path.is_file() and path.name != run.RESULT
    }


def table(plan: Recipe) -> dict[str, Any]:
    return dict(files.read_json(plan.folder(run.RESULT))["models"])


def weights(folder: str) -> str:
    return files.checksum(f"{folder}/model.safetensors")


def test_a_run_of_pairs_measures_every_target_and_merge(plan: Recipe) -> None:
    rows = table(plan)
    assert rows.keys() == {
        *("untouched", "many", "pair.other", "pair.alike"),
        *("merge:mean", "source:other", "source:alike"),
    }
    assert len({row["all"] for row in rows.values()}) == len(rows)


@pytest.mark.parametrize("source", ["other", "alike"])
def test_a_pair_is_what_fusing_and_training_by_hand_give(
    source: str, plan: Recipe, contents: Contents, tmp_path: Path
) -> None:
    fused = fuse.fuse_scores(
        FuseConfig(
            windows=plan.folder("windows", "fusion"),
            target=plan.folder("scores", "target"),
            sources=(f"{source}={plan.folder('scores', source)}",),
            output=str(tmp_path / "fused"),
            granularity="document",
            top_k=6,
            seq_length=512,
        )
    )
    assert fused is not None
    assert fused.settings["sources"] == sorted([source, "target"])
    pair = plan.folder("fusions", f"pair.{source}")
    assert contents(str(tmp_path / "fused")) == contents(pair)
    (arm,) = [arm for arm in plan.arms if arm.name == f"pair.{source}"]
    trained = trainer.train(
        dataclasses.replace(
            plan.train(arm),
            data=str(tmp_path / "fused"),
            output=str(tmp_path / "model"),
        )
    )
    assert weights(trained.output) == weights(plan.models[arm.name])
    assert weights(trained.output) != weights(plan.models["many"])


def test_a_run_of_pairs_is_proved_whole(plan: Recipe) -> None:
    assert len(verify.verify([plan.output])) == 13
    _, left = verify.between([plan.output])
    assert not left


def test_a_second_run_writes_nothing(plan: Recipe) -> None:
    before, rows = stamps(plan.output), table(plan)
    run.run(plan)
    assert stamps(plan.output) == before
    assert table(plan) == rows


def test_a_part_is_done_alone_and_the_rest_from_the_same_scores(
    plan: Recipe,
    corpus: list[str],
    models: dict[str, str],
    sources: dict[str, str],
    contents: Contents,
    tmp_path: Path,
) -> None:
    half = read(tmp_path, corpus, models, sources)
    run.run(half, only=["pair.other"])
    root = Path(half.output)
    for folder, names in {
        "scores": {"target", "other"},
        "fusions": {"pair.other"},
        "models": {"pair.other"},
    }.items():
        assert {path.name for path in (root / folder).iterdir()} == names
    assert not (root / "merges").exists()
    assert table(half).keys() == {"pair.other"}
    before = stamps(half.output)
    run.run(half, only=["merge.mean"])
    after = stamps(half.output)
    assert {name: after[name] for name in before} == before
    assert not (root / "fused").exists()
    both = ("pair.other", "merge:mean")
    assert table(half) == {name: table(plan)[name] for name in both}
    for name in ("scores", "fusions"):
        assert contents(half.folder(name)) == contents(plan.folder(name))
    assert weights(half.models["merge:mean"]) == weights(plan.models["merge:mean"])


def test_a_row_of_a_model_that_is_gone_leaves_the_table(
    plan: Recipe,
    corpus: list[str],
    models: dict[str, str],
    sources: dict[str, str],
    tmp_path: Path,
) -> None:
    shutil.copytree(plan.output, tmp_path / "run")
    moved = read(tmp_path, corpus, models, sources)
    names = set(run.evaluate_all(moved, (), Stage("evaluate"))["models"])
    assert names == set(moved.models)
    shutil.rmtree(moved.models["pair.other"])
    shutil.copytree(
        moved.models["many"], moved.models["pair.alike"], dirs_exist_ok=True
    )
    left = set(run.evaluate_all(moved, (), Stage("evaluate"))["models"])
    assert names - left == {"pair.other", "pair.alike"}


def test_a_run_that_is_killed_while_it_trains_a_pair_ends_with_the_same_bytes(
    plan: Recipe,
    corpus: list[str],
    models: dict[str, str],
    sources: dict[str, str],
    contents: Contents,
    tmp_path: Path,
) -> None:
    for name in ("windows", "scores"):
        shutil.copytree(plan.folder(name), tmp_path / "run" / name)
    killed = read(tmp_path, corpus, models, sources)
    moment = Path(f"{killed.models['pair.alike']}.partial", "checkpoints")
    command = [sys.executable, "-m", "pipelines.cli", "run", f"{tmp_path}/recipe.toml"]
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        end = time.monotonic() + 240
        while not moment.exists():
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < end, "the run never came that far"
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    assert not Path(killed.models["merge:mean"]).exists()
    done = stamps(killed.models["pair.other"])
    run.run(killed)
    assert stamps(killed.models["pair.other"]) == done
    for name in ("fusions", "fused"):
        assert contents(killed.folder(name)) == contents(plan.folder(name))
    for name, model in plan.models.items():
        if model.startswith(plan.output):
            assert weights(killed.models[name]) == weights(model)
    assert table(killed) == table(plan)


def test_a_source_that_comes_later_costs_its_own_pair_and_the_merges(
    plan: Recipe,
    corpus: list[str],
    models: dict[str, str],
    sources: dict[str, str],
    tmp_path: Path,
) -> None:
    shutil.copytree(plan.output, tmp_path / "run")
    late = {**sources, "late": str(tiny.llama(tmp_path / "late", seed=6))}
    more = read(tmp_path, corpus, models, late)
    before = stamps(more.output)
    run.run(more, only=["pair.late"])
    after = stamps(more.output)
    assert {name: after[name] for name in before} == before
    with pytest.raises(SchemaError, match="merges/mean was written with"):
        run.run(more, only=["merge.mean"])
    again = read(tmp_path, corpus, models, late, overwrite=True)
    result = run.run(again, only=["merge.mean"])["models"]
    changed = {n for n, at in stamps(more.output).items() if after.get(n) != at}
    assert {name.split("/")[0] for name in changed} == {"merges", "evaluation"}
    assert result["merge:mean"] != table(plan)["merge:mean"]
