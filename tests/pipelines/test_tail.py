"""Scores with drawn ids, through every stage behind them."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines import cli, fuse, score, scored, verify
from schemas import files, manifest, parquet, plan, scores
from schemas.errors import SchemaError
from schemas.scores import Score
from tests.pipelines import test_fuse
from tests.pipelines.conftest import fuse_config, score_config

R = 3

Contents = Callable[[str], dict[str, str]]


@pytest.fixture(scope="module")
def drawn(
    road: str, models: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """Returns a folder with the scores of both models, draws among them."""
    out = str(tmp_path_factory.mktemp("drawn"))
    for name, model in models.items():
        flags = [
            f"--windows={road}/windows/fusion",
            f"--model={model}",
            f"--output={out}/scores/{name}",
            "--top_k=6",
            f"--tail_samples={R}",
            "--batch_tokens=1024",
            "--threads=1",
        ]
        assert cli.main(["score", *flags]) == 0
    return out


def fuse_flags(road: str, drawn: str, out: str, *more: str) -> list[str]:
    return [
        "fuse",
        f"--windows={road}/windows/fusion",
        f"--target={drawn}/scores/llama",
        f"--sources=neox={drawn}/scores/neox",
        f"--output={out}",
        "--top_k=6",
        "--seq_length=600",
        *more,
    ]


def read(folder: str, road: str) -> dict[str, Score]:
    return {
        one.window_id: one
        for piece in plan.read(f"{road}/windows/fusion")
        for group in scores.read(f"{folder}/{piece.output}")
        for one in group
    }


def test_draws_are_kept_beside_what_is_scored_without_them(
    road: str, drawn: str
) -> None:
    for name in ("llama", "neox"):
        plain = read(f"{road}/scores/{name}", road)
        found = read(f"{drawn}/scores/{name}", road)
        assert found.keys() == plain.keys()
        for window_id, one in found.items():
            assert plain[window_id].sampled_ids is None
            assert one.sampled_ids.shape == (len(one.token_ids) - 1, R)
            np.testing.assert_array_equal(one.top_ids, plain[window_id].top_ids)


def test_without_draws_folders_are_those_of_before_the_setting(
    road: str, models: dict[str, str], out: str, contents: Contents
) -> None:
    score.score_windows(score_config(road, models, "llama", output=out, tail_samples=0))
    assert contents(out) == contents(f"{road}/scores/llama")
    made = manifest.read(out, scores.STAGE)
    assert "tail_samples" not in made.settings
    assert "tail_samples" not in parquet.footer(f"{out}/{made.files[0].name}")


def test_scores_with_draws_are_other_work_than_without(
    road: str, models: dict[str, str], drawn: str
) -> None:
    config = score_config(road, models, "llama", output=f"{drawn}/scores/llama")
    with pytest.raises(SchemaError, match="tail_samples = 3, and now it is not set"):
        score.score_windows(config)


def test_slices_done_apart_have_the_same_draws(
    road: str, models: dict[str, str], drawn: str, out: str, contents: Contents
) -> None:
    last = len(plan.read(f"{road}/windows/fusion")) - 1
    for part in (f"1-{last}", "0"):
        config = score_config(
            road, models, "llama", output=out, slices=part, tail_samples=R
        )
        score.score_windows(config)
    assert contents(out) == contents(f"{drawn}/scores/llama")


def test_draws_are_fused_proved_and_trained_on(
    road: str, models: dict[str, str], drawn: str, tmp_path: Path
) -> None:
    out = str(tmp_path / "fused")
    assert cli.main(fuse_flags(road, drawn, out, "--tail_samples=4")) == 0
    assert cli.main(["verify", f"{drawn}/scores", out]) == 0
    widths = [
        int((decoded.ids >= 0).sum(axis=1).max()) for _, decoded in test_fuse.rows(out)
    ]
    assert max(widths) == 6 + 4
    flags = [
        f"--data={out}",
        f"--model={models['llama']}",
        f"--output={tmp_path}/model",
        "--max_steps=1",
        "--batch_size=2",
        "--threads=1",
        "--device=cpu",
    ]
    assert cli.main(["train", *flags]) == 0
    assert files.exists(f"{tmp_path}/model/model.safetensors")


def test_a_source_of_the_targets_own_tokenizer_leaves_no_tail(
    road: str, drawn: str, tmp_path: Path
) -> None:
    tails = {}
    for r in (0, R):
        out = str(tmp_path / f"fused{r}")
        config = fuse_config(
            road, out, target=f"{drawn}/scores/llama", sources=(), tail_samples=r
        )
        fuse.fuse_scores(config)
        tails[r] = np.concatenate(
            [d.tail[d.counts > 0] for _, d in test_fuse.rows(out)]
        )
    assert tails[R].max() < 1e-3  # rounding of the kept logprobs
    assert tails[0].mean() > 0.05


def test_the_same_scores_are_fused_to_the_same_bytes(
    road: str, drawn: str, tmp_path: Path, contents: Contents
) -> None:
    one, other = (str(tmp_path / name) for name in ("one", "other"))
    for out in (one, other):
        assert cli.main(fuse_flags(road, drawn, out, "--tail_samples=2")) == 0
    assert contents(one) == contents(other)


def test_draws_are_shown_with_what_is_left(
    road: str, drawn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, shown in (
        (f"{drawn}/scores/neox", True),
        (f"{road}/scores/neox", False),
    ):
        assert cli.main(["inspect", folder, "--top=2"]) == 0
        found = re.findall(r"  rest 0\.\d{3}( \S+)+$", capsys.readouterr().out, re.M)
        assert bool(found) == shown


@pytest.mark.parametrize("known", ["kept", "next"])
def test_a_drawn_id_that_was_kept_or_comes_next_is_found(
    known: str, road: str, drawn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = f"{drawn}/scores/llama"
    made = manifest.read(folder, scores.STAGE)
    assert "windows scored" in verify.check_scores(folder, made)
    pairs = list(scored.pairs(folder, f"{road}/windows/fusion"))
    window, one = pairs[0]
    ids = one.sampled_ids.copy()
    ids[2, 1] = one.top_ids[2, 4] if known == "kept" else one.token_ids[3]
    pairs[0] = window, dataclasses.replace(one, sampled_ids=ids)
    monkeypatch.setattr(scored, "pairs", lambda *_: iter(pairs))
    with pytest.raises(SchemaError, match=rf"at position 2 id {ids[2, 1]} is"):
        verify.check_scores(folder, made)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tail_samples=-1"], r"in \[0, 255 - top_k\], got -1"),
        (["--tail_samples=250"], r"in \[0, 255 - top_k\], got 250 with top_k = 6"),
    ],
)
def test_more_draws_than_a_frame_holds_are_refused(
    flags: list[str],
    message: str,
    road: str,
    drawn: str,
    out: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        cli.main(fuse_flags(road, drawn, out, *flags))
    assert re.search(message, capsys.readouterr().err)
