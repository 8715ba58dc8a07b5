import importlib.util
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import cli, fuse, score
from schemas import manifest, plan, scores, settings
from schemas.errors import FusionError
from schemas.scores import Score
from tests import adapting, vllm_outputs
from tests.pipelines.conftest import fuse_config, score_config
from transforms import extras, scorer

ELSEWHERE = (
    *("--runner=FlinkRunner", "--environment_type=EXTERNAL", "--flink_version=1.19"),
)
NEW = ("adapter", "quantization", "device_map", "max_memory", "backend")


def read(folder: str, source: str) -> list[Score]:
    found = (scores.read(f"{folder}/{piece.output}") for piece in plan.read(source))
    return [one for group in itertools.chain.from_iterable(found) for one in group]


def test_how_a_model_is_loaded_and_run_shapes_scores_only_where_it_is_said(
    road: str, models: dict[str, str]
) -> None:
    plain = settings.shaping(score_config(road, models, "llama"))
    assert not plain.keys() & {*NEW}
    asked = {
        "quantization": "int8",
        "device_map": "auto",
        "max_memory": ("cpu=1GB",),
    }
    told = settings.shaping(score_config(road, models, "llama", **asked))
    assert {name: told[name] for name in asked} == {**asked, "max_memory": ["cpu=1GB"]}
    one = score_config(road, models, "llama", backend="vllm", threads=None)
    vllm = settings.shaping(one)
    assert vllm["backend"] == "vllm"


def test_settings_that_do_not_go_together_are_refused_before_anything_is_read(
    road: str, models: dict[str, str]
) -> None:
    for more, law in (
        ({"max_memory": ("cpu=1GB",)}, "must come with a device_map"),
        ({"adapter": "a", "quantization": "int8"}, "not quantized"),
        ({"backend": "vllm", "tail_samples": 3}, "tail_samples must be 0"),
        ({"device_map": "auto", "device": "cuda:0"}, "CUDA_VISIBLE_DEVICES"),
    ):
        with pytest.raises(ValueError, match=law):
            score_config(road, models, "llama", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("package", "extra"),
    [("peft", "lora"), ("bitsandbytes", "quantize"), ("vllm", "vllm")],
)
def test_a_command_tells_the_extra_even_where_a_path_holds_the_name_of_another(
    package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError) as caught:
        extras.require(package, extra, "the model /data/datasets/one")
    told = cli.told(caught.value)
    assert (
        told == f"this needs the package {package}; run pip install 'fusebeam[{extra}]'"
    )


def test_an_adapters_scores_name_it_and_can_be_fused(
    road: str, models: dict[str, str], out: str, tmp_path: Path
) -> None:
    adapter = adapting.write(tmp_path / "adapter", models["neox"])
    given = {"apart": {"adapter": adapter}, "alone": {"model": adapter}}
    made = {
        name: score.score_windows(
            score_config(road, models, "neox", output=f"{out}/{name}", **more)
        )
        for name, more in given.items()
    }
    apart, alone = made["apart"], made["alone"]
    assert apart is not None
    assert alone is not None
    bare = manifest.read(f"{road}/scores/neox", scores.STAGE)
    assert apart.origins["adapter"] == adapter
    assert "base" not in apart.origins
    assert alone.origins["model"] == adapter
    assert alone.origins["base"] == models["neox"]
    assert apart.inputs == alone.inputs
    assert apart.fingerprint == alone.fingerprint != bare.fingerprint
    assert apart.inputs["tokenizer"] == bare.inputs["tokenizer"]
    assert apart.inputs["model"] == scorer.model_fingerprint(models["neox"], adapter)
    sources = (f"adapted={out}/alone",)
    fused = fuse.fuse_scores(fuse_config(road, f"{out}/fused", sources=sources))
    assert fused is not None
    assert fused.counts["windows"] > 0


def test_an_adapters_base_must_be_where_workers_find_it(
    road: str,
    models: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models["neox"], "base")
    adapter = adapting.write(tmp_path / "adapter", "base")
    config = score_config(road, models, "neox", model=adapter, output=f"{tmp_path}/out")
    with pytest.raises(FusionError, match=r"must be absolute.*got base; give"):
        score.score_windows(config, ELSEWHERE)


def test_a_model_over_memory_and_disk_gives_the_scores_of_one_device(
    road: str, models: dict[str, str], out: str
) -> None:
    laid = score_config(
        road, models, "llama", output=out, device_map="auto", max_memory=("cpu=9KB",)
    )
    made = score.score_windows(laid)
    assert made is not None
    plain = manifest.read(f"{road}/scores/llama", scores.STAGE)
    assert made.fingerprint != plain.fingerprint
    assert made.inputs == plain.inputs
    source = f"{road}/windows/fusion"
    pairs = zip(read(out, source), read(f"{road}/scores/llama", source), strict=True)
    for one, other in pairs:
        for name in ("top_ids", "top_logprobs", "logsumexp", "gold_logprob"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


VLLM = {"backend": "vllm", "device": "cuda", "dtype": "float32", "threads": None}


def test_scores_of_vllm_have_no_log_sum_exp_and_can_be_fused(
    road: str, models: dict[str, str], out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm_outputs.stand_in(monkeypatch)
    config = score_config(road, models, "neox", output=f"{out}/vllm", **VLLM)
    made = score.score_windows(config)
    assert made is not None
    assert made.settings["backend"] == "vllm"
    source = f"{road}/windows/fusion"
    found = read(config.output, source)
    for one, other in zip(found, read(f"{road}/scores/neox", source), strict=True):
        assert one.logsumexp is None
        np.testing.assert_array_equal(one.top_ids, other.top_ids)
        # Files keep 16 bits: what is all but equal may fall on both sides of a border.
        np.testing.assert_allclose(one.gold_logprob, other.gold_logprob, rtol=2**-15)
    sources = (f"neox={config.output}",)
    fused = fuse.fuse_scores(fuse_config(road, f"{out}/fused", sources=sources))
    before = manifest.read(f"{road}/fused", fused.stage)
    assert fused.counts == before.counts


def test_a_vllm_that_failed_is_loaded_anew_for_the_next_attempt_at_its_slice(
    road: str,
    models: dict[str, str],
    out: str,
    monkeypatch: pytest.MonkeyPatch,
    contents: Callable[[str], dict[str, str]],
) -> None:
    seen = vllm_outputs.stand_in(monkeypatch)
    whole, config = (
        score_config(road, models, "neox", output=f"{out}/{name}", **VLLM)
        for name in ("whole", "failing")
    )
    score.score_windows(whole)
    (first,) = seen
    assert first["ended"]
    answer, asked = vllm_outputs.LLM.generate, itertools.count()

    def generate(self: vllm_outputs.LLM, *args: Any, **kwargs: Any) -> Any:
        if next(asked) == 1:
            raise RuntimeError("the engine has died")
        return answer(self, *args, **kwargs)

    monkeypatch.setattr(vllm_outputs.LLM, "generate", generate)
    score.score_windows(config, ["--runner=BundleBasedDirectRunner"])
    _, failed, anew = seen
    assert failed["ended"]
    assert failed["llm"] is not anew["llm"]
    assert contents(config.output) == contents(whole.output)
