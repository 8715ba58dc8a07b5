import dataclasses
import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from pipelines import cli, merge, merging, search, search_page, searching
from schemas import locks
from schemas.errors import SchemaError
from tests import commands
from tests import merging as plainly
from tests import searching as small
from tests.searching import Made
from train import evaluate
from train.evaluate import EvaluateConfig
from train.merge.inputs import Input
from train.search import objective, trials

Contents = Callable[[str], dict[str, str]]
NOTHING: dict[str, Any] = {"baselines": [], "budget": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return small.make(tmp_path_factory.mktemp("searching"))


@dataclasses.dataclass(frozen=True)
class Finished:
    """A search that is done: its folder, its result, and what it said."""

    out: str
    result: dict[str, Any]
    said: list[str]


@pytest.fixture(scope="module")
def finished(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    out = str(tmp_path_factory.mktemp("finished"))
    said: list[str] = []
    result = search.search(small.given(made, out, budget=4), said.append)
    return Finished(out, result, said)


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("task_arithmetic", {}),
        ("ties", {"settings": {"rescale": "l1"}, "dtype": "bfloat16"}),
        ("dare_ties", {"seed": 3, "rules": [{"pattern": "*norm*", "take": "m2"}]}),
    ],
)
def test_a_trial_is_what_the_merger_writes_to_the_bit(
    method: str, more: dict[str, Any], made: Made, out: str, tmp_path: Path
) -> None:
    given = small.given(made, out, method=method, **more)
    planned, measuring = small.bench_of(given)
    x = np.random.default_rng(0).normal(0.5, 0.5, len(planned.genome.genes))
    merged = given.merging(planned.genome, x)
    found = measuring.trial(given.search, merged)
    here = dataclasses.replace(merged.config, slices="0-0")  # no runner is started
    assert merge.merge_models(dataclasses.replace(merged, config=here))
    written = plainly.state(merged.config.output)
    held = measuring.bench.tensors(merged.rules)
    assert plainly.same(held, written)
    assert not plainly.same(written, plainly.state(made["base"]))
    on_disk = evaluate.bits_per_byte(
        evaluate.evaluate_model(
            EvaluateConfig(
                name="m",
                model=merged.config.output,
                windows=made["search"],
                output=str(tmp_path / "evaluation"),
                device="cpu",
                threads=1,
            )
        )
    )
    del on_disk[evaluate.ALL]
    assert found.bits == on_disk


def test_the_best_is_written_by_the_merger_from_the_recipe_alone(
    made: Made, out: str
) -> None:
    result = small.run(made, out, method="dare_ties", baselines=["random"])
    best = result["arms"][result["chosen"]]["best"]
    path = f"{out}/s/recipe.toml"
    assert set(tomllib.loads(Path(path).read_text())) == {"merge"}
    merged = merging.read_recipe(path, {"slices": "0-0"})
    assert merge.merge_models(merged)
    given = small.given(made, out, method="dare_ties")
    planned, measuring = small.bench_of(given)
    again = given.merging(planned.genome, np.array(best["genes"]))
    assert plainly.same(measuring.bench.tensors(again.rules), plainly.state(f"{out}/m"))
    assert (
        measuring.trial(given.search, merged).objective == best["search"]["objective"]
    )


def test_a_recipe_names_the_commit_of_a_model_of_the_hub(made: Made, out: str) -> None:
    given = small.given(made, out)
    models = [
        Input(name="m1", model="org/one", commit="c1"),
        Input(name="m2", model=made["m2"]),
        Input(name="base", model="org/base", commit="c0"),
    ]
    told = tomllib.loads(search_page.recipe(given.plain(()), models))["merge"]
    assert told["models"] == {"m1": "org/one@c1", "m2": made["m2"]}
    assert told["base"] == "org/base@c0"
    assert merging.read_table(told).settings == given.starts


def test_a_search_goes_on_after_kills_to_the_same_bytes(
    made: Made, out: str, tmp_path: Path, contents: Contents
) -> None:
    more = {"budget": 5, "baselines": ["uniform"], "groups": 1, "population": 4}
    small.run(made, out, **more)
    broken = str(tmp_path / "broken")
    path = small.recipe(made, broken, **more)
    for number, measured in enumerate((4, 7)):  # 6 references, 6 trials, 2 reports
        log = tmp_path / f"{number}.log"
        process = commands.start(small.search_and_die, path, measured, log=log)
        assert commands.end(process) == -9
    assert search.main([path]) == 0
    assert contents(f"{broken}/s").keys() == contents(f"{out}/s").keys()
    for name, content in contents(f"{out}/s").items():
        if name != "recipe.toml":  # it names the folder that the model goes to
            assert contents(f"{broken}/s")[name] == content


