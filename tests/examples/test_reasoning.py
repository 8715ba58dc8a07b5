import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import transformers

from examples import (
    reasoning,
    reasoning_answers,
    reasoning_models,
    reasoning_page,
    reasoning_search,
    results,
    skills,
)
from examples.skills import PAIRS, SINGLE
from pipelines import recipe, search, searching, selection
from schemas import files, windows
from schemas import plan as slices
from schemas.errors import SchemaError
from train.search import tasks
from transforms import templates, tokenizer

ROOT = Path(__file__).parents[2]
ALL = (*SINGLE, *PAIRS)


def right(*answers: str) -> dict[str, list[bool]]:
    """Reads what a model answers of two items a skill: `10` is the first alone."""
    return {
        skill: [mark == "1" for mark in marks]
        for skill, marks in zip(ALL, answers, strict=True)
    }


def seed(fused: str) -> dict[str, Any]:
    """Makes the figures of a seed up; of one pair fused answers what is given."""
    none = ("00",) * 6
    best = {"objective": 1.0, "bits": {"a": 0.5, "b": 1.5}, "accuracy": {"a": 0.25}}
    arms = {"uniform": {"best": {"report": best}}, "cma": {"best": None}}
    return {
        "bits": {"untouched": 2.0, "fused": 1.0},
        "right": {
            "untouched": right(*none),
            "clm": right("11", "11", "11", "01", "00", "00"),
            "fused": right("11", "11", "11", fused, "00", "01"),
            "merge:experts_ties": right(*none),
            "merge:clm_ties": right("10", *none[1:]),
            "merge:fused_ties": right("11", *none[1:]),
            "source:reckoner": right("11", "00", "00", "00", "00", "00"),
            "source:units": right("00", "10", "00", "01", "00", "00"),
            "source:joint": right("11", "11", "11", "11", "11", "11"),
            "search:clm_ties": right(*none),
            "search:fused_ties": right(*none),
        },
        "searches": {"fused_ties": {"arms": arms}},
        "chosen": {"clm": {"chosen": 0.001, "dev_bits_per_byte": {"0.001": 0.5}}},
    }


def found() -> dict[str, Any]:
    run = {"command": "c", "cpu": "p", "cores": 2, "versions": {"torch": "1"}}
    return {"seeds": {"0": seed("11"), "1": seed("00")}, "run": run}


def test_what_emerges_is_what_no_other_answers_and_what_is_lost_what_one_does() -> None:
    model, others = [True, True, False, False], [[False, True, True, False]] * 2
    assert reasoning_answers.emergent(model, others) == 1
    assert reasoning_answers.lost(model, others) == 1
    assert reasoning_answers.share(model) == 50.0
    assert reasoning_answers.emergent(model, [*others, [True] * 4]) == 0


def test_the_joint_model_is_no_expert_and_its_answers_hide_no_emergence() -> None:
    seeds = found()["seeds"]
    assert reasoning_page.experts(seeds) == [
        *("untouched", "source:reckoner", "source:units")
    ]
    assert reasoning_page.counts(seeds, "fused", PAIRS[0]) == ([1, 0], [0, 1])
    assert reasoning_page.counts(seeds, "clm", PAIRS[0]) == ([0, 0], [0, 0])
    assert reasoning_page.total(seeds, "fused") == [2, 1]
    assert reasoning_page.total(seeds, "source:joint") == [5, 5]


def test_an_expert_is_set_against_the_others_and_so_tells_the_null() -> None:
    seeds = found()["seeds"]
    assert reasoning_page.counts(seeds, "source:units", PAIRS[0]) == ([1, 1], [0, 0])
    assert reasoning_page.counts(seeds, "untouched", PAIRS[0]) == ([0, 0], [1, 1])


def test_what_has_fusion_is_set_against_its_twin_and_joint_item_by_item() -> None:
    seeds = found()["seeds"]
    pairs = ["fused", "merge:fused_ties", "search:fused_ties"]
    assert reasoning_page.pairs_of(seeds) == pairs
    merges = "merge:fused_ties", "merge:clm_ties"
    assert reasoning_page.against(seeds, *merges, SINGLE) == [(1, 0), (1, 0)]
    assert reasoning_page.against(seeds, "fused", "clm", PAIRS) == [(2, 0), (1, 1)]
    lines = reasoning_page.twins(seeds).splitlines()
    line = next(one for one in lines if "| fused" in one)
    assert "| +0.0 (+0.0 to +0.0); 0 of 2; 0 / 0 |" in line
    assert "| +16.7 (+0.0 to +33.3); 1 of 2; 3 / 1 |" in line


