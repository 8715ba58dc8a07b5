"""Merges that are broken off, or meet another at their folder."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from pipelines import clean, merge, merged, stage, verify
from schemas import manifest
from schemas.errors import FusionError, SchemaError
from tests import merging
from tests.merging import ALL, KEY, SMALL, Made, run
from train.merge import methods, plan, sums, work
from train.merge.reading import Opened

Contents = Callable[[str], dict[str, str]]


def harm(task: work.MergeShards, opened: Opened, tensor: plan.Tensor) -> memoryview:
    if tensor.key == KEY:
        raise KeyboardInterrupt
    return MAKE(task, opened, tensor)


MAKE = work.MergeShards._bytes


@pytest.mark.parametrize("change", ["seed", "weights"])
def test_files_of_two_merges_are_never_loaded_as_a_model(
    change: str, spoilt: Made, out: str, tmp_path: Path, contents: Contents
) -> None:
    told = {"settings": {"weight": 0.5, "density": 0.4}, "overwrite": True}
    run(spoilt, out, "dare_linear", **told)
    if change == "weights":
        merging.rewrite(spoilt["m2"], merging.state(spoilt["m1"]))
    more: dict[str, Any] = {"seed": 1} if change == "seed" else {}
    # In this process: no runner is started for it.
    more["slices"] = f"0-{len(plan.read(out)) - 1}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work.MergeShards, "_bytes", harm)
        with pytest.raises(KeyboardInterrupt):
            run(spoilt, out, "dare_linear", **told, **more)
    assert any(Path(out).glob("model-*.safetensors"))
    with pytest.raises(ValueError, match=r"in its config\.json"):
        AutoModelForCausalLM.from_pretrained(out)
    run(spoilt, out, "dare_linear", **told, **more)
    run(spoilt, str(tmp_path / "new"), "dare_linear", **told, **more)
    assert contents(out) == contents(str(tmp_path / "new"))


def test_a_configuration_stays_beside_files_that_are_all_there(
    made: Made, out: str
) -> None:
    run(made, out)
    (Path(out) / manifest.NAME).unlink()
    given = merging.given(made, out, "ties", **SMALL)
    found = merge.plan_merge(given)
    identity = stage.identity(
        work.STAGE, given.shaping, merged.inputs_of(found.sources, found.shards)
    )
    merged.begin(out, found.sources, found.shards, identity)
    assert (Path(out) / "config.json").exists()


def test_a_configuration_goes_when_another_merge_publishes_while_it_is_written(
    made: Made, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(made, out)
    run(made, str(tmp_path / "other"), "linear", slices=ALL)
    (Path(out) / manifest.NAME).unlink()
    given = merging.given(made, out, "ties", **SMALL)
    told, describe = merge.describe_as(given, merge.plan_merge(given)), merged._manifest

    def disturbed(*args: Any) -> Any:
        name = plan.read(out)[0].file
        shutil.copy(tmp_path / "other" / name, out)
        return describe(*args)

    monkeypatch.setattr(merged, "_manifest", disturbed)
    with pytest.raises(FusionError, match="another command wrote it anew"):
        merged.describe(out, told)
    assert not (Path(out) / "config.json").exists()
    assert not (Path(out) / manifest.NAME).exists()


def test_who_publishes_beside_a_finished_merge_takes_its_configuration_away(
    made: Made, out: str
) -> None:
    given = merging.given(made, out, "linear", overwrite=True, **SMALL)
    found = merge.plan_merge(given)
    (task,) = merge._works(given.config, found, "another")
    run(made, out)  # ends after the other has begun
    task.make(plan.to_line(found.shards[0]))
    assert not (Path(out) / manifest.NAME).exists()
    assert not (Path(out) / "config.json").exists()


def test_a_kill_behind_the_manifest_leaves_no_sums_for_ever(
    made: Made, out: str, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"settings": {"granularity": "layer"}, "slices": ALL}
    with monkeypatch.context() as patch:
        patch.setattr(merged, "drop_sums", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(made, out, "varm", **more)
    assert (Path(out) / manifest.NAME).exists()
    with pytest.raises(SchemaError, match="but sums is there, too"):
        verify.verify([out])
    run(made, out, "varm", **more)
    assert not (Path(out) / "sums").exists()
    verify.verify([out])


def test_weights_that_no_manifest_lists_are_found(made: Made, out: str) -> None:
    run(made, out, slices=ALL)
    shutil.copy(Path(out) / plan.read(out)[0].file, Path(out) / "model-x.safetensors")
    with pytest.raises(SchemaError, match=r"but model-x\.safetensors is there, too"):
        verify.verify([out])


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_folder_that_another_launcher_has_ended_counts_as_done(
    when: str, made: Made, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {**SMALL, "settings": {"granularity": "layer"}}
    given = merging.given(made, out, "varm", **more)
    told = merge.describe_as(given, merge.plan_merge(given))
    with monkeypatch.context() as patch:
        patch.setattr(merged, "describe", lambda *_: None)
        assert (
            merge.merge_models(merging.given(made, out, "varm", **more, slices=ALL))
            is None
        )
    sums.weights.cache_clear()
    if when == "before":
        first = merged.describe(out, told)
    else:
        measure, ended = merged._measured, []

        def late(*args: Any) -> Any:
            if not ended:
                ended.append(None)
                ended.append(merged.describe(out, told))
                sums.weights.cache_clear()
            return measure(*args)

        monkeypatch.setattr(merged, "_measured", late)
        first = merged.describe(out, told)
        assert first.files == tuple(ended[1].files)
    assert merged.describe(out, told).files == tuple(first.files)
    assert not (Path(out) / "sums").exists()
    verify.verify([out])


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def interrupted_measure(task: sums.MeasureShards, line: str) -> None:
    if plan.from_line(line).index == 1:
        raise KeyboardInterrupt
    MEASURE(task, line)


MEASURE = sums.MeasureShards.make


@pytest.mark.parametrize("where", ["first pass", "between", "second pass", "describe"])
def test_a_merge_in_two_passes_that_is_broken_off_ends_with_the_same_bytes(
    where: str, made: Made, out: str, tmp_path: Path, contents: Contents
) -> None:
    more = {"settings": {"granularity": "layer"}, "slices": ALL}
    spots: dict[str, tuple[Any, str, Any]] = {
        "first pass": (sums.MeasureShards, "make", interrupted_measure),
        "between": (work.MergeShards, "make", interrupt),
        "second pass": (work.MergeShards, "_bytes", harm),
        "describe": (merged, "_write_model", interrupt),
    }
    run(made, out, "varm", **more)
    broken = str(tmp_path / "broken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*spots[where])
        with pytest.raises(KeyboardInterrupt):
            run(made, broken, "varm", **more)
    assert list(Path(broken, "sums").iterdir())
    assert not (Path(broken) / "config.json").exists()
    run(made, broken, "varm", **more)
    clean.clean([broken], older_than_s=0, dry_run=False)
    assert contents(broken) == contents(out)
    assert not (Path(broken) / "sums").exists()


def test_a_changed_default_of_a_method_is_another_merge(
    made: Made, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(made, out)
    ties = methods.METHODS["ties"]
    density = dataclasses.replace(ties.parameters["density"], default=0.5)
    other = {**ties.parameters, "density": density}
    changed = dataclasses.replace(ties, parameters=other)
    monkeypatch.setitem(methods.METHODS, "ties", changed)
    told = (
        r"with settings\.density of .* = \[1\.0, 1\.0\], and now it is \[0\.5, 0\.5\]"
    )
    with pytest.raises(SchemaError, match=told):
        run(made, out)


def test_an_unfinished_folder_of_other_settings_is_named(made: Made, out: str) -> None:
    run(made, out)
    (Path(out) / manifest.NAME).unlink()
    with pytest.raises(SchemaError, match=r"made with other settings or inputs"):
        run(made, out, seed=1)
    with pytest.raises(
        SchemaError, match=r"with settings\.density of .*= \[1\.0, 1\.0\], and n"
    ):
        run(made, out, settings={"density": 0.5})
    with pytest.raises(SchemaError, match=r"begun with other settings or models"):
        run(made, out, shard_bytes=10**9)
