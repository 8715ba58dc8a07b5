import re
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from examples import models, results, seeds, table7, table7_page
from examples.corpus import DOMAINS
from pipelines import cli, recipe, selection, verify
from schemas import files
from train.merge.methods import METHODS

ROOT = Path(__file__).parents[2]


def seed(shift: float = 0.0) -> dict[str, Any]:
    """Makes the figures of a seed up: the paper's order, all `shift` higher."""
    costs = {
        "untouched": (3.0, 3.0),
        "fused": (2.0, 2.0),
        "clm": (2.2, 2.4),
        "merge:linear": (2.1, 2.3),
        "merge:sce": (3.2, 3.2),
        "source:a": (2.0, 3.2),
        "source:b": (3.1, 2.2),
        "ensemble:mean": (2.6, 2.8),
    }
    bits = {
        name: {"a": a + shift, "b": b + shift, "all": (a + 3 * b) / 4 + shift}
        for name, (a, b) in costs.items()
    }
    choice = {"chosen": 1e-3, "dev_bits_per_byte": {"0.001": 2.0, "0.01": 2.5}}
    return {
        "models": bits,
        "bytes": {"a": 100, "b": 300},
        "chosen": {"fused": choice},
        "text": "t",
    }


def found() -> dict[str, Any]:
    run = {"command": "c", "cpu": "p", "cores": 2, "versions": {"torch": "1"}}
    return {"seeds": {"0": seed(), "1": seed(0.5)}, "run": run}


def test_the_average_is_of_domains_and_all_is_of_bytes() -> None:
    lines = table7_page.table(found()["seeds"]).splitlines()
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in lines}
    assert rows["expert: a"][2].strip() == "3.1500 (2.9000 to 3.4000)"
    assert rows["expert: a"][3].strip() == "2.8500 (2.6000 to 3.1000)"
    assert rows["fused"][3].strip() == "**2.2500 (2.0000 to 2.5000)**"
    assert "**" not in "".join(rows["expert: a"])
    assert len({line.count("|") for line in lines}) == 1


def test_the_table_is_in_the_papers_order() -> None:
    lines = table7_page.table(found()["seeds"]).splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == [
        *("base", "expert: a", "expert: b", "ensemble of probabilities"),
        *("merge: linear", "merge: sce", "base + CLM on fusion's rows", "fused"),
        "bytes that count",
    ]


def test_the_order_of_the_paper_is_confirmed_or_denied_with_figures() -> None:
    told = list(table7_page.orders(found()["seeds"]))
    assert told[0] == (
        "yes: fused (2.2500) is below the linear merge (2.4500); in 2 of 2 seeds,"
        " difference -0.2000 (-0.2000 to -0.2000)."
    )
    assert told[1].startswith("yes: the linear merge (2.4500) is below the best expert")
    assert "the best expert (2.8500) is below the ensemble (2.9500)" in told[2]
    assert "CLM on the same rows (2.5500) is below the best expert (2.8500)" in told[6]
    yes = [line.split(":")[0] == "yes" for line in told]
    assert yes == [True] * 5 + [False] + [True] * 2  # the control is not below linear
    other = found()["seeds"]
    for bits in other["0"]["models"]["fused"], other["1"]["models"]["fused"]:
        bits["a"] += 3
    told = list(table7_page.orders(other))
    assert told[0].startswith("NO: fused (3.7500) is not below the linear merge")
    assert "in 0 of 2 seeds" in told[4]


def test_merges_and_experts_are_compared_with_all_else() -> None:
    told = list(table7_page.merges(found()["seeds"]))
    assert told[0] == "0 of 2 merges are below fused."
    assert told[1] == "1 of 2 merges are below CLM on the same rows: linear."
    (first, _) = table7_page.experts(found()["seeds"])
    assert first == "The expert of a against the base: -1.0000 on a, +0.2000 on b."


def test_seeds_of_other_text_are_not_put_together() -> None:
    both = {"0": seed(), "1": seed(0.5)}
    table7.refuse_other_text(both)
    with pytest.raises(SystemExit, match=r"of the same text.*0: t, 1: other"):
        table7.refuse_other_text({**both, "1": {**seed(), "text": "other"}})


def test_the_page_holds_every_part_and_is_written_between_its_markers(
    tmp_path: Path,
) -> None:
    path = tmp_path / "page.md"
    path.write_text("\n".join(results.markers(table7.PART)))
    page = table7_page.page(found())
    results.write_page(str(path), page, table7.PART)
    assert page in path.read_text()
    assert "fused 0.001 (an edge) of 0.001 (2.0000), 0.01 (2.5000)" in page
    first, last = results.markers(table7.PART)
    assert (ROOT / "docs/results.md").read_text().count(first) == 1
    assert (ROOT / "docs/results.md").read_text().count(last) == 1


