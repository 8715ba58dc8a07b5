import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import safetensors.torch
import torch

from pipelines import fuse, launch, score, verify
from pipelines.score import ScoreConfig
from schemas import files, manifest, parquet, plan, scores, windows
from schemas.errors import FusionError, SchemaError
from schemas.scores import Score
from tests.pipelines.conftest import fuse_config, score_config
from transforms import scorer, slices, tokenizer
from transforms.functional import nucleus, rounding
from transforms.functional.nucleus import Nucleus

Contents = Callable[[str], dict[str, str]]


def read(folder: str, source: str) -> list[Score]:
    return [
        one
        for piece in plan.read(source)
        for group in scores.read(f"{folder}/{piece.output}")
        for one in group
    ]


def test_the_job_equals_the_scorer_called_directly(
    road: str, models: dict[str, str]
) -> None:
    source = f"{road}/windows/fusion"
    config = score_config(road, models, "neox")
    model = scorer.load(config.scorer)
    found = iter(read(config.output, source))
    for piece in plan.read(source):
        made = [w for group in windows.read_slice(source, piece) for w in group]
        for direct in model.score(made).scores:
            stored = next(found)
            assert stored.window_id == direct.window_id
            (kept,) = rounding.round_scores([direct])
            for name in ("token_ids", "top_ids", "top_logprobs", "gold_logprob"):
                np.testing.assert_array_equal(
                    getattr(stored, name), getattr(kept, name)
                )


def test_top_p_keeps_the_nucleus_of_each_position(
    road: str, models: dict[str, str], out: str
) -> None:
    config = score_config(
        road, models, "llama", output=out, slices="0-0", top_p=0.3, min_k=5
    )
    score.score_windows(config)
    whole = scorer.load(dataclasses.replace(config.scorer, top_p=None, min_k=1))
    piece = plan.read(f"{road}/windows/fusion")[0]
    made = [w for g in windows.read_slice(f"{road}/windows/fusion", piece) for w in g]
    found = (one for group in scores.read(f"{out}/{piece.output}") for one in group)
    counts = set()
    for stored, every in zip(found, whole.score(made).scores, strict=True):
        probs = np.exp(every.top_logprobs.astype(np.float64))
        drop = nucleus.outside(probs, Nucleus(top_p=0.3, min_k=5))
        ids = np.where(drop, -1, every.top_ids)
        np.testing.assert_array_equal(stored.top_ids, ids)
        np.testing.assert_array_equal(np.isneginf(stored.top_logprobs), ids < 0)
        counts |= set((~drop).sum(axis=1).tolist())
    assert min(counts) == 5
    assert len(counts) > 1


def test_a_floor_without_a_mass_is_refused(road: str, models: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="min_k must go with top_p"):
        score_config(road, models, "llama", min_k=2)


@pytest.mark.parametrize(
    "flags",
    [
        ["--runner=BundleBasedDirectRunner"],
        ["--direct_running_mode=multi_threading", "--direct_num_workers=2"],
    ],
    ids=lambda flags: flags[0],
)
def test_every_runner_gives_the_same_bytes(
    flags: list[str],
    road: str,
    models: dict[str, str],
    out: str,
    contents: Contents,
) -> None:
    config = score_config(road, models, "llama", output=out)
    score.score_windows(config, flags)
    assert contents(out) == contents(f"{road}/scores/llama")


def test_slices_done_apart_without_a_runner_give_the_same_bytes(
    road: str, models: dict[str, str], out: str, contents: Contents
) -> None:
    last = len(plan.read(f"{road}/windows/fusion")) - 1
    parts = (f"2-{last}", "0-1")
    for part in parts:
        made = score.score_windows(
            score_config(road, models, "llama", output=out, slices=part)
        )
        assert (made is None) == (part == parts[0])
    assert contents(out) == contents(f"{road}/scores/llama")


def test_a_repeated_job_redoes_only_what_is_missing(
    road: str, models: dict[str, str], out: str, contents: Contents
) -> None:
    config = score_config(road, models, "llama", output=out)
    score.score_windows(config)
    first, second, *_ = sorted(Path(out).glob("slice-*.parquet"))
    stamp = first.stat().st_mtime_ns
    second.unlink()
    (Path(out) / "manifest.json").unlink()
    score.score_windows(config)
    assert contents(out) == contents(f"{road}/scores/llama")
    assert first.stat().st_mtime_ns == stamp


def test_a_changed_setting_never_mixes_with_old_files(
    road: str, models: dict[str, str], out: str
) -> None:
    score.score_windows(score_config(road, models, "llama", output=out))
    other = score_config(road, models, "llama", output=out, top_k=5)
    with pytest.raises(SchemaError, match="top_k = 6, and now it is 5"):
        score.score_windows(other)
    (Path(out) / "manifest.json").unlink()
    with pytest.raises(FusionError, match=r"slice-0+\.parquet was made with other"):
        score.score_windows(other)
    again = score_config(road, models, "llama", output=out, top_k=5, overwrite=True)
    score.score_windows(again)
    assert parquet.footer(f"{out}/slice-000000.parquet")["k"] == 5