def test_as_many_right_answers_are_a_tie_however_they_are_spread() -> None:
    def spread(*right: int) -> dict[str, list[bool]]:
        counts = zip(ALL, (*right, 0, 0, 0), strict=True)
        return {skill: [n < many for n in range(60)] for skill, many in counts}

    answers = {
        "untouched": spread(0, 0, 0),
        "clm": spread(1, 2, 4),
        "fused": spread(0, 0, 7),
        "source:joint": spread(7, 0, 0),
    }
    line = reasoning_page.twins({"0": {"right": answers}}).splitlines()[-1]
    assert line.startswith("| fused | +0.0; 0 of 1; 3 / 3 |")


def test_smollm2_has_bits_per_byte_and_no_answers() -> None:
    seeds = found()["seeds"]
    for one in seeds.values():
        one["bits"]["source:smollm2"] = 1.5
    assert reasoning_page.unasked(seeds) == ["source:smollm2"]
    line = "| smollm2 | 1.500 (1.500 to 1.500) |  |  |  |  |  |  |"
    assert line in reasoning_page.table(seeds)
    plan = recipe.read(str(ROOT / reasoning.RECIPES["smollm2"]))
    assert "source:smollm2" in plan.models
    assert "source:smollm2" not in reasoning.models_of(plan, ())


def test_the_page_tells_means_ranges_items_and_controls(tmp_path: Path) -> None:
    page = reasoning_page.page(found())
    assert "| units, of the base's make |  | 0 (0 to 0) | 50 (50 to 50) |" in page
    assert "| base | 2.000 (2.000 to 2.000) |" in page
    assert "| items |  | 2 | 2 | 2 | 2 | 2 | 2 |" in page
    assert "| fused | 0.5 (0.0 to 1.0) / 0.5 (0.0 to 1.0) | 0.0 (0.0 to 0.0) / " in page
    assert "1.0 (1.0 to 1.0) / 0.0 (0.0 to 0.0) | 2, 1 |" in page
    assert "in its place, fused: 1.5 and 0.0; more in 2 of 2 seeds." in page
    assert (
        "Of 6 items of two skills a single expert, or the base, answers at most 1, 1"
        in page
    )
    assert (
        "| experts and fused | ties | uniform weights | 1.000 (1.000 to 1.000)" in page
    )
    assert "over all on dev: clm 0.001 (an edge) of 0.001 (0.5000)." in page
    path = tmp_path / "page.md"
    for part in reasoning.PARTS.values():
        path.write_text("\n".join(results.markers(part)))
        results.write_page(str(path), page, part)
        assert page in path.read_text()
        for mark in results.markers(part):
            assert (ROOT / "docs/results.md").read_text().count(mark) == 1


def test_every_model_of_the_full_recipe_has_words_of_its_own() -> None:
    plan = recipe.read(str(ROOT / reasoning.RECIPES["full"]))
    names = reasoning.models_of(plan, reasoning_search.searches())
    seeds = {"0": {"right": dict.fromkeys(names)}}
    listed = [*reasoning_page.experts(seeds), *reasoning_page.made(seeds)]
    assert sorted(listed) == sorted(names)
    words = [reasoning_page.says(name) for name in listed]
    assert len({*words}) == len(words)


@pytest.mark.parametrize("size", reasoning.RECIPES)
def test_a_recipe_names_its_inputs_and_its_control_is_fair(
    size: reasoning.Size,
) -> None:
    plan = recipe.read(str(ROOT / reasoning.RECIPES[size]))
    assert plan.inputs is not None
    assert plan.inputs.given == {"size": size, "seed": 0}
    one, other = (vars(plan.train(arm)) for arm in plan.arms)
    assert {k for k in one if one[k] != other[k]} == {"output", "clm_weight"}
    rates = [arm.rates for arm in plan.arms]
    assert rates[0] == rates[1]
    assert len(rates[0]) > 1
    assert one["clm_weight"] < other["clm_weight"] == 1.0
    (fusion,) = plan.fusions.values()
    teachers = {*reasoning_models.OTHERS}
    assert {*fusion.sources} == teachers | ({"smollm2"} & {*plan.sources})
    made = {learner.plan.name for learner in reasoning_models.PLANS[size]}
    assert made - {"base"} == {*plan.sources} - {"smollm2"}
    assert plan.prepare.protected == ()
    assert {"fused", "clm"} < {*selection.select(plan).models}