def test_baselines_have_as_many_evaluations(finished: Finished) -> None:
    arms = finished.result["arms"]
    told = {name: arm["evaluations"] for name, arm in arms.items()}
    assert told == {"uniform": 1, "global": 4, "random": 4, "cma": 4}
    assert [line.split()[0] for line in finished.said] == [
        *("uniform", *["global"] * 4, *["random"] * 4, *["cma"] * 4)
    ]


def test_models_are_measured_as_they_are(
    made: Made, finished: Finished, tmp_path: Path
) -> None:
    for name in ("base", "m1", "m2"):
        for split in ("search", "report"):
            config = EvaluateConfig(
                name=f"{name}-{split}",
                model=made[name],
                windows=made[split],
                output=str(tmp_path),
                device="cpu",
                threads=1,
            )
            bits = evaluate.bits_per_byte(evaluate.evaluate_model(config))
            del bits[evaluate.ALL]
            assert finished.result["models"][name][split]["bits"] == bits


def test_a_finished_search_measures_nothing_again(
    made: Made,
    finished: Finished,
    monkeypatch: pytest.MonkeyPatch,
    contents: Contents,
) -> None:
    before = contents(f"{finished.out}/s")
    monkeypatch.setattr(objective, "measure", None)
    small.run(made, finished.out, budget=4)
    assert contents(f"{finished.out}/s") == before


def test_a_merge_that_is_no_model_is_a_dead_trial(made: Made, out: str) -> None:
    result = small.run(made, out, dtype="float16", weight_range=[0.0, 1e9], budget=3)
    assert result["arms"]["global"]["dead"] == 2
    told = json.loads(Path(f"{out}/s/trials/global-3.json").read_text())["trials"]
    assert "merged weights must be finite" in told[-1]["error"]
    assert told[-1]["objective"] is None
    assert result["arms"]["global"]["best"]["trial"] == 0
    assert result["arms"]["random"]["best"] is None
    assert result["chosen"] == "uniform"
    table = Path(f"{out}/s/table.md").read_text()
    assert "one global value: 2 of 3 trials had no finite objective" in table
    assert "| random search | 3 | none | dead | dead | dead | dead |" in table


def test_a_search_of_dead_trials_says_why(made: Made, out: str) -> None:
    with pytest.raises(SchemaError, match=r"one of 4 trials must .*weights must be"):
        small.run(
            made,
            out,
            dtype="float16",
            weight_range=[1e8, 1e9],
            budget=2,
            baselines=["random"],
        )


