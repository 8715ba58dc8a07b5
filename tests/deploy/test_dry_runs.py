"""Dry runs, and jobs that nobody awaits: what they leave in folders."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import cli, counting, fuse, launch, prepare, score
from schemas.errors import FusionError
from tests.deploy.jobs import FLAGS, Translate
from tests.pipelines.conftest import fuse_config, prepare_config, score_config


def test_a_dry_run_says_that_nothing_was_started(
    translate: Translate,
    words: dict[str, list[str]],
    out: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    translate("score", *words["score"])
    assert capsys.readouterr().out == (
        "dry run: the job was translated, and not started\n"
    )
    assert not Path(out).exists()


def state(folder: str) -> dict[str, tuple[int, bytes]]:
    """Returns what stands in every file of a folder, and when it was written."""
    found = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {str(at): (at.stat().st_mtime_ns, at.read_bytes()) for at in found}


@pytest.mark.parametrize("stage", ["prepare", "score", "fuse"])
def test_a_dry_run_writes_and_removes_nothing(
    stage: str,
    translate: Translate,
    road: str,
    models: dict[str, str],
    corpus: list[str],
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(road, run)
    before = state(str(run))
    # Other settings than those of the finished folders.
    words = {
        "prepare": ["--inputs", *corpus, "--max_bytes=200", f"--output={run}/windows"],
        "score": [
            *(f"--windows={run}/windows/fusion", f"--model={models['llama']}"),
            *(f"--output={run}/scores/llama", "--top_k=3"),
        ],
        "fuse": [
            *(f"--windows={run}/windows/fusion", f"--target={run}/scores/llama"),
            *(f"--sources=neox={run}/scores/neox", f"--output={run}/fused"),
            *("--top_k=3", "--strategy=mined"),
        ],
    }
    words["prepare"].append("--splits=fusion=.8,dev=.2")
    translate(stage, *words[stage], "--overwrite")
    assert state(str(run)) == before


def test_a_dry_run_of_a_merge_writes_and_removes_nothing(
    translate: Translate, words: dict[str, list[str]], out: str
) -> None:
    assert cli.main(["merge", *words["merge"], "--dtype=bfloat16"]) == 0
    before = state(out)
    translate("merge", *words["merge"], "--overwrite")
    assert state(out) == before


def test_a_merge_that_nobody_awaits_describes_its_folder_itself(
    words: dict[str, list[str]],
    out: str,
    tmp_path: Path,
    contents: Callable[[str], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert cli.main(["merge", *words["merge"]]) == 0
    alone = str(tmp_path / "alone")
    monkeypatch.setattr(launch, "left_alone", lambda flags: True)
    assert cli.main(["merge", *words["merge"], f"--output={alone}"]) == 0
    assert contents(out) == contents(alone)


def test_a_job_that_nobody_awaits_describes_its_folders_itself(
    road: str,
    models: dict[str, str],
    corpus: list[str],
    out: str,
    contents: Callable[[str], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As the service would do it, once the launcher of a template has ended.
    monkeypatch.setattr(launch, "left_alone", lambda flags: True)
    assert prepare.prepare_corpus(prepare_config(out, corpus, models)) == {}
    for name in models:
        assert score.score_windows(score_config(out, models, name)) is None
    assert fuse.fuse_scores(fuse_config(out, f"{out}/fused")) is None
    assert contents(out) == contents(road)


def test_counts_that_a_job_needs_before_its_own_are_not_left_out(
    road: str, out: str
) -> None:
    config = fuse_config(road, out, strategy="statistics")
    with pytest.raises(FusionError, match="needs its counts before its own job"):
        fuse.fuse_scores(config, FLAGS)


def test_counts_that_cannot_be_made_anew_leave_those_that_are_there(
    road: str, out: str
) -> None:
    source, target = f"{road}/scores/neox", f"{road}/scores/llama"
    config = counting.CountConfig(source=source, target=target, output=out)
    counting.count_windows(config)
    before = state(out)
    anew = dataclasses.replace(config, reference=True, overwrite=True)
    with pytest.raises(FusionError, match="needs its counts before its own job"):
        counting.count_windows(anew, FLAGS)
    assert state(out) == before
