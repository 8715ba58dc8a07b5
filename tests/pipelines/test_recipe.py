from pathlib import Path

import pytest

from pipelines import recipe

GOOD = """
output = "runs/x"
[corpus]
inputs = ["a.jsonl"]
[prepare]
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


def read(tmp_path: Path, text: str) -> recipe.Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return recipe.read(str(path))


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
