import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import cli, verify
from schemas import files
from tests import small_run


@pytest.fixture(scope="module")
def recipe(
    tmp_path_factory: pytest.TempPathFactory, corpus: list[str], models: dict[str, str]
) -> str:
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    text = small_run.recipe(
        corpus,
        models["llama"],
        {"other": models["neox"]},
        slice_bytes=2000,
        train={
            "epochs": 1,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "threads": 1,
            "save_steps": 3,
        },
        arms={
            "fused": {"clm_weight": 0.5},
            "clm": {"clm_weight": 1.0},
            "clm_tuned": {"clm_weight": 1.0, "learning_rate": [1e-3, 1e-4]},
        },
        evaluate={"threads": 1},
    )
    path.write_text(text)
    return str(path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, recipe: str) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert cli.main(["run", recipe, f"--output={out}"]) == 0
    return out


def contents(folder: Path) -> dict[str, str]:
    """Digests what a run leaves; paths and rates of this run are not its content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_file() or ".tmp" in path.parts:
            continue
        if path.suffix in (".parquet", ".safetensors") or path.name in (
            "plan.jsonl",
            "evaluation.json",
            "choice.json",
        ):
            found[name] = files.checksum(str(path))
        else:
            found[name] = ""
    return found


def test_a_run_ends_with_a_table_of_every_model_and_domain(undisturbed: Path) -> None:
    result = files.read_json(f"{undisturbed}/evaluation.json")
    names = {"untouched", "fused", "clm", "clm_tuned", "source:other"}
    assert result["models"].keys() == names
    for row in result["models"].values():
        assert row.keys() == {"even", "odd", "all"}
        total = sum(row[d] * n for d, n in result["bytes"].items())
        assert row["all"] == pytest.approx(total / sum(result["bytes"].values()))


def test_the_dev_split_chose_the_rate_that_is_best_on_it(undisturbed: Path) -> None:
    choice = files.read_json(f"{undisturbed}/models/clm_tuned/choice.json")
    costs = choice["dev_bits_per_byte"]
    assert len(costs) == 2
    assert costs[f"{choice['chosen']:g}"] == min(costs.values())


def test_an_arm_of_the_same_settings_as_another_is_not_trained_twice(
    undisturbed: Path,
) -> None:
    trial = undisturbed / "trials/clm_tuned/learning_rate=0.001"
    for name in ("model.safetensors", "metrics.jsonl"):
        one, other = trial / name, undisturbed / "models/clm" / name
        # The lines of metrics tell rates of tokens, which no two runs have alike.
        assert files.checksum(str(one)) == files.checksum(str(other))


def test_a_run_is_proved_whole(undisturbed: Path) -> None:
    assert len(verify.verify([str(undisturbed)])) == 11


def test_a_repeated_run_changes_nothing(recipe: str, undisturbed: Path) -> None:
    stamps = {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*.parquet")}
    before = contents(undisturbed)
    assert cli.main(["run", recipe, f"--output={undisturbed}"]) == 0
    assert contents(undisturbed) == before
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())


MOMENTS = {
    "prepare": "windows/fusion/part-000000.parquet",
    "score": "scores/target/slice-000001.parquet",
    "fuse": "fused/maps/other.parquet",
    "train": "models/fused.partial/checkpoints",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_is_killed_ends_on_repetition_with_the_same_bytes(
    moment: str, recipe: str, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "pipelines.cli", "run", recipe, f"--output={out}"]
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        end = time.monotonic() + 240
        while not (out / MOMENTS[moment]).exists():
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < end, "the run never came that far"
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (out / "evaluation.json").exists()
    assert cli.main(["run", recipe, f"--output={out}"]) == 0
    assert contents(out) == contents(undisturbed)


@pytest.mark.parametrize(
    "words", [["--runner=DirectRunner"], ["--runner", "DirectRunner"]]
)
def test_a_job_runs_on_beams_default_local_runner(
    words: list[str], recipe: str, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "fused"
    flags = [
        f"--windows={undisturbed}/windows/fusion",
        f"--target={undisturbed}/scores/target",
        f"--sources=other={undisturbed}/scores/other",
        f"--output={out}",
        "--top_k=6",
        "--seq_length=512",
    ]
    assert cli.main(["fuse", *words, *flags]) == 0
    assert contents(out) == contents(undisturbed / "fused")


WAYS = [
    """
strategy = "statistics"
reference = true
fusion = "static"
weights = ["target=1", "other=3"]
domain_weights = ["odd:other=0"]
""",
    'strategy = "statistics"\ngranularity = "document"\n',
]


@pytest.mark.parametrize("way", WAYS)
def test_a_recipe_says_how_it_is_fused(
    way: str, recipe: str, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for name in ("windows", "scores"):
        shutil.copytree(undisturbed / name, out / name)
    text = Path(recipe).read_text().partition("[arms.clm]")[0]
    own = tmp_path / "recipe.toml"
    own.write_text(text.replace("[fuse]", f"[fuse]\n{way}"))
    assert cli.main(["run", str(own), f"--output={out}"]) == 0
    (counted,) = [n for n in verify.verify([str(out)]) if "windows counted" in n]
    assert "fused/maps/counts/other" in counted
    assert files.read_json(f"{out}/evaluation.json")["models"].keys() == {
        "untouched",
        "fused",
        "source:other",
    }
