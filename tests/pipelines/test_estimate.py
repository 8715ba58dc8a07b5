import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines import basis, cli, estimate, forecast, forecast_page
from pipelines.basis import Basis, Job, Rates
from pipelines.estimate import EstimateConfig
from pipelines.forecast import Forecast, Size
from pipelines.prepare import PrepareConfig
from schemas import files, manifest, plan
from schemas.errors import FusionError
from schemas.manifest import Manifest
from tests.pipelines.conftest import fuse_config, score_config
from train.config import TrainConfig
from transforms.functional.budget import Prices

UNKNOWN = Rates(score={}, train=None, flops=1e12)
TIMED = ("prepare, a core",)


def job_of(road: str, corpus: list[str], models: dict[str, str]) -> Job:
    """Returns the stages as the fixture `road` went them."""
    return Job(
        prepare=PrepareConfig(
            inputs=tuple(corpus),
            output="",
            models=tuple(models.values()),
            max_bytes=300,
            domain_field="kind",
            splits="fusion=.8,dev=.2",
            group_windows=8,
            slice_bytes=4000,
        ),
        split="fusion",
        scores={
            "target": score_config(road, models, "llama"),
            "neox": score_config(road, models, "neox"),
        },
        fusions={"fused": fuse_config(road, "")},
        trainings=[TrainConfig(data="", model=models["llama"], output="", epochs=2.0)],
    )


@pytest.fixture(scope="module")
def gathered(road: str, corpus: list[str], models: dict[str, str]) -> Basis:
    """Returns the basis of the fixture's run, its share as it came out."""
    found = basis.gather(
        job_of(road, corpus, models), UNKNOWN, sample_bytes=10**6, seed=0
    )
    # Shares are kept by the thousands of documents, not by these thirty.
    text = made(road, "windows/fusion").counts["text_bytes"]
    return dataclasses.replace(found, share=text / found.sample.text_bytes)


@pytest.fixture
def size(gathered: Basis) -> Size:
    return forecast.forecast(gathered, Prices(), [None]).sizes[0]


def made(road: str, folder: str) -> Manifest:
    return manifest.read(files.join(road, folder), folder.partition("/")[0])


def stored(found: Manifest) -> int:
    return sum(entry.bytes for entry in found.files)


def of(size: Size, name: str) -> Any:
    (stage,) = (stage for stage in size.stages if stage.name == name)
    return stage


def test_tokens_and_windows_are_those_of_the_real_run(road: str, size: Size) -> None:
    for name, folder in {"target": "llama", "neox": "neox"}.items():
        counts = made(road, f"scores/{folder}").counts
        assert of(size, f"score {name}").tokens == pytest.approx(
            counts["tokens"], rel=0.03
        )
    fused = made(road, "fused").counts
    assert of(size, "fuse").tokens == pytest.approx(fused["tokens"], rel=0.03)
    assert size.volume.windows == pytest.approx(fused["windows"], rel=0.03)


def test_slices_are_those_of_the_real_plan_but_for_one_a_file(
    road: str, corpus: list[str], size: Size
) -> None:
    slices = len(plan.read(f"{road}/windows/fusion"))
    assert abs(size.volume.slices - slices) <= len(corpus)


# Random models are the worst case: their probabilities hardly pack, and rows of a few
# hundred tokens are so small that Parquet repeats them as its statistics.
@pytest.mark.parametrize(
    ("stage", "folder", "tolerance"),
    [
        ("score target", "scores/llama", 0.25),
        ("score neox", "scores/neox", 0.25),
        ("fuse", "fused", 0.4),
    ],
)
def test_bytes_are_those_of_the_real_files_within_a_tolerance(
    stage: str, folder: str, tolerance: float, road: str, size: Size
) -> None:
    found = stored(made(road, folder))
    assert of(size, stage).bytes == pytest.approx(found, rel=tolerance)


def test_windows_take_what_the_real_files_take_to_a_tenth(
    road: str, size: Size
) -> None:
    real = sum(stored(made(road, f"windows/{name}")) for name in ("fusion", "dev"))
    assert of(size, "prepare").bytes == pytest.approx(real, rel=0.1)


def test_every_size_is_the_corpus_scaled(gathered: Basis, size: Size) -> None:
    tokens = [1e6, 1e9]
    small, large = forecast.forecast(gathered, Prices(), tokens).sizes
    assert [small.tokens, large.tokens] == pytest.approx(tokens)
    for stage in size.stages[:-1]:
        for field in ("bytes", "cpu_hours", "gpu_hours"):
            one = getattr(of(small, stage.name), field)
            assert getattr(of(large, stage.name), field) == pytest.approx(
                1000 * one, rel=0.01
            )
    assert of(large, "train").gpu_hours == pytest.approx(
        1000 * of(small, "train").gpu_hours
    )
    assert of(large, "train").bytes == of(small, "train").bytes


