"""How a training reads its data: folders, processes, rows that cannot be read."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas import manifest
from schemas.errors import SchemaError
from tests import tiny
from tests.train import shards
from tests.train.runs import Killed, other, silent, weights
from train import checkpoints, publish, runs, trainer
from train.config import TrainConfig


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.neox(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("data")
    return [
        str(shards.write(root / name, vocabulary=400, fingerprint=name * 32))
        for name in ("a", "b")
    ]


@pytest.fixture
def config(target: Path, data: list[str], tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        data=tuple(data),
        model=str(target),
        output=str(tmp_path / "out"),
        data_weights=(0.75, 0.25),
        batch_size=4,
        max_steps=4,
        learning_rate=1e-3,
        save_steps=2,
        logging_steps=1,
        threads=1,
        device="cpu",
    )


def killed_after(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> None:
    """Runs a training until its first checkpoint is whole."""

    def complete(folder: Path) -> None:
        original(folder)
        raise Killed

    original = checkpoints.complete
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "complete", complete)
        with pytest.raises(Killed):
            run()


def test_a_run_on_several_folders_goes_on_where_it_stopped_with_other_readers(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.train(config, silent)
    again = other(config, "again", readers=1, read_ahead=0)
    killed_after(monkeypatch, lambda: trainer.train(again, silent))
    trainer.train(dataclasses.replace(again, readers=2, read_ahead=1), silent)
    assert weights(again.output) == weights(config.output)


def test_card_and_manifest_name_every_folder(
    config: TrainConfig, data: list[str]
) -> None:
    trainer.train(config, silent)
    found = manifest.read(config.output, publish.STAGE)
    assert (found.inputs["data"], found.inputs["data:2"]) == ("a" * 32, "b" * 32)
    assert (found.origins["data"], found.origins["data:2"]) == tuple(data)
    assert found.settings["data_weights"] == [0.75, 0.25]
    card = Path(config.output, "README.md").read_text()
    assert f"| fused data's fingerprint, data:2 | {'b' * 32} |" in card
    assert "## How its data was fused: data, 0.75 of the rows" in card
    assert "## How its data was fused: data:2, 0.25 of the rows" in card
    assert "skipped_rows" not in found.counts
    assert trainer.train(config, silent).skipped
    swapped = dataclasses.replace(config, data=tuple(data[::-1]))
    with pytest.raises(SchemaError, match="was written with data = "):
        trainer.train(swapped, silent)


def test_one_folder_of_several_that_is_for_another_tokenizer_is_refused(
    config: TrainConfig, data: list[str], tmp_path: Path
) -> None:
    made = shards.write(tmp_path / "other", vocabulary=400, fingerprint="o" * 32)
    shards.change_manifest(made, lambda m: m["settings"].update(target_tokenizer="0"))
    run = dataclasses.replace(config, data=(data[0], str(made)))
    with pytest.raises(SchemaError, match="other must be fused for the tokenizer of"):
        trainer.train(run, silent)


def test_a_run_that_another_order_began_is_not_gone_on_with(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_after(monkeypatch, lambda: trainer.train(config, silent))
    monkeypatch.setattr(runs.order, "VERSION", 99)
    with pytest.raises(SchemaError, match="with order = 2, and now it is 99"):
        trainer.train(config, silent)


@pytest.fixture
def broken(config: TrainConfig, tmp_path: Path) -> TrainConfig:
    """A run of two epochs and more on nine rows, of which row 6 is corrupt."""
    made = shards.write(tmp_path / "broken", vocabulary=400)
    shards.rewrite(made, {"distribution": b"no frame"})
    return dataclasses.replace(
        config,
        data=str(made),
        data_weights=(),
        max_steps=6,
        accumulation=2,
        save_steps=3,
    )


def test_a_corrupt_row_ends_the_run_unless_it_may_be_skipped(
    broken: TrainConfig,
) -> None:
    with pytest.raises(SchemaError, match=r"slice-000000\.parquet, row 6"):
        trainer.train(broken, silent)


def test_skipped_rows_are_counted_through_an_interruption(
    broken: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = dataclasses.replace(broken, bad_rows="skip", max_bad_fraction=0.2)
    trainer.train(run, silent)
    again = other(run, "again")
    killed_after(monkeypatch, lambda: trainer.train(again, silent))
    trainer.train(again, silent)
    assert weights(again.output) == weights(run.output)
    found = []
    for one in (run, again):
        lines = Path(one.output, "metrics.jsonl").read_text().splitlines()
        counts = [json.loads(line)["train/skipped_rows"] for line in lines]
        # 24 samples are two epochs of nine rows and six of a third.
        assert 2 <= counts[-1] <= 3
        told = manifest.read(one.output, publish.STAGE).counts["skipped_rows"]
        assert told == counts[-1]
        found.append(counts)
    assert found[0] == found[1] == sorted(found[0])


def test_more_skipped_rows_than_allowed_are_an_error(broken: TrainConfig) -> None:
    run = dataclasses.replace(broken, bad_rows="skip", max_bad_fraction=1 / 24)
    with pytest.raises(SchemaError, match=r"of the 24 rows .* but 2 cannot be read"):
        trainer.train(run, silent)
    assert not Path(run.output).exists()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("data", ()),
        ("data_weights", (1.0,)),
        ("data_weights", (1.0, 0.0)),
        ("data_weights", (1.0, float("inf"))),
        ("max_bad_fraction", 1.5),
        ("read_ahead", -1),
    ],
)
def test_settings_of_reading_out_of_range_are_refused_by_name(
    config: TrainConfig, setting: str, value: object
) -> None:
    with pytest.raises(ValueError, match=setting):
        dataclasses.replace(config, **{setting: value})


def launch(processes: int, flags: list[str]) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={processes}", "-m", "train", *flags]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


_DYING = """
import sys
from train import __main__, checkpoints
def complete(folder):
    original(folder)
    if checkpoints.step_of(folder) == {step}:
        raise SystemExit(0)
