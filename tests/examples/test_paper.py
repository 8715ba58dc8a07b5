import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import cli, recipe, searching
from schemas import files
from tests import tiny, twins
from tests.train import bench_tasks
from train import harness

PAPER = "examples/paper"
SEARCHED = {"windows": "search", "report": "heldout"}
LLAMA, MPT = "meta-llama/Llama-2-7b-hf", "mosaicml/mpt-7b"
DOCUMENTS = 8

TRAINED: Mapping[str, Mapping[str, Any]] = {
    "fusellm": {
        "learning_rate": 1e-5,
        "epochs": 1.0,
        "weight_decay": 0.1,
        "beta1": 0.9,
        "beta2": 0.95,
        "warmup_ratio": 0.008,
    },
    "fusechat": {
        "learning_rate": 5e-6,
        "epochs": 3.0,
        "weight_decay": 0.0,
        "beta1": 0.9,
        "beta2": 0.999,
        "warmup_ratio": 0.03,
    },
}
"""What the papers say of their trainings."""

SHARED = {
    "schedule": "cosine",
    "clip": 1.0,
    "batch_size": 128,
    "fusion_loss": "ce",
    "tail": "renormalise",
    "clm_schedule": "constant",
    "seed": 42,
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keeps the hub away, and the cache of data sets apart."""
    for place in (datasets.config, datasets.config.constants):
        monkeypatch.setattr(place, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def read(name: str) -> recipe.Recipe:
    return recipe.read(f"{PAPER}/{name}.toml")


@pytest.mark.parametrize("name", TRAINED)
def test_a_recipe_trains_as_its_paper_does(name: str) -> None:
    plan = read(name)
    for arm in plan.arms:
        config = plan.train(arm)
        for key, value in {**SHARED, **TRAINED[name]}.items():
            assert getattr(config, key) == value, (arm.name, key)
        assert config.clm_weight == (1.0 if arm.name == "clm" else 0.9)
        assert config.model == plan.target


@pytest.mark.parametrize(
    ("name", "strategy", "sources"),
    [
        ("fusellm", "mined", ("openlm-research/open_llama_7b_v2", MPT)),
        (
            "fusechat",
            "statistics",
            (
                "berkeley-nest/Starling-LM-7B-alpha",
                "NousResearch/Nous-Hermes-2-SOLAR-10.7B",
                "models/internlm2-chat-20b-llama",
                "mistralai/Mixtral-8x7B-Instruct-v0.1",
                "Qwen/Qwen1.5-72B-Chat",
            ),
        ),
    ],
)
def test_a_recipe_fuses_as_its_paper_does(
    name: str, strategy: str, sources: tuple[str, ...]
) -> None:
    plan = read(name)
    assert tuple(plan.sources.values()) == sources
    assert plan.prepare.max_tokens == 2048
    for source in ("target", *plan.sources):
        assert plan.score(source).top_k == 10
    for fusion in plan.fusions:
        config = plan.fuse_of(fusion)
        assert (config.strategy, config.fusion) == (strategy, "mince")
        assert (config.top_k, config.seq_length) == (10, 2048)
        assert config.include_target


def test_fusellm_asks_the_papers_benchmarks() -> None:
    plan = read("fusellm")
    assert plan.target == LLAMA
    asked = plan.benchmark("fused", "model").tasks
    assert asked == ("bbh", "arc", "boolq", "hellaswag", "openbookqa")
    assert {*asked} <= {*harness.PRESETS}


def test_fusechat_merges_a_target_of_each_source_as_the_authors_do() -> None:
    plan = read("fusechat")
    assert plan.target == "openchat/openchat_3.5"
    assert [a.name for a in plan.arms[2:]] == [f"pair.{name}" for name in plan.sources]
    told = {merge.name: plan.merge(merge) for merge in plan.merges}
    assert dict(told["sce"].settings) == {"select_topk": 0.1}
    assert dict(told["task_arithmetic"].settings) == {"weight": 0.3}
    for name in ("ties", "dare"):
        thinned = {"weight": 0.2, "density": 0.6, "normalize": True}
        assert dict(told[name].settings) == thinned
    for one in told.values():
        assert one.config.names == [f"pair.{name}" for name in plan.sources]
        assert one.config.base == plan.target


def test_what_umm_fuses_is_merged_with_an_expert_of_its_own_make() -> None:
    plan = read("umm")
    told = searching.read_recipe(f"{PAPER}/umm_search.toml", {})
    (arm,) = [arm for arm in plan.arms if arm.name == "fused"]
    assert told.merge.places["fused"] == plan.train(arm).output
    makers = {place.partition("/")[0] for place in plan.sources.values()}
    assert plan.target.partition("/")[0] not in makers
    searched, reported = told.config.windows, told.config.report
    assert searched == plan.folder("windows", "search") != plan.fusion_windows
    assert reported == plan.evaluate("fused", "model", "heldout").windows


def text(
    name: str, folder: Path, models: Mapping[str, str], data: Path, **changes: Any
) -> str:
    """Writes the recipe of twins; returns its path."""
    given: dict[str, Any] = {}
    if read(name).has_tasks:
        mine = bench_tasks.write_choices(folder / "mine", bench_tasks.questions(2))
        given = {"tasks": ["colors"], "task_folders": [str(mine)]}
    path = folder / "recipe.toml"
    of_twins = twins.cut_down(
        f"{PAPER}/{name}.toml", models, [str(data)], evaluate=given, **changes
    )
    path.write_text(of_twins)
    return str(path)


def run(path: str, out: Path, *only: str) -> dict[str, Any]:
    """Plans and runs a recipe; returns its table."""
    assert cli.main(["plan", "--recipe", path]) == 0
    chosen = ["--only", *only] if only else []
    assert cli.main(["run", path, f"--output={out}", *chosen]) == 0
    table: dict[str, Any] = files.read_json(f"{out}/evaluation.json")
    return table


def test_twins_of_fusellm_s_models_take_its_whole_road(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {
        LLAMA: twins.make(tmp_path / "llama", "llama", 0, tiny.unigram()),
        "openlm-research/open_llama_7b_v2": twins.make(
            tmp_path / "openllama", "llama", 1, tiny.unigram(450)
        ),
        MPT: twins.make(tmp_path / "mpt", "mpt", 2, tiny.byte_level()),
    }
    data = tmp_path / "train-0.parquet"
    pq.write_table(
        pa.table({"text": [t[:400] for t in tiny.texts()[:DOCUMENTS]]}), data
    )
    path, out = text("fusellm", tmp_path, models, data), tmp_path / "out"
    table = run(path, out)
    names = {"untouched", "fused", "clm", "source:openllama", "source:mpt"}
    assert table["models"].keys() == names
    assert table["tasks"]["colors"].keys() == names
    assert len({row["all"] for row in table["models"].values()}) == len(names)
    shown = capsys.readouterr().out
    assert "score openllama" in shown
    assert cli.main(["run", path, f"--output={out}", "--only", "untouched"]) == 0
    assert files.read_json(f"{out}/evaluation.json") == table
    assert cli.main(["verify", str(out)]) == 0
    assert "1 tasks, as in their results" in capsys.readouterr().out
    assert "colors acc_norm" in shown


def dialogue(number: int) -> dict[str, Any]:
    said = [("human", f"What is {number} and 2?"), ("gpt", f"It is {number + 2}.")]
    return {"conversations": [{"from": who, "value": what} for who, what in said * 2]}


def write_lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_twins_of_fusechat_s_models_teach_a_target_each_which_are_merged(
    tmp_path: Path,
) -> None:
    same = twins.byte_level()
    made = {
        "openchat/openchat_3.5": ("mistral", same),
        "berkeley-nest/Starling-LM-7B-alpha": ("mistral", same),
        "NousResearch/Nous-Hermes-2-SOLAR-10.7B": ("llama", same),
        "models/internlm2-chat-20b-llama": ("llama", tiny.unigram()),
        "mistralai/Mixtral-8x7B-Instruct-v0.1": ("mixtral", same),
        "Qwen/Qwen1.5-72B-Chat": ("qwen2", twins.byte_level(350)),
    }
    models = {
        name: twins.make(tmp_path / f"model{seed}", kind, seed, tokens)
        for seed, (name, (kind, tokens)) in enumerate(made.items())
    }
    twins.chatty(models["openchat/openchat_3.5"])
    data = write_lines(tmp_path / "d.jsonl", [dialogue(n) for n in range(DOCUMENTS)])
    # Of those left out one has the pivot's vocabulary, and one is a Llama, too.
    some = {"sources": ["starling", "mixtral", "qwen"]}
    path = text("fusechat", tmp_path, models, data, pairs=some)
    table = run(path, tmp_path / "out", "merge.sce", "source.mixtral")
    assert table["models"].keys() == {"merge:sce", "source:mixtral"}
    assert cli.main(["merge", path, "--show", f"--output={tmp_path / 'out'}"]) == 0


def test_twins_of_umm_s_experts_teach_one_which_is_merged_with_its_own_make(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    byte, unigram, other = twins.byte_level(), tiny.unigram(), tiny.unigram(450)
    makes = {
        "deepseek-ai/deepseek-coder-7b-instruct-v1.5": ("llama", byte),
        "Qwen/Qwen2.5-Math-7B-Instruct": ("qwen2", twins.byte_level(350)),
        "WizardLMTeam/WizardMath-7B-V1.1": ("mistral", unigram),
        "nvidia/OpenMath-Mistral-7B-v0.1-hf": ("mistral", unigram),
        "meta-math/MetaMath-7B-V1.0": ("llama", other),
        "codellama/CodeLlama-7b-Instruct-hf": ("llama", other),
        "deepseek-ai/deepseek-math-7b-rl": ("llama", byte),
        "deepseek-ai/deepseek-coder-7b-base-v1.5": ("llama", byte),
    }
    models = {
        name: twins.make(tmp_path / f"model{seed}", kind, seed, tokens)
        for seed, (name, (kind, tokens)) in enumerate(makes.items())
    }
    twins.chatty(models["deepseek-ai/deepseek-coder-7b-instruct-v1.5"])
    asked = [
        {"prompt": f"What is {n} times 3?", "response": f"{n} times 3 is {3 * n}."}
        for n in range(2 * DOCUMENTS)
    ]
    out = tmp_path / "out"
    data = write_lines(tmp_path / "q.jsonl", asked)
    splits = {"splits": "fusion=.4,search=.3,heldout=.3"}
    path = text("umm", tmp_path, models, data, prepare=splits)
    assert run(path, out, "fused")["models"].keys() == {"fused"}
    given = tomllib.loads(Path(f"{PAPER}/umm_search.toml").read_text())
    table = given["merge"]
    table["models"] = {
        "fused": f"{out}/models/fused",
        "math": models[table["models"]["math"]],
    }
    table["base"] = models[table["base"]]
    here = {name: f"{out}/windows/{split}" for name, split in SEARCHED.items()}
    given["search"] |= {**here, "groups": 2, "budget": 2, "dtype": "float32"}
    search = tmp_path / "search.toml"
    search.write_text(twins.dumped({**given, "output": str(out)}))
    assert cli.main(["search", str(search), "--show"]) == 0
    assert "attention" in capsys.readouterr().out
    assert cli.main(["search", str(search)]) == 0
    assert cli.main(["merge", f"{out}/search/recipe.toml"]) == 0
    assert (out / "merged" / "model.safetensors").exists()