def test_steps_bound_a_training_whatever_the_corpus(gathered: Basis) -> None:
    training = dataclasses.replace(
        gathered.job.trainings[0], max_steps=10, batch_size=4
    )
    stepped = dataclasses.replace(
        gathered, job=dataclasses.replace(gathered.job, trainings=[training] * 3)
    )
    sizes = forecast.forecast(stepped, Prices(), [1e6, 1e12]).sizes
    assert [of(size, "train").tokens for size in sizes] == [3 * 10 * 4 * 600] * 2


def test_a_second_forward_is_counted_where_activations_are_not_kept() -> None:
    once = TrainConfig(data="", model="m", output="")
    again = dataclasses.replace(once, gradient_checkpointing=True)
    assert [basis.training_flops(t) for t in (once, again)] == [6, 8]


def test_a_split_that_the_sample_lacks_is_an_error(
    road: str, corpus: list[str], models: dict[str, str]
) -> None:
    job = job_of(road, corpus, models)
    prepared = dataclasses.replace(
        job.prepare, split_field="kind", splits="even,odd,fusion"
    )
    with pytest.raises(FusionError, match="must hold a document of split 'fusion'"):
        basis.gather(
            dataclasses.replace(job, prepare=prepared),
            UNKNOWN,
            sample_bytes=10**6,
            seed=0,
        )


def test_the_share_of_a_named_split_is_measured_by_its_text(
    road: str, corpus: list[str], models: dict[str, str]
) -> None:
    job = job_of(road, corpus, models)
    prepared = dataclasses.replace(job.prepare, split_field="kind", splits="even,odd")
    shares = [
        basis.gather(
            dataclasses.replace(job, prepare=prepared, split=split),
            UNKNOWN,
            sample_bytes=10**6,
            seed=0,
        ).share
        for split in ("even", "odd")
    ]
    assert sum(shares) == pytest.approx(1)
    assert 0.3 < shares[0] < 0.7


def config_of(corpus: list[str], models: dict[str, str], **more: Any) -> EstimateConfig:
    given = {"corpus": tuple(corpus), "models": tuple(models.values()), **more}
    return EstimateConfig(**given)


def steady(found: Forecast) -> Any:
    """Returns what a forecast says, but for the processor's time."""
    told = found.as_json()
    told["figures"] = [f for f in told["figures"] if f["name"] not in TIMED]
    for size in told["sizes"]:
        del size["cost"]
        size["stages"] = [
            {k: v for k, v in s.items() if k != "cpu_hours"} for s in size["stages"]
        ]
    return told


def test_the_same_seed_gives_the_same_forecast(
    corpus: list[str], models: dict[str, str]
) -> None:
    first, second, other = (
        estimate.forecast_of(
            config_of(corpus, models, sample_bytes=8000, seed=s, max_tokens=128)
        )
        for s in (0, 0, 1)
    )
    assert steady(first) == steady(second)
    assert steady(first) != steady(other)