def test_equal_objectives_are_told(
    made: Made, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = trials.Found(objective=1.0, bits={"code": 1.0})
    monkeypatch.setattr(objective, "measure", lambda *_, **__: found)
    result = small.run(made, out)
    assert result["chosen"] == "uniform"
    assert all(arm["best"]["trial"] == 0 for arm in result["arms"].values())
    assert "CMA-ES: all trials had the same" in Path(f"{out}/s/table.md").read_text()


def test_table_and_plot_show_every_arm(finished: Finished) -> None:
    result, out = finished.result, finished.out
    table = Path(f"{out}/s/table.md").read_text()
    chosen = result["arms"][result["chosen"]]["best"]
    for word in ("| base |", "| m2 |", "random search", "one global value", "CMA-ES"):
        assert word in table
    for split in ("search", "report"):
        assert f"{chosen[split]['objective']:.4f}" in table
    drawn = ElementTree.fromstring(Path(f"{out}/s/search.svg").read_text())
    texts = {one.text for one in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert {"uniform weights", "one global value", "random search", "CMA-ES"} <= texts


def test_tasks_are_searched_on_and_reported(made: Made, out: str) -> None:
    files = {}
    for split, prompts in {"search": ["a =", "b ="], "report": ["c =", "d ="]}.items():
        files[split] = f"{out}-{split}.jsonl"
        lines = [json.dumps({"prompt": p, "answer": "x"}) for p in prompts]
        Path(files[split]).write_text("\n".join(lines))
    result = small.run(
        made,
        out,
        windows=None,
        report=None,
        tasks={"sums": {**files, "weight": 2.0}},
        max_new_tokens=2,
        **NOTHING,
    )
    best = result["arms"]["cma"]["best"]
    for split in files:
        share = best[split]["accuracy"]["sums"]
        assert share in (0.0, 0.5, 1.0)
        assert best[split]["objective"] == -2 * share
    assert "sums, answered" in Path(f"{out}/s/table.md").read_text()


def test_another_search_is_refused_and_overwritten_when_asked(
    made: Made, out: str
) -> None:
    small.run(made, out, **NOTHING)
    other = {**NOTHING, "weight_range": [0.0, 0.5]}
    with pytest.raises(SchemaError, match="was made with weight_range = "):
        small.run(made, out, **other)
    kept = Path(out, "s", "mine.txt")
    kept.write_text("mine")
    small.run(made, out, overwrite=True, **other)
    before = Path(out, "s", "trials", "cma.json").read_bytes()
    small.run(made, out, **other)
    assert Path(out, "s", "trials", "cma.json").read_bytes() == before
    assert kept.exists()


def test_overlapping_splits_are_refused_before_any_work(made: Made, out: str) -> None:
    with pytest.raises(SchemaError, match="must be on different documents"):
        small.run(made, out, report=made["search"])
    assert not Path(out, "s").exists()


def test_a_model_that_is_broken_is_named_before_any_trial(
    made: Made, out: str, tmp_path: Path
) -> None:
    own = small.make(tmp_path / "own")
    key = "model.norm.weight"
    plainly.rewrite(own["m2"], {key: torch.full((32,), float("nan"))})
    with pytest.raises(SchemaError, match=rf"must be finite, but {key} of m2"):
        small.run(own, out)
    assert not Path(out, "s", "trials").exists()


def test_tokens_that_one_model_has_alone_stay_out_where_the_base_says_so(
    made: Made, out: str, tmp_path: Path
) -> None:
    own = small.add_token(made, tmp_path)
    with pytest.raises(ValueError, match="must have the same vocabulary"):
        small.run(own, out, **NOTHING)
    result = small.run(own, out, embeddings="base", **NOTHING)
    assert list(result["models"]) == ["base"]
    given = small.given(own, out, embeddings="base", **NOTHING)
    planned, measuring = small.bench_of(given)
    held = measuring.bench.tensors(given.plain(()).rules)
    key = "model.embed_tokens.weight"
    assert torch.equal(held[key], plainly.state(made["base"])[key])
    assert [cell.name for cell in planned.genome.cells][-1] == "outside"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"embeddings": "common"}, 'must be "error" or "base" in a search'),
        ({"method": "slerp"}, "method must be one that can be searched"),
        ({"settings": {"weight": 0.5}}, "must leave weight to the search"),
        ({"base": None}, "merges differences from a base"),
        ({"budget": 0}, "budget must be at least 1"),
        ({"population": 3}, "population must be at least 4"),
        ({"sigma": 0.0}, r"sigma must be in \(0, 1\]"),
        ({"weight_range": [1.0, 0.0]}, "weight_range must be two finite numbers"),
        ({"density_range": [0.0, 1.5]}, r"density_range must be in \[0, 1\]"),
        ({"baselines": ["grid"]}, "baselines must be of uniform, global, random"),
        ({"report": None}, "must hold both 'windows' and 'report'"),
        ({"windows": None, "report": None}, "to measure bits per byte on, or tasks"),
        ({"tasks": {"a": {"search": "x"}}}, r"tasks\.a\] must hold 'report'"),
        ({"tasks": {"a": {"searc": "x"}}}, "did you mean search"),
        ({"domains": {"code": "much"}}, r"domains\]\.code must be a number"),
        ({"modules": {"mlp": "*.mlp.*"}}, r"modules\]\.mlp must be a list"),
        ({"modules": {"rest": ["*"]}}, "must leave the name 'rest'"),
        ({"budgets": 3}, "did you mean budget"),
    ],
)
def test_a_wrong_recipe_is_refused(
    change: dict[str, Any], told: str, made: Made, out: str
) -> None:
    with pytest.raises(ValueError, match=told):
        small.given(made, out, **change)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"groups": 3}, r"groups must be in \[1, 2\]"),
        ({"rules": [{"pattern": "*", "take": "base"}]}, "must vary a tensor at least"),
        ({"domains": {"law": 1.0}}, r"\['code', 'prose'\] have none"),
    ],
)
def test_a_recipe_that_does_not_fit_the_models_is_refused(
    change: dict[str, Any], told: str, made: Made, out: str
) -> None:
    with pytest.raises(ValueError, match=told):
        small.run(made, out, **change)