def test_scores_of_before_the_rounding_are_read_but_not_gone_on_with(
    road: str, models: dict[str, str], out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, shaping = score_config(road, models, "llama", output=out), score.shaping

    def shaped_before(config: ScoreConfig) -> dict[str, Any]:
        return {k: v for k, v in shaping(config).items() if k != "rounding"}

    with monkeypatch.context() as patch:
        patch.setattr(score, "shaping", shaped_before)
        patch.setattr(rounding, "round_scores", lambda scores: scores)
        score.score_windows(config)
    assert verify.verify([out])
    fusion = fuse_config(road, f"{out}/fused", target=out, sources=())
    fused = fuse.fuse_scores(fusion)
    assert fused is not None
    scored = manifest.read(out, scores.STAGE).counts["windows"]
    assert (fused.counts["windows"], fused.counts["failed"]) == (scored, 0)
    with pytest.raises(SchemaError, match="rounding = not set, and now it is 'level"):
        score.score_windows(config)
    (Path(out) / "manifest.json").unlink()
    (Path(out) / "slice-000000.parquet").unlink()
    with pytest.raises(FusionError, match=r"made with other .*by another version"):
        score.score_windows(config)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({}, True),
        ({"device": "cuda", "dtype": "bfloat16"}, False),
        ({"device": "cuda", "dtype": "bfloat16", "tail_samples": 2}, True),
    ],
)
def test_kernels_that_change_no_byte_leave_no_trace(
    more: dict[str, object], told: bool, road: str, models: dict[str, str]
) -> None:
    plain = score_config(road, models, "llama", **more)
    without = score_config(road, models, "llama", kernels=False, **more)
    assert (score.shaping(plain) == score.shaping(without)) == told
    assert "kernels" not in score.shaping(plain)


def test_a_changed_model_never_mixes_with_old_files(
    road: str, models: dict[str, str], out: str
) -> None:
    score.score_windows(score_config(road, models, "llama", output=out))
    with pytest.raises(SchemaError, match=r"model|tokenizer"):
        score.score_windows(score_config(road, models, "neox", output=out))


