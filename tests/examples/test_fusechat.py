import json
from pathlib import Path

import pytest
import torch

from examples import chat_models, fusechat, fusechat_page, results
from pipelines import recipe
from schemas import files
from transforms import loading, templates, tokenizer

MESSAGES = [
    {"role": "user", "content": "What is 1 + 1?"},
    {"role": "assistant", "content": "2."},
]
RENDERED = (
    "<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\n2.<|im_end|>\n"
)


def test_the_models_read_dialogues_as_the_recipe_renders_them(tmp_path):
    texts = {d: [RENDERED] * 40 for d in ("library", "arithmetic", "units", "programs")}
    for made in chat_models.PLANS["tiny"]:
        small = {"width": 32, "layers": 1, "steps": 1, "vocabulary": 300}
        folder = tmp_path / made.name
        chat_models.make(
            chat_models.dataclasses.replace(made, **small), texts, str(folder)
        )
    assert chat_models.render(MESSAGES) == RENDERED
    pivot = tokenizer.load(str(tmp_path / "pivot"))
    assert templates.read(str(tmp_path / "pivot")).text == chat_models.TEMPLATE
    assert {one.text for one in pivot.controls} >= {"<|im_start|>", "<|im_end|>"}
    reckoner = tokenizer.load(str(tmp_path / "reckoner"))
    assert not {one.text for one in reckoner.controls} & {"<|im_start|>"}
    cpu = torch.device("cpu")
    model = loading.load_model(str(tmp_path / "pivot"), dtype=torch.float32, device=cpu)
    assert model.config.vocab_size == pivot.size
    assert model.config.eos_token_id == pivot.eos_id


def test_splits_of_dialogues_are_whole_and_apart():
    counts = fusechat.COUNTS["tiny"]
    made = list(fusechat.split_dialogues("tiny"))
    for split, count in counts.items():
        domains = [one["domain"] for name, one in made if name == split]
        assert {d: domains.count(d) for d in domains} == dict.fromkeys(domains, count)
        assert len(set(domains)) == 4
    told = [json.dumps(one["messages"]) for _, one in made]
    assert len(set(told)) == len(told) == 4 * sum(counts.values())


@pytest.mark.parametrize("size", fusechat.RECIPES)
def test_recipes_name_what_is_made_and_every_way_to_merge(size):
    plan = recipe.read(fusechat.RECIPES[size])
    made = {planned.name for planned in chat_models.PLANS[size]}
    named = {files.name_of(plan.target), *plan.sources}
    assert named - {"smollm2"} == made
    assert set(plan.prepare.shares()) == set(fusechat.COUNTS[size]) - {"base"}
    methods = {plan.merge(merge).config.method for merge in plan.merges}
    assert methods == {
        *("linear", "slerp", "task_arithmetic", "ties", "dare_linear", "varm", "sce"),
    }
    arms = {arm.name: arm for arm in plan.arms}
    assert {"clm", "many_to_one", *(f"pair.{name}" for name in plan.sources)} == {*arms}
    assert plan.train(arms["clm"]).data == plan.train(arms["many_to_one"]).data
    alike = {
        (plan.train(arm).learning_rate, plan.train(arm).epochs) for arm in plan.arms
    }
    assert len(alike) == 1


NAMES = (
    *("untouched", "clm", "many_to_one", "pair.one", "pair.two"),
    *("merge:linear", "merge:sce", "source:one", "source:two"),
)


def found(**changed):
    """Rows that fall from model to model, but those that are changed."""
    rows = {name: {"a": 9.0 - place, "b": 3.0} for place, name in enumerate(NAMES)}
    rows = {name: {**row, "all": row["a"]} for name, row in rows.items()}
    for name, cost in changed.items():
        rows[name] = {"a": cost, "b": cost, "all": cost}
    return {
        "models": rows,
        "bytes": {"a": 1000, "b": 10},
        "taught": {
            "fused": {"a": {"one": 3, "target": 1}, "b": {"two": 2}},
            "pair.one": {"a": {"one": 1, "target": 3}, "b": {"target": 2}},
        },
        "run": results.about([], "examples.fusechat"),
        "minutes": 12.3,
    }


def test_orders_are_counted_over_all_bytes():
    told = list(fusechat_page.orders(found()))
    assert told[0] == "2 of 2 merges are below the best pair (5.0000)."
    assert "many-to-one is below CLM alone." in told
    told = list(fusechat_page.orders(found(**{"merge:sce": 5.0, "clm": 9.0})))
    assert told[0] == "1 of 2 merges are below the best pair (5.0000)."
    assert told[-1] == "CLM alone is not below the pivot as it was."


def test_the_best_of_what_is_made_is_bold_and_no_source_is():
    lines = fusechat_page.table(found()).splitlines()
    rows = {line.split("|")[1].strip(): line for line in lines}
    assert rows["merge: sce"].count("**3.0000**") == 3
    assert "**" not in rows["source: two"]
    assert "1,010" in rows["bytes that count"]


def test_the_page_has_tables_of_even_rows_and_says_how_it_was_made(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("\n".join(results.markers(fusechat.PART)))
    page = fusechat_page.page(found())
    results.write_page(str(path), page, fusechat.PART)
    assert page in path.read_text()
    assert "python -m examples.fusechat" in page
    assert "12 min" in page
    for block in page.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1
    shares = [line for line in page.splitlines() if line.startswith("| pair.one")]
    assert [cell.strip() for cell in shares[0].split("|")[1:5]] == [
        *("pair.one", "one", "25%", "0%"),
    ]


def test_the_makefile_writes_the_page_that_is_committed():
    assert "examples.fusechat --size $(DEMO)" in Path("Makefile").read_text()


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_overwriting_reaches_every_stage(flags, monkeypatch):
    plans = []
    monkeypatch.setattr(fusechat.run, "run", plans.append)
    monkeypatch.setattr(fusechat, "found_of", lambda *_: {})
    monkeypatch.setattr(fusechat_page, "orders", lambda _: [])
    fusechat.main(["--size", "tiny", *flags])
    (plan,) = plans
    stages = [plan.prepare, plan.fuse_of(next(iter(plan.fusions)))]
    stages += [plan.score("target"), plan.train(plan.arms[0])]
    stages += [plan.merge(plan.merges[0]).config]
    assert [one.overwrite for one in stages] == [bool(flags)] * 5