def test_the_command_writes_a_page_and_all_of_it_as_json(
    corpus: list[str],
    models: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = tmp_path / "plan.json"
    words = ["plan", "--corpus", *corpus, "--models", models["llama"]]
    words += [f"other={models['neox']}", f"--json={told}", "--price-gpu-hour=2"]
    words += ["--tokens_per_second", "other=1000", "--max_tokens=128"]
    assert cli.main(words) == 0
    page = capsys.readouterr().out
    for text in ("(corpus)", "1e6 ", "1e12 ", "score other", "measured on the sample"):
        assert text in page
    assert "a month" not in page
    found = json.loads(told.read_text())
    assert [size["is_corpus"] for size in found["sizes"]] == [True] + [False] * 7
    last = found["sizes"][-1]
    scored = next(s for s in last["stages"] if s["name"] == "score other")
    assert scored["gpu_hours"] == pytest.approx(scored["tokens"] / 1000 / 3600)
    assert last["cost"] == pytest.approx(
        2 * sum(s["gpu_hours"] for s in last["stages"])
    )
    assert all(figure["source"] for figure in found["figures"])


def test_only_the_sizes_asked_for_are_shown(
    corpus: list[str], models: dict[str, str]
) -> None:
    found = estimate.forecast_of(
        config_of(corpus, models, tokens=(2e9,), max_tokens=128)
    )
    assert [size.tokens for size in found.sizes] == pytest.approx([2e9])
    page = forecast_page.page(found)
    assert page.startswith("2e9 tokens, by stages")
    assert "(corpus)" not in page


def test_a_recipe_says_what_flags_would(
    corpus: list[str], models: dict[str, str], tmp_path: Path
) -> None:
    made = tmp_path / "recipe.toml"
    made.write_text(
        f"""output = "x"
corpus.inputs = {json.dumps(corpus)}
prepare = {{splits = "fusion=.5,dev=.25,heldout=.25", max_tokens = 128}}
target.model = "{models["llama"]}"
sources.one = {{model = "{models["neox"]}", top_k = 4}}
fuse.include_target = false
train.epochs = 2
[arms.a]
learning_rate = [1e-3, 2e-3]
[arms.b]
epochs = 1
"""
    )
    job = estimate.job_of(EstimateConfig(recipe=str(made)))
    assert (job.split, list(job.scores)) == ("fusion", ["target", "one"])
    assert job.scores["one"].top_k == 4
    assert [training.epochs for training in job.trainings] == [2, 2, 1]
    found = estimate.forecast_of(EstimateConfig(recipe=str(made), tokens=(1e6,)))
    (size,) = found.sizes
    assert size.corpus_bytes == pytest.approx(2 * size.volume.text_bytes)
    fused = of(size, "fuse").tokens
    assert of(size, "train").tokens == pytest.approx(5 * fused)


def write_recipe(
    folder: Path, corpus: list[str], models: dict[str, str], more: str
) -> Path:
    """Writes a recipe of a target and a source, and whatever else it is to have."""
    made = folder / "recipe.toml"
    made.write_text(
        f"""output = "x"
corpus.inputs = {json.dumps(corpus)}
prepare = {{splits = "fusion=.5,heldout=.5", max_tokens = 128}}
target.model = "{models["llama"]}"
sources.one.model = "{models["neox"]}"
{more}
"""
    )
    return made


@pytest.mark.parametrize(
    ("table", "at_most"),
    [
        ("score.top_k = 10", set()),
        ("fuse.top_p = 0.9", {"fused, k = 10"}),
        ("sources.one.top_p = 0.9", {"one: scores, k = 10", "fused, k = 10"}),
    ],
)
def test_bytes_of_an_adaptive_k_are_told_as_the_most(
    table: str,
    at_most: set[str],
    corpus: list[str],
    models: dict[str, str],
    tmp_path: Path,
) -> None:
    made = write_recipe(tmp_path, corpus, models, table)
    found = estimate.forecast_of(EstimateConfig(recipe=str(made), tokens=(1e6,)))
    told = {one.name for one in found.figures if "at most" in one.source}
    assert told == at_most


def test_every_fusion_training_and_merge_of_a_recipe_is_counted(
    corpus: list[str], models: dict[str, str], tmp_path: Path
) -> None:
    made = write_recipe(
        tmp_path,
        corpus,
        models,
        f"""sources.two.model = "{models["neox"]}"
fuse.seq_length = 300
train = {{max_steps = 10, batch_size = 4}}
[pairs]
seq_length = 200
[arms.many]
fusion = "fused"
[merges.a]
method = "linear"
[merges.b]
method = "linear"
""",
    )
    job = estimate.job_of(EstimateConfig(recipe=str(made)))
    assert {name: len(f.named_sources()) for name, f in job.fusions.items()} == {
        "fused": 3,
        "pair.one": 2,
        "pair.two": 2,
    }
    found = estimate.forecast_of(EstimateConfig(recipe=str(made), tokens=(1e6,)))
    (size,) = found.sizes
    pair, many = of(size, "fuse pair.one"), of(size, "fuse fused")
    assert of(size, "fuse pair.two") == dataclasses.replace(pair, name="fuse pair.two")
    assert many.cpu_hours == pytest.approx(1.5 * pair.cpu_hours)
    assert of(size, "train").tokens == 10 * 4 * (300 + 200 + 200)
    model = sum(path.stat().st_size for path in Path(models["llama"]).glob("*.safet*"))
    assert of(size, "merge").bytes == pytest.approx(2 * model, rel=0.1)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"corpus": ()}, "corpus must be given, or a recipe"),
        ({"models": ()}, "models must be given, or a recipe"),
        ({"recipe": "r.toml"}, "corpus must be left out with recipe"),
        ({"models": ("a", "b/x", "c/x.gguf")}, "a name each.*'x' of c/x.gguf"),
        ({"models": ("a", "b/target")}, "NAME=MODEL"),
        ({"flops": 0.0}, "flops must be above 0"),
        ({"price_gpu_hour": -1.0}, "price_gpu_hour must be 0 or more"),
        ({"tokens": (1e6, 0.0)}, "tokens must be 1 or more"),
        ({"tokens_per_second": ("x",)}, "NAME=R"),
        ({"tokens_per_second": ("x=0",)}, "R above 0"),
        ({"tokens_per_second": ("x=1", "x=2")}, "each name once"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"sample_bytes": 0}, "sample_bytes must be positive"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        EstimateConfig(**{"corpus": ("a",), "models": ("m", "s"), **given})


def test_a_rate_of_no_model_is_refused_with_the_names(
    corpus: list[str], models: dict[str, str]
) -> None:
    config = config_of(corpus, models, tokens_per_second=("noex=1",))
    with pytest.raises(
        ValueError, match=r"target, neox, got 'noex'; did you mean neox"
    ):
        estimate.forecast_of(config)


def test_a_corpus_without_the_text_field_is_one_line(
    corpus: list[str], models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "--corpus", *corpus, "--models", models["llama"]]
    assert cli.main([*words, "--text_field=body"]) == 1
    assert "holds none (30 missing_text)" in capsys.readouterr().err