@pytest.fixture
def broken(models: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """Returns a model whose logits are not numbers once it has read a space."""
    for path in Path(models["llama"]).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    space = int(tokenizer.load(models["llama"]).encode_middle(" ")[0])
    weights["model.embed_tokens.weight"][space] = float("nan")
    metadata = {"format": "pt"}
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", metadata)
    return {"broken": str(tmp_path)}


def test_windows_that_fail_stop_the_job_unless_a_share_is_allowed(
    road: str, broken: dict[str, str], out: str
) -> None:
    with pytest.raises(FusionError, match=r"may fail.*--max_reject_fraction"):
        score.score_windows(score_config(road, broken, "broken", output=out))


def test_an_allowed_failure_keeps_its_row_with_nulls_and_a_reason(
    road: str, broken: dict[str, str], out: str
) -> None:
    made = score.score_windows(
        score_config(road, broken, "broken", output=out, max_reject_fraction=1.0)
    )
    assert made is not None
    assert 0 < made.counts["failed"] <= made.counts["windows"]
    rows = duckdb.sql(
        f"select distinct top_ids is null, error from '{out}/*.parquet'"
    ).fetchall()
    assert {null for null, reason in rows if reason} == {True}
    assert all("finite" in reason for _, reason in rows if reason)


def test_the_footer_and_the_manifest_tell_what_was_done(
    road: str, models: dict[str, str]
) -> None:
    made = manifest.read(f"{road}/scores/llama", scores.STAGE)
    footers = [parquet.footer(f"{road}/scores/llama/{e.name}") for e in made.files]
    assert made.counts["windows"] == sum(f["windows"] for f in footers)
    assert made.counts["tokens"] == sum(e.tokens or 0 for e in made.files)
    assert made.settings["dtype"] == "float32"
    assert made.settings["threads"] == 1
    assert made.inputs["model"] == scorer.model_fingerprint(models["llama"])


def test_a_corrupt_windows_file_is_named(
    road: str, models: dict[str, str], out: str, tmp_path: Path
) -> None:
    copy = tmp_path / "windows"
    copy.mkdir()
    for path in Path(f"{road}/windows/fusion").glob("*.*"):
        content = bytearray(path.read_bytes())
        if path.name == "part-000001.parquet":
            content[40:60] = bytes(20)
        (copy / path.name).write_bytes(bytes(content))
    config = score_config(road, models, "llama", output=out, windows=str(copy))
    with pytest.raises(FusionError, match=r"part-000001\.parquet"):
        score.score_windows(config)


def test_duckdb_computes_the_bits_per_byte_that_the_manifest_files_hold(
    road: str,
) -> None:
    ((found,),) = duckdb.sql(
        "select sum(nll_nats) / ln(2) / sum(n_bytes) from"
        f" '{road}/scores/neox/*.parquet'"
    ).fetchall()
    rows = read(f"{road}/scores/neox", f"{road}/windows/fusion")
    nats = sum(row.nll_nats or 0 for row in rows)
    n_bytes = sum(row.n_bytes for row in rows)
    assert found == pytest.approx(nats / np.log(2) / n_bytes)
    assert files.exists(f"{road}/scores/neox/manifest.json")


def test_slices_that_are_done_here_are_for_no_runner(
    road: str, models: dict[str, str], out: str
) -> None:
    config = score_config(road, models, "llama", output=out, slices="0")
    with pytest.raises(ValueError, match=r"--slices.*no flag of a runner.*--runner=Fl"):
        score.score_windows(config, ["--runner=FlinkRunner"])
    assert not Path(out).exists()


def test_slices_of_other_settings_never_come_under_one_manifest(
    road: str, models: dict[str, str], out: str
) -> None:
    last = len(plan.read(f"{road}/windows/fusion")) - 1

    def part(slices: str, **more: object) -> object:
        config = score_config(road, models, "llama", output=out, slices=slices, **more)
        return score.score_windows(config)

    assert part(f"1-{last}") is None
    with pytest.raises(FusionError, match=r"slice-0+1\.parquet was made with other"):
        part("0", top_k=5)
    assert not manifest.present(out)
    assert part("0", top_k=5, overwrite=True) is None
    assert not manifest.present(out)
    assert part(f"1-{last}", top_k=5, overwrite=True) is not None
    assert {parquet.footer(str(p))["k"] for p in Path(out).glob("*.parquet")} == {5}


def test_some_slices_of_a_finished_folder_may_be_written_anew(
    road: str, models: dict[str, str], out: str
) -> None:
    score.score_windows(score_config(road, models, "llama", output=out))
    anew = score_config(
        road, models, "llama", output=out, top_k=5, slices="0", overwrite=True
    )
    assert score.score_windows(anew) is None
    assert not manifest.present(out)


def test_a_slice_that_cannot_be_read_is_written_anew_on_request(
    road: str, models: dict[str, str], out: str, contents: Contents
) -> None:
    score.score_windows(score_config(road, models, "llama", output=out))
    path = Path(out) / "slice-000001.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    (Path(out) / "manifest.json").unlink()
    score.score_windows(score_config(road, models, "llama", output=out, overwrite=True))
    assert contents(out) == contents(f"{road}/scores/llama")


def test_a_job_that_ends_without_a_slice_is_an_error(
    road: str, models: dict[str, str], out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "run", lambda *_, **__: None)
    with pytest.raises(FusionError, match=r"slices must be in .* but only 0 are"):
        score.score_windows(score_config(road, models, "llama", output=out))


def test_a_job_for_gpus_starts_on_a_machine_without_one(
    road: str, models: dict[str, str], out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    config = score_config(
        road, models, "llama", output=out, device="cuda:1", dtype="bfloat16"
    )
    settled = score.work_of(config, score.inputs_of(config)).settings
    assert (settled.device, settled.dtype) == ("cuda:1", "bfloat16")
    assert score.shaping(config)["device"] == "cuda"
    with pytest.raises(ValueError, match="device cuda:1 must be there"):
        scorer.load(settled)
    with pytest.raises(ValueError, match=r"dtype must be given for device cuda:1"):
        score.shaping(dataclasses.replace(config, dtype="auto"))


def test_the_share_that_may_fail_is_raised_without_scoring_anew(
    road: str, broken: dict[str, str], out: str
) -> None:
    config = score_config(road, broken, "broken", output=out)
    last = len(plan.read(config.windows)) - 1
    score.score_windows(
        dataclasses.replace(config, slices=f"1-{last}", max_reject_fraction=1.0)
    )
    stamps = {p: p.stat().st_mtime_ns for p in Path(out).glob("slice-*.parquet")}
    assert len(stamps) == last
    with pytest.raises(FusionError, match=r"may fail.*--max_reject_fraction"):
        score.score_windows(config)
    assert score.score_windows(dataclasses.replace(config, max_reject_fraction=1.0))
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())


@pytest.mark.parametrize("what", ["model", "tokenizer"])
def test_a_worker_with_another_model_than_the_jobs_is_refused(
    what: str, road: str, models: dict[str, str], out: str, tmp_path: Path
) -> None:
    place = shutil.copytree(models["llama"], tmp_path / "model")
    config = score_config(road, {"here": str(place)}, "here", output=out)
    inputs = score.inputs_of(config)
    work = score.work_of(config, inputs)
    if what == "model":
        content = (place / "model.safetensors").read_bytes()
        (place / "model.safetensors").write_bytes(content[:-1] + b"\x01")
    else:
        tokens = json.loads((place / "tokenizer.json").read_text())
        tokens["model"]["merges"].pop()
        (place / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(SchemaError, match=rf"{what} .*{inputs[what]}.*here it is"):
        slices.do_slice(work, plan.read(config.windows)[0])
    assert files.names(out) == []