def test_a_line_of_other_places_is_not_taken_for_this_one(
    made: Made, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"budget": 2, "baselines": ["global"]}
    with monkeypatch.context() as patch:
        patch.setattr(search, "arm_identity", lambda given, arm, identity: identity)
        small.run(made, out, **more)
    with pytest.raises(
        SchemaError, match="was made with line = None, and now it is 'w"
    ):
        small.run(made, out, **more)
    held = Path(out, "s", "trials")
    before = (held / "cma.json").read_bytes()
    (held / "global-2.json").unlink()
    small.run(made, out, **more)
    assert (held / "cma.json").read_bytes() == before


def test_the_report_of_a_trial_of_another_line_is_not_taken_for_this_ones(
    made: Made, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "best", lambda done: done[1])
    more = {"baselines": ["global"]}
    few, many = (
        small.run(made, out, budget=budget, **more)["arms"]["global"]["best"]
        for budget in (2, 3)
    )
    assert few["settings"] != many["settings"]
    assert few["report"] != many["report"]


def test_of_two_searches_in_one_folder_the_second_is_refused(
    made: Made, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "WAIT_S", 0.0)
    tried = []

    def try_another(line: str) -> None:
        with pytest.raises(SchemaError, match=r"/s must be .* is searching there"):
            small.run(made, out, **NOTHING)
        tried.append(line)

    search.search(small.given(made, out, **NOTHING), try_another)
    assert len(tried) == 1
    assert not Path(out, "s", locks.NAME).exists()


def test_the_genome_is_shown_and_nothing_written(
    made: Made, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small.recipe(made, out, method="ties", budget=30)
    assert search.main([path, "--show"]) == 0
    told = capsys.readouterr().out
    assert "layers 0-0 attention: *.self_attn.*" in told
    assert "  density of m2: 0.05 to 1, from 1" in told
    assert told.splitlines()[-5:] == [
        "35 genes in 7 cells",
        "uniform weights: 1 evaluation",
        "one global value: 30 evaluations, lambda from 0 to 2",
        "random search: 30 evaluations",
        "CMA-ES: 30 evaluations, 2 updates, one after every 14",
    ]
    assert not Path(out, "s").exists()


def test_what_the_arms_come_to_is_shown_without_the_extra(
    made: Made,
    out: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    path = small.recipe(made, out, population=8, baselines=["global"], budget=7)
    assert search.main([path, "--show"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "one global value: 7 evaluations, weight times lambda from 0 to 2",
        "CMA-ES: 7 evaluations, 0 updates, one after every 8",
    ]


def test_a_search_without_its_extra_says_which(
    made: Made,
    out: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    assert cli.main(["search", small.recipe(made, out)]) == 1
    assert "pip install 'fusebeam[search]'" in capsys.readouterr().err


def test_flags_take_the_place_of_keys(made: Made, out: str) -> None:
    path = small.recipe(made, out)
    flags = vars(search.flags_parser().parse_args([path, "--budget=9", "--seed=4"]))
    given = searching.read_recipe(flags.pop("recipe"), flags)
    assert (given.config.budget, given.config.seed) == (9, 4)
    assert dataclasses.asdict(given.config)["groups"] == 2


def test_a_rule_of_ones_own_has_nothing_of_the_genes(made: Made, out: str) -> None:
    rules = [{"pattern": "*.mlp.*", "settings": {"normalize": False}}]
    given = small.given(made, out, method="ties", rules=rules)
    planned, measuring = small.bench_of(given)

    def tensors(x: Any) -> dict[str, torch.Tensor]:
        return measuring.bench.tensors(given.merging(planned.genome, x).rules)

    start = planned.genome.start
    here, there = tensors(start), tensors(start + 0.25)
    same = {key for key in here if torch.equal(here[key], there[key])}
    assert same == {key for key in here if ".mlp." in key}


def test_what_rules_settle_is_not_searched(made: Made, out: str) -> None:
    rules = [{"pattern": "*.mlp.*", "take": "m1"}]
    given = small.given(made, out, rules=rules)
    planned, measuring = small.bench_of(given)
    assert not any("mlp" in cell.name for cell in planned.genome.cells)
    held = measuring.bench.tensors(
        given.merging(planned.genome, planned.genome.start).rules
    )
    key = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(held[key], plainly.state(made["m1"])[key])
