from pathlib import Path

import pytest

from pipelines import recipe, selection
from pipelines.recipe import Recipe

TEXT = """
output = "runs/x"
[corpus]
inputs = ["a.jsonl"]
[prepare]
splits = "fusion=.5,heldout=.5"
[target]
model = "t"
[sources.one]
model = "m"
[sources.two]
model = "n"
[sources.three]
model = "o"
[pairs]
[arms.clm]
clm_weight = 1.0
[merges.some]
method = "linear"
models = ["pair.one", "pair.two"]
[merges.more]
method = "linear"
models = ["merge.some", "pair.three"]
[merges.given]
method = "linear"
models = ["source.one", "source.three"]
[ensembles.all]
[ensembles.mixed]
models = ["clm", "merge.some", "source.one"]
weights = [2, 1, 1]
"""


@pytest.fixture
def plan(tmp_path: Path) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(TEXT)
    return recipe.read(str(path))


def test_everything_is_done_where_nothing_is_named(plan: Recipe) -> None:
    work = selection.select(plan)
    assert work.scores == ("target", "one", "two", "three")
    assert work.fusions == ("fused", "pair.one", "pair.two", "pair.three")
    assert (work.arms, work.merges) == (plan.arms, plan.merges)
    assert work.models == (*plan.models, "ensemble:all", "ensemble:mixed")


@pytest.mark.parametrize(
    ("only", "scores", "fusions", "arms", "merges", "models"),
    [
        (["pair.two"], "target two", "pair.two", "pair.two", "", "pair.two"),
        (["clm"], "target one two three", "fused", "clm", "", "clm"),
        (["untouched", "source.one"], "", "", "", "", "untouched source:one"),
        (["fusion.pair.one"], "target one", "pair.one", "", "", ""),
        (
            ["merge.some"],
            "target one two",
            "pair.one pair.two",
            "pair.one pair.two",
            "some",
            "merge:some",
        ),
        (
            ["merge.more", "clm"],
            "target one two three",
            "fused pair.one pair.two pair.three",
            "clm pair.one pair.two pair.three",
            "some more",
            "clm merge:more",
        ),
        (["merge.given"], "", "", "", "given", "merge:given"),
        (["ensemble.all"], "", "", "", "", "ensemble:all"),
        (
            ["ensemble.mixed"],
            "target one two three",
            "fused pair.one pair.two",
            "clm pair.one pair.two",
            "some",
            "ensemble:mixed",
        ),
    ],
)
def test_a_name_brings_what_it_needs_and_nothing_else(
    only: list[str],
    scores: str,
    fusions: str,
    arms: str,
    merges: str,
    models: str,
    plan: Recipe,
) -> None:
    work = selection.select(plan, only)
    assert work.scores == tuple(scores.split())
    assert work.fusions == tuple(fusions.split())
    assert [arm.name for arm in work.arms] == arms.split()
    assert [merge.name for merge in work.merges] == merges.split()
    assert work.models == tuple(models.split())


@pytest.mark.parametrize("name", ["pair.tow", "some", "one", "fused"])
def test_a_name_of_nothing_is_refused_with_those_that_there_are(
    name: str, plan: Recipe
) -> None:
    with pytest.raises(ValueError, match=r"--only must name.*merge\.some.*fusion\.f"):
        selection.select(plan, [name])