def test_merges_with_fused_have_twins_with_the_control_and_without_either() -> None:
    plan = recipe.read(str(ROOT / reasoning.RECIPES["full"]))
    merges = {merge.name: merge for merge in plan.merges}
    experts = tuple(f"source.{skill}" for skill in SINGLE)
    for method in searching.METHODS:
        for who, more in (("fused", ("fused",)), ("clm", ("clm",)), ("experts", ())):
            merge = merges.pop(f"{who}_{method}")
            assert merge.models == (*more, *experts)
            assert merge.settings["method"] == method
    assert not merges


def test_experts_share_the_items_and_the_joint_model_has_all_their_steps() -> None:
    by_name = {one.plan.name: one for one in reasoning_models.PLANS["full"]}
    own = [by_name[skill].plan for skill in SINGLE]
    assert by_name["joint"].plan.steps == sum(plan.steps for plan in own)
    for plan, skill in zip(own, SINGLE, strict=True):
        assert plan.mixture == {skill: 1.0}
    for name, skill in reasoning_models.OTHERS.items():
        assert by_name[name].plan.mixture == {skill: 1.0}
    makes = {by_name[name].plan.architecture for name in reasoning_models.OTHERS}
    assert len(makes | {by_name["base"].plan.architecture}) == 4


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """Does all of a tiny seed but searches; returns its folder and what it came to."""
    output = str(tmp_path_factory.mktemp("reasoning"))
    with pytest.MonkeyPatch.context() as patch:
        scale = dataclasses.replace(reasoning.SCALES["tiny"], budget=0)
        patch.setitem(reasoning.SCALES, "tiny", scale)
        patch.setattr(reasoning_answers, "MOST_TOKENS", 4)
        patch.setattr(tasks, "refuse_misfits", lambda *_: None)
        return output, reasoning.run_seed("tiny", 0, output)


@pytest.fixture(scope="module")
def made(figures: tuple[str, dict[str, Any]]) -> str:
    return figures[0]


def test_a_seed_asks_every_model_that_it_makes_and_tells_them_all(
    figures: tuple[str, dict[str, Any]],
) -> None:
    output, seed = figures
    plan = recipe.read(f"{output}/recipe.toml")
    assert seed["right"].keys() == {*plan.models}
    for answers in seed["right"].values():
        assert {skill: len(some) for skill, some in answers.items()} == dict.fromkeys(
            ALL, 2
        )
    assert seed["bits"].keys() == {*plan.models}
    weights = {
        files.checksum(f"{place}/model.safetensors") for place in plan.models.values()
    }
    assert len(weights) == len(plan.models)
    page = reasoning_page.page({"seeds": {"0": seed}, "run": found()["run"]})
    for name in plan.models:
        assert f"| {reasoning_page.says(name)} |" in page


def test_windows_count_the_response_and_the_end_and_nothing_else(made: str) -> None:
    folder = f"{made}/windows/fusion"
    for window in windows.read_all(folder, slices.read(folder)):
        prompt, _, response = window.text.partition("\n")
        begin = len(prompt.encode()) + 1
        assert list(window.loss_spans) == [begin, begin + len(response.encode())]
        assert window.ends_document


def test_inputs_are_made_once_and_those_of_another_seed_are_refused(made: str) -> None:
    weights = sorted(Path(made).glob("inputs/*/model.safetensors"))
    assert len(weights) == len(reasoning_models.PLANS["tiny"])
    before = [path.stat().st_mtime_ns for path in weights]
    reasoning.make_inputs(made, "tiny", 0)
    assert [path.stat().st_mtime_ns for path in weights] == before
    with pytest.raises(SchemaError, match="made by seed = 0, and now it is 1; remove"):
        reasoning.make_inputs(made, "tiny", 1)


def test_no_text_is_in_two_splits_of_what_is_written(made: str) -> None:
    lines = Path(made, "inputs", "items.jsonl").read_text().splitlines()
    seen: dict[str, str] = {}
    for item in map(json.loads, lines):
        assert seen.setdefault(item["prompt"], item["split"]) == item["split"]
        assert item["skill"] in SINGLE
    assert {*seen.values()} == {"fusion", "search", "report"}
    base = [one for s in SINGLE for one in skills.items("base", s, 40, 0)]
    assert not {one.prompt for one in base} & {*seen}


@pytest.mark.parametrize("name", ["base", "reckoner", "converter", "coder"])
def test_what_a_model_is_asked_is_what_it_has_learned_to_answer(
    made: str, name: str
) -> None:
    folder = f"{made}/inputs/{name}"
    learned = transformers.AutoTokenizer.from_pretrained(folder)
    asked, template = tokenizer.load(folder), templates.read(folder)
    for skill in SINGLE:
        for item in skills.items("report", skill, 4, 0):
            ids, start = reasoning_models.row_of(
                reasoning_models.text_of(item), learned
            )
            assert tasks.prompt_ids(asked, item.prompt, template) == ids[:start]
            assert tasks.spelled(asked, ids[start:-1]) == item.response
            assert ids[-1] == asked.eos_id
            pieces = learned.convert_ids_to_tokens(ids)
            assert not any(re.search(r"\d.|.\d", p) for p in pieces if p[0] != "<")