original = checkpoints.complete
checkpoints.complete = complete
__main__.main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_then_two_then_four_processes_train_as_one_does(
    config: TrainConfig, tmp_path: Path
) -> None:
    """Kept small: four processes on two cores take their time to start."""
    run = dataclasses.replace(
        config, batch_size=8, max_steps=5, save_steps=1, bad_rows="skip"
    )
    trainer.train(run, silent)
    again = other(run, "again")
    flags = [
        "--data",
        *again.folders,
        *("--data_weights", "0.75", "0.25"),
        *(f"--model={again.model}", f"--output={again.output}", "--bad_rows=skip"),
        *("--batch_size=8", "--max_steps=5", "--save_steps=1", "--learning_rate=1e-3"),
        *("--logging_steps=1", "--threads=1", "--device=cpu"),
    ]
    for step, processes in [(1, 1), (3, 2)]:
        program = tmp_path / f"until{step}.py"
        program.write_text(_DYING.format(step=step))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc_per_node={processes}", str(program), *flags]
        subprocess.run(command, capture_output=True)
        assert not Path(again.output).exists()
        assert checkpoints.latest(Path(f"{again.output}.partial")).name.endswith(
            f"-{step}"
        )
    launch(4, flags)
    one, many = (
        [
            json.loads(line)
            for line in Path(r.output, "metrics.jsonl").read_text().splitlines()
        ]
        for r in (run, again)
    )
    assert [line["step"] for line in many] == [1, 2, 3, 4, 5]
    for first, second in zip(one, many, strict=True):
        assert first["train/tokens"] == second["train/tokens"]
        for name in ("loss", "clm_nats", "fusion_nats"):
            assert second[f"train/{name}"] == pytest.approx(
                first[f"train/{name}"], rel=1e-5
            ), name