@pytest.mark.parametrize("size", ["full", "gpu"])
def test_a_recipe_compares_what_the_paper_does_and_is_fair(size: table7.Size) -> None:
    plan = recipe.read(str(ROOT / table7.RECIPES[size]))
    assert plan.inputs is not None
    assert plan.inputs.given == {"size": size, "seed": 0}
    experts = tuple(f"source.{domain}" for domain in DOMAINS)
    assert tuple(f"source.{name}" for name in plan.sources) == experts
    fused, clm = plan.arms
    assert (fused.rates, fused.fusions) == (clm.rates, clm.fusions)
    rate = clm.rates[0]
    own = ("output", "clm_weight")
    one, other = (vars(plan.train(arm, rate)) for arm in plan.arms)
    assert {k for k in one if one[k] != other[k]} == {*own}
    assert other["clm_weight"] == 1.0
    (ensemble,) = plan.ensembles
    assert ensemble.models == experts
    used = {plan.merge(merge).config.method for merge in plan.merges}
    assert used == METHODS.keys() - {"nuslerp"}  # two models, and as slerp with two
    work = selection.select(plan)
    assert {"fused", "clm", "ensemble:mean", "merge:sce"} <= {*work.models}


def test_the_recipe_of_the_gpu_differs_in_size_alone() -> None:
    plans = [recipe.read(str(ROOT / table7.RECIPES[size])) for size in ("full", "gpu")]
    one, other = (
        {merge.name: (merge.models, merge.settings) for merge in plan.merges}
        for plan in plans
    )
    assert one == other


def test_models_of_the_gpu_have_about_100_million_parameters() -> None:
    class Words:
        bos_token_id = eos_token_id = 0

        def __len__(self) -> int:
            return base.vocabulary

    base = table7.SCALES["gpu"].base
    with torch.device("meta"):
        made = models.new_model(base, Words())
    assert isinstance(made, transformers.LlamaForCausalLM)
    assert 9e7 < made.num_parameters() < 1.1e8


def test_a_seed_changes_seeds_and_folder_and_nothing_else(tmp_path: Path) -> None:
    path = seeds.write_recipe(table7.RECIPES["full"], 5, f"{tmp_path}/five")
    made = recipe.read(path)
    plan = recipe.read(str(ROOT / table7.RECIPES["full"]))
    assert made.inputs is not None
    assert made.inputs.given["seed"] == 5
    assert made.output == made.inputs.output == f"{tmp_path}/five"
    assert made.target == f"{tmp_path}/five/inputs/base"
    assert all(made.train(arm, 1e-3).seed == 5 for arm in made.arms)
    assert all(made.merge(merge).config.seed == 5 for merge in made.merges)
    text, other = Path(path).read_text(), Path(table7.RECIPES["full"]).read_text()
    back = text.replace(f"{tmp_path}/five", plan.output).replace("seed = 5", "seed = 0")
    assert back == other


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Runs the tiny recipe alone, in a folder where nothing is; returns its path."""
    folder = tmp_path_factory.mktemp("table7")
    path = seeds.write_recipe(table7.RECIPES["tiny"], 3, str(folder / "run"))
    assert cli.main(["run", path]) == 0
    return path


def test_one_command_makes_trains_merges_and_measures_all(done: str) -> None:
    plan = recipe.read(done)
    bits = files.read_json(plan.folder("evaluation.json"))["models"]
    assert bits.keys() == {
        *("untouched", "fused", "clm", "merge:linear", "merge:ties"),
        *(f"source:{domain}" for domain in DOMAINS),
        "ensemble:mean",
    }
    assert len({row["all"] for row in bits.values()}) == len(bits)
    for domain in DOMAINS:
        # -log is convex: the ensemble costs at most what its members do in the mean.
        members = [bits[f"source:{name}"][domain] for name in DOMAINS]
        assert bits["ensemble:mean"][domain] <= statistics.fmean(members)
        assert bits[f"source:{domain}"][domain] < bits["untouched"][domain]
    assert verify.verify([plan.output])
    proved, left = verify.between([plan.output])
    assert any("ensemble.mean.json" in line for line in proved)
    assert not left


def test_a_second_run_makes_nothing_again_and_another_seed_is_refused(
    done: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = recipe.read(done)
    before = {path: at for path, at in stamps(plan.output) if "inputs" in path}
    assert cli.main(["run", done, "--only", "ensemble.mean"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"ensemble:mean +\d", told)
    assert {path: at for path, at in stamps(plan.output) if "inputs" in path} == before
    text = Path(done).read_text().replace("seed = 3", "seed = 4")
    other = Path(done).with_name("other.toml")
    other.write_text(text)
    capsys.readouterr()
    assert cli.main(["run", str(other)]) == 1
    assert "were made by seed = 3, and now it is 4; remove" in capsys.readouterr().err


def stamps(folder: str) -> list[tuple[str, int]]:
    paths = (path for path in Path(folder).rglob("*") if path.is_file())
    return [(str(path), path.stat().st_mtime_ns) for path in paths]