def test_a_response_alone_is_learned(made: str) -> None:
    learned = transformers.AutoTokenizer.from_pretrained(f"{made}/inputs/base")
    ids, start = reasoning_models.row_of("2 and 3?\nAnswer: 5", learned)
    inputs, labels = reasoning_models._padded([(ids, start), (ids[:-2], start)])
    assert inputs[0].tolist() == ids
    kept = labels[0][labels[0] != -100].tolist()
    assert kept == ids[start:]
    assert learned.decode(kept[:-1]).strip() == "Answer: 5"
    assert labels[1][labels[1] != -100].tolist() == ids[start:-2]


def test_answers_are_kept_and_asked_for_again_of_other_weights_or_items(
    made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = {skill: some[:1] for skill, some in reasoning.items_of(made).items()}
    assert [*items] == [*ALL]
    path = str(tmp_path / "answers.json")
    found = reasoning_answers.ask(f"{made}/inputs/base", items, path)
    assert {len(some) for some in found.values()} == {1}
    kept = json.loads(Path(path).read_text())["answers"]
    for skill, (one,) in kept.items():
        assert one["prompt"] == items[skill][0].prompt
        assert [one["right"]] == found[skill]
    told = {skill: [one.response for one in some] for skill, some in items.items()}
    responses = itertools.cycle(told.values())
    monkeypatch.setattr(tasks, "written", lambda *_, **__: next(responses))
    assert reasoning_answers.ask(f"{made}/inputs/base", items, path) == found
    other = reasoning_answers.ask(f"{made}/inputs/units", items, path)
    assert all(all(some) for some in other.values())
    (one,) = items["programs"]
    expected = (*one.expected[:-1], -1)
    items["programs"] = [dataclasses.replace(one, expected=expected)]
    other = reasoning_answers.ask(f"{made}/inputs/units", items, path)
    assert not any(other["programs"])


def test_a_right_response_that_is_longer_than_one_may_be_is_refused(
    made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reasoning_answers, "MOST_TOKENS", 4)
    path = str(tmp_path / "answers.json")
    with pytest.raises(SchemaError, match="arithmetic, line 1, must have a right ans"):
        reasoning_answers.ask(f"{made}/inputs/base", reasoning.items_of(made), path)


def test_fused_and_its_control_are_searched_alike_and_the_best_of_each_is_merged(
    made: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reasoning_search, "METHODS", ("ties",))
    monkeypatch.setattr(reasoning_answers, "MOST_TOKENS", 4)
    monkeypatch.setattr(tasks, "refuse_misfits", lambda *_: None)
    plan = recipe.read(f"{made}/recipe.toml")
    result = reasoning_search.run(plan, 1, 0)
    assert [*result] == ["clm_ties", "fused_ties"]
    asked = [
        {arm: told["evaluations"] for arm, told in one["arms"].items()}
        for one in result.values()
    ]
    assert asked[0] == asked[1]
    assert len(asked[0]) == 4
    weights = {
        files.checksum(f"{reasoning_search.merged(plan, name)}/model.safetensors")
        for name in result
    }
    assert len(weights) == 2


def test_a_recipe_of_a_search_does_not_itself_allow_programs(made: str) -> None:
    plan = recipe.read(f"{made}/recipe.toml")
    given = searching.read_recipe(
        reasoning_search.write_recipe(plan, "fused_ties", 1, 0), {}
    )
    assert not given.config.run_code


def test_programs_run_only_if_the_command_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match="pass --run_code"):
        reasoning.main(["--size", "tiny"])


def test_a_search_is_of_the_merge_of_fused_and_reads_no_item_that_it_reports(
    made: str,
) -> None:
    plan = recipe.read(f"{made}/recipe.toml")
    path = reasoning_search.write_recipe(plan, "fused_ties", 1, 0)
    given = searching.read_recipe(path, {"run_code": True})
    assert [*given.merge.names] == ["fused", *SINGLE]
    assert given.merge.base == plan.target
    assert search.plan_search(given).genome.models == ("fused", *SINGLE)
    tasks_of = given.search.items(), given.report.items()
    for skill in SINGLE:
        one, other = ({i.prompt for i in some[skill]} for some in tasks_of)
        assert one
        assert not one & other
