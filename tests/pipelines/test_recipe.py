import re
from pathlib import Path

import pytest

from pipelines import recipe
from pipelines.tables import TABLES_AND_KEYS
from tests.recipes import read

GOOD = """
output = "runs/x"
[corpus]
inputs = ["a.jsonl"]
[prepare]
splits = "fusion=.5,dev=.25,heldout=.25"
max_bytes = 100
[target]
model = "t"
[sources.one]
model = "m"
dtype = "float32"
[score]
top_k = 7
[train]
learning_rate = 1e-3
[arms.fused]
clm_weight = 0.5
[arms.clm]
clm_weight = 1.0
learning_rate = [1e-3, 1e-4]
"""


def added(table: str, line: str) -> str:
    """Returns the recipe with a line more in a table, which is made if need be."""
    if f"[{table}]" not in GOOD:
        return f"{GOOD}\n[{table}]\n{line}\n"
    return GOOD.replace(f"[{table}]", f"[{table}]\n{line}")


def test_a_recipe_gives_every_stage_its_settings(tmp_path: Path) -> None:
    plan = read(tmp_path, GOOD)
    assert plan.prepare.models == ("t", "m")
    assert plan.score("one").model == "m"
    assert plan.score("one").dtype == "float32"
    assert plan.score("target").top_k == 7
    assert plan.fuse.sources == ("one=runs/x/scores/one",)
    fused, clm = plan.arms
    assert plan.train(fused).output == "runs/x/models/fused"
    assert plan.train(fused).clm_weight == 0.5
    assert clm.rates == (1e-3, 1e-4)
    assert plan.train(clm, 1e-4).learning_rate == 1e-4
    assert plan.train(clm, 1e-4).output == "runs/x/trials/clm/learning_rate=0.0001"


def test_dialogues_are_rendered_by_the_target_s_template(tmp_path: Path) -> None:
    shaped = GOOD.replace("[corpus]", '[corpus]\nchat_shape = "auto"')
    reversed_ = shaped.replace("[prepare]", '[prepare]\nmodels = ["m", "t"]')
    assert read(tmp_path, reversed_).prepare.models == ("m", "t")
    assert read(tmp_path, reversed_).prepare.chat_model == "t"
    named = shaped.replace("[prepare]", '[prepare]\nchat_model = "m"')
    assert read(tmp_path, named).prepare.chat_model == "m"
    assert read(tmp_path, GOOD).prepare.chat_model is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[score]", "[scores]", r"'scores'; did you mean"),
        ("top_k = 7", "topk = 7", r"'topk'; did you mean top_k"),
        ("top_k = 7", 'top_k = "7"', r"top_k must be int"),
        ("max_bytes = 100", "max_bytes = 1", r"max_bytes must be at least 4"),
        ('model = "t"', "", r"\[target\]"),
        ("[arms.clm]", "[arms.untouched]", r"'untouched'"),
        ("clm_weight = 0.5", "clm_weight = 5.0", r"clm_weight must be in \[0, 1\]"),
        ("[corpus]", "[corpus", r"must be TOML"),
        ('output = "runs/x"', "", r"'output'"),
    ],
)
def test_a_slip_in_a_recipe_is_named_before_any_work(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    assert old in GOOD
    with pytest.raises(ValueError, match=message):
        read(tmp_path, GOOD.replace(old, new))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (added("splits", "fusion = 3"), r"\[splits\] must hold a string 'fusion'"),
        (added("splits", 'heldout = "test"'), r"\[prepare\]: splits must name 'test'"),
        (GOOD.replace("dev=.25,heldout=.25", "heldout=.5"), "must name 'dev'"),
        (GOOD.replace('splits = "', '# "'), r"must name 'fusion'.*it names train"),
        (added('arms."clm v2"', ""), r"letters, digits, and _\.-"),
        (added('arms."../../x"', ""), r"letters, digits, and _\.-"),
        (added('arms.".."', ""), r"letters, digits, and _\.-"),
        (added('sources."a/b"', 'model = "m"'), r"letters, digits, and _\.-"),
        (added('arms."source.one"', ""), "no arm may be called"),
        (added("sources.target", 'model = "m"'), "no source may be called 'target'"),
        (added("score", 'slices = "0-1"'), r"\[score\] must not hold 'slices'"),
        (added("fuse", 'slices = "0-1"'), r"\[fuse\] must not hold 'slices'"),
        (added("fuse", 'target = "x"'), r"\[fuse\] must not hold 'target'"),
        (added("fuse", 'sources = ["one=x"]'), r"\[fuse\] must not hold 'sources'"),
        (added("fuse", "maps_only = true"), r"\[fuse\] must not hold 'maps_only'"),
        (added("fuse", 'weights = ["one=1"]'), r"\[fuse\]: .*give --fusion=static"),
        (added("fuse", 'fusion = "static"'), r"every candidate, one, target"),
        (added("fuse", "weights = {one = 1}"), r"\[fuse\]\.weights must be a list of"),
        (added("fuse", 'strategy = "statistic"'), r"strategy must be one of 'spans'"),
        (
            added("fuse", 'granularity = "document"\nreference = true'),
            r"\[fuse\]: granularity must be window or packed_row",
        ),
        (added("sources.one", 'slices = "0"'), r"\[sources.one\] must not hold"),
        (GOOD.replace("[1e-3, 1e-4]", "[]"), r"\[arms.clm\]: learning_rate must be"),
        (GOOD.replace("[1e-3, 1e-4]", '["a"]'), r"list of numbers, each once"),
        (GOOD.replace("[1e-3, 1e-4]", "[1e-3, 0.001]"), r"each once"),
        (GOOD.replace("[1e-3, 1e-4]", "[true]"), r"list of numbers"),
        ("score = 3\n" + GOOD.replace("[score]\ntop_k = 7", ""), r"\[score\] must be"),
        ("arms = 3\n" + GOOD[: GOOD.index("[arms.fused]")], r"\[arms\] must be"),
        (
            "sources = 3\n" + GOOD.replace("[sources.one]", "[x]"),
            r"known tables|must be",
        ),
        (
            GOOD.replace("top_k = 7", "top_k = 0"),
            r"\[score\] and \[target\]: top_k must",
        ),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line_that_names_file_and_table(
    text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        read(tmp_path, text)
    assert str(refused.value).startswith(f"{tmp_path}/recipe.toml")
    assert len(str(refused.value).splitlines()) == 1


def test_no_dev_split_is_needed_where_nothing_is_chosen(tmp_path: Path) -> None:
    text = GOOD.replace("dev=.25,heldout=.25", "heldout=.5").replace(", 1e-4", "")
    text = text.replace("[1e-3]", "1e-3")
    assert read(tmp_path, text).needed_splits == ("fusion", "heldout")


def test_overwrite_is_handed_to_all_stages(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(GOOD)
    for overwrite in (False, True):
        plan = recipe.read(str(path), overwrite=overwrite)
        stages = [
            plan.prepare,
            plan.fuse,
            plan.score("one"),
            plan.train(plan.arms[0]),
            plan.evaluate("fused", "m", "dev"),
        ]
        assert [stage.overwrite for stage in stages] == [overwrite] * 5


def test_the_recipes_of_the_documentation_are_some_and_hold_every_table(
    tmp_path: Path,
) -> None:
    text = (Path(__file__).parents[2] / "docs/running.md").read_text()
    blocks = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    plans = [read(tmp_path, block) for block in blocks if "[corpus]" in block]
    assert plans[0].needed_splits == ("fusion", "dev", "heldout")
    for name in TABLES_AND_KEYS:
        assert any(plan.tables[name] for plan in plans), name
