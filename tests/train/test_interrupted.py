"""Trainings that are broken off, repeated, or meet another: the same bytes."""

import dataclasses
import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas import locks
from schemas.errors import SchemaError
from tests.train.runs import Killed, curve, other, silent, weights
from train import checkpoints, loop, offload, publish, states, trainer
from train.config import TrainConfig
from train.order import StepBatches


@pytest.fixture(scope="module")
def undisturbed(
    target: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    """The weights of `config`'s run, never interrupted."""
    output = str(tmp_path_factory.mktemp("undisturbed") / "out")
    whole = TrainConfig(
        data=str(data),
        model=str(target),
        output=output,
        batch_size=4,
        accumulation=2,
        max_steps=6,
        learning_rate=1e-3,
        save_steps=100,
        logging_steps=1,
        threads=1,
        device="cpu",
    )
    trainer.train(whole, silent)
    return weights(output)


def kill_at(step: int, where: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Ends the process's work within or after the writing of a checkpoint."""

    def complete(folder: Path) -> None:
        reached = checkpoints.step_of(folder) == step
        if not reached or where == "after":
            original(folder)
        if reached:
            raise Killed

    original = checkpoints.complete

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checkpoints, "complete", complete)

    return patch


@pytest.mark.parametrize("where", ["within", "after"])
@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_run_killed_at_a_checkpoint_ends_with_the_same_bytes(
    config: TrainConfig,
    undisturbed: bytes,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    where: str,
) -> None:
    with monkeypatch.context() as patched:
        kill_at(step, where)(patched)
        with pytest.raises(Killed):
            trainer.train(config, silent)
    assert not Path(config.output).exists()
    trainer.train(config, silent)
    assert weights(config.output) == undisturbed
    stated = json.loads(Path(config.output, "config.json").read_text())
    assert stated["use_cache"] is True  # the Trainer turns it off while it trains
    lines = Path(config.output, "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_lines_of_a_run_that_goes_on_between_two_of_them_are_the_undisturbed_ones(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, save_steps=3, logging_steps=4)
    whole = other(config, "whole")
    trainer.train(whole, silent)
    assert [line["step"] for line in curve(whole.output)] == [3, 4, 6]
    with monkeypatch.context() as patched:
        kill_at(3, "after")(patched)
        with pytest.raises(Killed):
            trainer.train(config, silent)
    trainer.train(config, silent)
    assert curve(config.output) == curve(whole.output)


def test_a_resumed_run_reads_only_the_rows_still_to_do(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counted(StepBatches):
        def __iter__(self) -> Iterator[list[int]]:
            for batch in super().__iter__():
                taken.append(batch)
                yield batch

    taken: list[list[int]] = []
    with monkeypatch.context() as patched:
        kill_at(4, "after")(patched)
        with pytest.raises(Killed):
            trainer.train(config, silent)
    monkeypatch.setattr(loop, "StepBatches", Counted)
    trainer.train(config, silent)
    assert len(taken) == 2 * config.accumulation


def test_a_run_killed_between_naming_and_tidying_up_is_finished(
    config: TrainConfig, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def publish_and_die(folder: Path, output: str) -> None:
        original(folder, output)
        raise Killed

    original = publish.publish
    with monkeypatch.context() as patched:
        patched.setattr(publish, "publish", publish_and_die)
        with pytest.raises(Killed):
            trainer.train(config, silent)
    assert trainer.train(config, silent).skipped
    assert not Path(config.output + ".partial").exists()
    assert weights(config.output) == undisturbed


def test_checkpoints_may_lie_on_another_disk_than_the_output(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def rename(source: Any, target: Any) -> None:
        crossing = str(source).startswith(str(disk)) != str(target).startswith(
            str(disk)
        )
        if crossing:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        original(source, target)

    original, disk = os.rename, tmp_path / "disk"
    monkeypatch.setattr(os, "rename", rename)
    config = dataclasses.replace(config, checkpoints=str(disk), max_steps=2)
    trainer.train(config, silent)
    again = dataclasses.replace(config, seed=1, overwrite=True)
    before = weights(config.output)
    trainer.train(again, silent)
    assert weights(config.output) != before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("checkpoints_in", [None, "disk"])
def test_of_two_commands_on_one_output_the_second_is_refused(
    config: TrainConfig,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    checkpoints_in: str | None,
) -> None:
    def try_another(folder: Path) -> None:
        for place in held:
            with (
                pytest.raises(SchemaError, match="must be of one command at a time"),
                locks.hold(place, "training"),
            ):
                raise AssertionError("two commands in one folder")
        original(folder)
        tried.append(folder)

    original, tried = checkpoints.complete, []
    held, run = [Path(f"{config.output}.partial")], config
    if checkpoints_in is not None:
        held.append(tmp_path / checkpoints_in)
        run = dataclasses.replace(config, checkpoints=str(held[1]))
    monkeypatch.setattr(locks, "WAIT_S", 0.0)
    with (
        locks.hold(held[0], "training"),
        pytest.raises(SchemaError, match=r"out\.partial"),
    ):
        trainer.train(run, silent)
    monkeypatch.setattr(checkpoints, "complete", try_another)
    trainer.train(dataclasses.replace(run, max_steps=2), silent)
    assert len(tried) == 1
    assert not any(place.exists() for place in held)


def test_a_run_that_another_command_finishes_meanwhile_is_not_done_again(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = dataclasses.replace(config, max_steps=1)
    trainer.train(run, silent)
    at = Path(config.output, "model.safetensors").stat().st_mtime_ns
    found = iter([False, True])
    monkeypatch.setattr(publish, "finished", lambda *_, **more: next(found))
    assert trainer.train(run, silent).skipped
    assert Path(config.output, "model.safetensors").stat().st_mtime_ns == at
    assert not Path(config.output + ".partial").exists()


def test_a_folder_of_checkpoints_that_holds_files_of_others_is_refused(
    config: TrainConfig, tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("x")
    run = dataclasses.replace(config, checkpoints=str(tmp_path / "home"))
    with pytest.raises(SchemaError, match=r"home must be .* but holds 'letter\.txt'"):
        trainer.train(run, silent)
    assert (tmp_path / "home" / "letter.txt").exists()


def test_a_run_killed_amid_the_files_of_a_checkpoint_ends_with_the_same_bytes(
    config: TrainConfig, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(folder: Path, *args: Any, **more: Any) -> None:
        original(folder, *args, **more)
        if checkpoints.step_of(folder) == 4:
            (cut,) = folder.glob("states/*.safetensors")
            os.truncate(cut, cut.stat().st_size // 2)
            raise Killed

    original = states.save
    with monkeypatch.context() as patched:
        patched.setattr(states, "save", save)
        with pytest.raises(Killed):
            trainer.train(config, silent)
    trainer.train(config, silent)
    assert weights(config.output) == undisturbed


def test_a_checkpoint_without_the_optimizers_states_is_refused(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        kill_at(2, "after")(patched)
        with pytest.raises(Killed):
            trainer.train(config, silent)
    (folder,) = Path(config.output + ".partial", "checkpoints").glob("*/states")
    shutil.rmtree(folder)
    with pytest.raises(SchemaError, match="must hold the optimizer's states"):
        trainer.train(config, silent)


def test_activations_kept_by_the_host_change_no_byte(
    config: TrainConfig, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = functools.partial(offload.activations, least_bytes=1)
    monkeypatch.setattr(offload, "activations", moved)
    trainer.train(dataclasses.replace(config, activation_offload=True), silent)
    assert weights(config.output) == undisturbed


@pytest.mark.slow
def test_a_process_killed_at_any_instant_ends_with_the_same_bytes(
    config: TrainConfig, undisturbed: bytes
) -> None:
    flags = [
        f"--{name}={value}"
        for name, value in dataclasses.asdict(config).items()
        if value not in (None, ()) and not isinstance(value, bool)
    ]
    command = [sys.executable, "-m", "train", *flags]
    metrics = Path(config.output + ".partial", "metrics.jsonl")
    kills = 0
    for lines in (1, 4):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            if metrics.exists() and len(metrics.read_text().splitlines()) >= lines:
                time.sleep(0.01 * lines)
                break
            time.sleep(0.005)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills == 2
    subprocess.run(command, check=True, capture_output=True)
    assert weights(config.output) == undisturbed
    whole = other(config, "whole")
    trainer.train(whole, silent)
    assert curve(config.output) == curve(whole.output)


def test_two_equal_runs_write_equal_folders(
    config: TrainConfig, undisturbed: bytes
) -> None:
    trainer.train(config, silent)
    again = other(config, "again")
    trainer.train(again, silent)
    names = sorted(p.name for p in Path(config.output).iterdir())
    assert names == sorted(p.name for p in Path(again.output).iterdir())
    for name in names:
        if name != "metrics.jsonl":  # it tells speeds
            found = Path(again.output, name).read_bytes()
            assert found == Path(config.output, name).read_bytes(), name
    assert weights(config.output) == undisturbed


def test_other_settings_in_an_unfinished_folder_are_refused_by_name(
    config: TrainConfig, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        kill_at(2, "after")(patched)
        with pytest.raises(Killed):
            trainer.train(dataclasses.replace(config, seed=1), silent)
    with pytest.raises(SchemaError, match="seed = 1, and now it is 42"):
        trainer.train(config, silent)
    trainer.train(dataclasses.replace(config, overwrite=True), silent)
    assert weights(config.output) == undisturbed


def test_a_run_goes_on_in_other_parts_of_a_step_with_the_same_rows(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = other(config, "whole")
    trainer.train(whole, silent)
    with monkeypatch.context() as patched:
        kill_at(2, "after")(patched)
        with pytest.raises(Killed):
            trainer.train(config, silent)
    trainer.train(dataclasses.replace(config, accumulation=4), silent)
    lines, wanted = curve(config.output), curve(whole.output)
    assert lines[:2] == wanted[:2]
    for name in ("step", "train/tokens", "train/coverage", "train/tail_mass"):
        found = [line[name] for line in lines]
        assert found == pytest.approx([line[name] for line in wanted], rel=1e-6)
    assert trainer.train(config, silent).skipped  # the command that began it


def test_parts_of_a_step_stay_where_the_means_are_over_them(tmp_path: Path) -> None:
    had: dict[str, object] = {"accumulation": 2, "reference": "fusellm"}
    checkpoints.open_work(tmp_path, had, anew=False)
    with pytest.raises(SchemaError, match="accumulation = 2, and now it is 4"):
        checkpoints.open_work(tmp_path, had | {"accumulation": 4}, anew=False)


def test_checkpoints_shape_nothing(config: TrainConfig, undisturbed: bytes) -> None:
    often = dataclasses.replace(config, save_steps=1, logging_steps=3)
    trainer.train(often, silent)
    assert weights(often.output) == undisturbed


def test_data_is_read_by_other_processes_in_the_same_order(
    config: TrainConfig, undisturbed: bytes
) -> None:
    trainer.train(dataclasses.replace(config, readers=1), silent)
    assert weights(config.output) == undisturbed
