import json

import pytest

from examples import controls, demo, results, strategies, strategy_tables
from examples.information import Figures
from pipelines import recipe
from tests.examples.test_results import arm, names, seeds
from transforms.functional import coverage

FOUR = ("spans", "exact", "mined", "statistics")


@pytest.fixture(scope="module")
def plan():
    return recipe.read(demo.RECIPES["full"])


def every(plan, compared=FOUR):
    return [c for group in strategies.arms(plan, compared, "x/third") for c in group]


def bench(plan):
    return controls.Bench(plan=plan, made=None, output="x", seed=3)


def figures(kept, coverage=0.5):
    """Figures of a source that saves 100 bits, of which so many are kept."""
    return {
        "windows": 1,
        "positions": 20,
        "used": int(20 * coverage),
        "n_bytes": 100,
        "used_bytes": 50,
        "aligned_bits": 90.0,
        "source_bits_there": 80.0,
        "source_bits": 200.0,
        "unigram_bits_there": 90.0 + 100 * kept,
        "unigram_bits": 300.0,
    }


def pair(**kept):
    counts = dict.fromkeys(coverage.CLASSES.values(), 0)
    return {
        "strategies": {name: figures(value) for name, value in kept.items()},
        "classes": {**counts, "whole": 17, "inner": 3},
        "unused": {**counts, "inner": 2},
    }


def test_every_strategy_that_fuse_knows_is_compared():
    assert set(strategies.FUSED) <= set(strategies.STRATEGIES) == set(FOUR)
    assert strategies.FUSED[0] == strategies.STRATEGIES[0] == "spans"


def test_arms_have_names_of_their_own_and_settings_of_their_own(plan):
    made = every(plan)
    assert len(set(names(made))) == len(made)
    asked = [
        json.dumps([c.base, bench(plan).settings(c)], sort_keys=True) for c in made
    ]
    assert len(set(asked)) == len(made)


def test_an_arm_of_a_strategy_changes_that_alone(plan):
    recipes = controls.Control(name="fused", says="as it is", base="fused")
    wanted = bench(plan).settings(recipes)
    for control in every(plan):
        asked = bench(plan).settings(control)
        if control.base == "fused":
            assert asked["train"] == wanted["train"]
            changed = {k for k, v in asked["fuse"].items() if v != wanted["fuse"][k]}
            assert changed <= {"strategy", "fusion", "sources"}


def test_one_two_and_three_sources_teach_beside_the_target_itself(plan):
    made = {c.name: bench(plan).settings(c)["fuse"] for c in every(plan)}
    taught = {name: len(made[name]["sources"]) for name in ("one", "spans", "three")}
    assert taught == {"one": 2, "spans": 3, "three": 4}
    assert strategies.THIRD in made["three"]["sources"]
    assert all("target" in made[name]["sources"] for name in taught)


def test_the_most_telling_arms_of_all_seeds_come_first(plan):
    groups = strategies.arms(plan, FOUR, "x")
    assert names(groups[0]) == ["clm", *FOUR]
    assert strategies.order(plan, "x")[0] == "clm"


def test_families_differ_in_tokenizer_architecture_and_size():
    for quick in (False, True):
        made = strategies.families(quick=quick)
        assert len({one.architecture for one in made}) == len(made) >= 3
        assert len({one.vocabulary for one in made}) == len(made)
        assert all(sum(o.mixture.values()) == pytest.approx(1) for o in made)


def test_what_is_kept_is_told_by_pair_and_in_the_mean():
    pairs = {"a>b": pair(spans=0.9, mined=0.3), "b>a": pair(spans=0.5, mined=0.6)}
    told = strategy_tables.kept_part(pairs)
    assert "| a → b | 90.0% | 30.0% | 50.0% | 50.0% |" in told
    assert "| mean | 70.0% | 45.0% |" in told
    assert "spans keeps more than mined in 1 of 2 pairs." in told
    assert "  - b → a: where mined speaks, its rows give" in told
    assert "  - a → b" not in told


def test_a_source_that_saves_nothing_leaves_its_cell_empty():
    worse = {**figures(0.0), "source_bits": 400.0}
    assert strategy_tables.share(Figures(**worse).kept) == ""


def test_positions_are_told_by_their_reason():
    told = strategy_tables.reasons_part({"a>b": pair(spans=1.0)})
    assert "| a → b | 85.0% |" in told
    assert "No strategy uses 2 of 20 positions: inner 2." in told


@pytest.mark.parametrize("measured", [1, 3, None])
def test_every_table_has_as_many_cells_in_a_row_as_in_its_head(plan, measured):
    made = every(plan)
    arms = {c.name: arm(1 + n / 10, says=c.says) for n, c in enumerate(made)}
    found = {
        "pairs": {"a>b": pair(spans=0.9, exact=0.1), "b>a": pair(spans=0.8, exact=0.2)},
        "seeds": {"0": arms, "1": dict(list(arms.items())[:measured])},
        "runs": [results.about([], "examples.strategies")],
        "order": names(made),
    }
    page = strategy_tables.page(found)
    blocks = [b for b in page.split("\n\n") if b.startswith("|")]
    assert len(blocks) == 4
    for block in blocks:
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1
    assert all(f"`{name}`" in page for name in names(made))


def test_the_page_can_be_written_before_anything_is_trained():
    found = {"pairs": {"a>b": pair(spans=0.9)}, "seeds": {}, "runs": [], "order": []}
    assert "a → b" in strategy_tables.page(found)


def test_orders_are_told_only_of_arms_that_are_there():
    told = strategy_tables.orders_part(
        seeds(spans=(arm(1.0), arm(1.0)), mined=(arm(2.0), arm(0.5)))
    )
    assert told == (
        "- spans is below mined over all in 1 of 2 seeds,"
        " and in every domain in 1 of 2."
    )
