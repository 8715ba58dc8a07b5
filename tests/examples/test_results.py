import json
import math
import re
from pathlib import Path

import pytest

from examples import comparison, controls, demo, fusechat, results, strategies
from pipelines import recipe
from train import evaluate

HELD, DEV = "heldout", "dev"
BEGIN, END = results.markers(results.PART)
BYTES = {"code": 300, "prose": 100}


def domains(code, prose):
    cost = {"code": code, "prose": prose}
    return {
        name: {
            "nats": cost[name] * size * math.log(2),
            "bytes": size,
            "windows": 1,
            "failed": 0,
        }
        for name, size in BYTES.items()
    }


def arm(code, prose=None, dev=None, *, epochs=6.0, tokens=600, says="an arm"):
    prose = code if prose is None else prose
    dev = code if dev is None else dev
    train = {"epochs": epochs, "clm_weight": 0.4, "learning_rate": 2e-3}
    return {
        "says": says,
        "settings": {"train": train},
        "tokens": tokens,
        "seconds": 60.0,
        HELD: domains(code, prose),
        DEV: {"code": domains(dev, dev)["code"]},  # a small split may lack domains
    }


def seeds(**arms):
    """Two seeds; an arm is given as a pair of records, None where a seed lacks it."""
    return {
        seed: {name: pair[place] for name, pair in arms.items() if pair[place]}
        for place, seed in enumerate(("0", "1"))
    }


@pytest.fixture(scope="module")
def plan():
    return recipe.read(demo.RECIPES["full"])


def names(made):
    return [control.name for control in made]


def test_dev_chooses_and_held_out_has_no_say():
    found = seeds(
        **{
            "clm": (arm(2.0, dev=1.0), arm(2.0, dev=3.0)),
            "clm.rate0.001": (arm(1.0, dev=2.0), arm(3.0, dev=2.0)),
        }
    )
    pick = comparison.chosen(found, comparison.candidates(found, "clm"))
    assert pick == {"0": "clm", "1": "clm.rate0.001"}


def test_dev_chooses_only_among_settings_that_every_seed_has():
    found = seeds(**{"clm": (arm(2.0), arm(2.0)), "clm.rate0.001": (arm(1.0), None)})
    assert comparison.candidates(found, "clm") == ["clm"]


def test_a_grid_holds_neither_controls_nor_other_lengths(plan):
    every = [*controls.quick(plan), *controls.rest(plan)]
    found = {"0": {control.name: arm(1.0) for control in every}}
    rates = next(a.rates for a in plan.arms if a.name == "clm_tuned")
    assert len(comparison.candidates(found, "clm")) == len(rates)
    tried = len(controls.WEIGHTS) * len(controls.FUSED_RATES)
    assert len(comparison.candidates(found, "fused")) == tried


def test_wins_are_counted_over_all_and_in_every_domain():
    found = seeds(
        fused=(arm(1.0, 1.0), arm(1.0, 4.0)), clm=(arm(2.0, 2.0), arm(3.0, 3.0))
    )
    fused, clm = (comparison.one(found, name) for name in ("fused", "clm"))
    # Seed 1 loses in prose, but prose is a quarter of the bytes: 1.75 against 3.
    assert comparison.wins(found, fused, clm, ("fused", "clm")) == (
        "fused is below clm over all in 2 of 2 seeds, and in every domain in 1 of 2."
    )
    assert "over all in 0 of 2" in comparison.wins(found, clm, fused, ("clm", "fused"))


def test_a_tie_is_no_win():
    found = seeds(fused=(arm(1.0), None), clm=(arm(1.0), None))
    pick = [comparison.one(found, name) for name in ("fused", "clm")]
    assert "in 0 of 1 seeds" in comparison.wins(found, *pick, ("fused", "clm"))


def test_arms_are_compared_within_a_seed_alone():
    found = seeds(fused=(arm(1.0), None), clm=(None, arm(2.0)))
    pick = [comparison.one(found, name) for name in ("fused", "clm")]
    assert comparison.gaps(found, *pick) == []
    assert "no seed in common" in comparison.wins(found, *pick, ("fused", "clm"))


@pytest.mark.parametrize(
    ("goal", "tokens"),
    [(2.5, 150), (2.0, 200), (1.75, 250), (3.0, 100), (9.0, 100), (0.5, None)],
)
def test_tokens_are_interpolated_in_a_line_between_runs(goal, tokens):
    points = [(300, 1.5), (100, 3.0), (200, 2.0)]
    found = comparison.tokens_to_reach(points, goal)
    assert found is None if tokens is None else found == pytest.approx(tokens)


def test_a_curve_that_rises_again_is_read_where_it_first_comes_down():
    points = [(100, 3.0), (200, 1.0), (300, 2.5), (400, 1.0)]
    assert comparison.tokens_to_reach(points, 2.0) == 150


def test_a_spread_names_its_ends_only_where_there_are_several_values():
    assert comparison.spread([1.5]) == "1.5000"
    assert comparison.spread([1.0, 2.0, 6.0]) == "3.0000 (1.0000 to 6.0000)"


def test_fused_tokens_are_told_against_clm_of_the_same_seed():
    found = seeds(
        **{
            "fused": (arm(1.0), None),
            "fused.epochs3": (arm(2.0, epochs=3.0, tokens=300), None),
            "clm": (arm(1.5), None),
            "clm.epochs3": (arm(1.2, epochs=3.0, tokens=300), None),
        }
    )
    told = comparison.tokens_part(found)
    assert "needs 450 tokens for what clm has at the end" in told
    assert "(1.5000, 600 tokens: 75%)" in told
    assert "needs 540 tokens for clm's best of these lengths (1.2000, 300" in told
    assert "180%" in told


@pytest.mark.parametrize("measured", [0, 1, 3, None])
def test_every_table_has_as_many_cells_in_a_row_as_in_its_head(plan, measured):
    every = [*controls.quick(plan), *controls.rest(plan)]
    arms = {
        c.name: arm(
            1.0 + place / 10,
            epochs=float(c.train.get("epochs", 6)),
            says=c.says,
        )
        for place, c in enumerate(every)
    }
    found = {
        "seeds": {"0": arms, "1": dict(list(arms.items())[:measured])},
        "sources": {"source:a": evaluate.bits_per_byte(domains(1.0, 2.0))},
        "runs": [results.about(["--quick"])],
        "order": names(every),
    }
    page = comparison.page(found)
    blocks = [b for b in page.split("\n\n") if b.startswith("|")]
    assert len(blocks) == 4
    for block in blocks:
        assert len({line.count("|") for line in block.splitlines()}) == 1
    for control in every:
        # A setting of a grid stays out until every seed has it.
        absent = ".epochs" in control.name or (measured and ".rate" in control.name)
        assert absent or f"`{control.name}`" in page


def test_the_page_can_be_written_after_the_first_arm():
    arms = {"untouched": arm(1.0)}
    found = {
        "seeds": {"0": arms},
        "sources": {},
        "runs": [results.about([])],
        "order": ["untouched"],
    }
    assert "untouched" in comparison.page(found)


def test_the_page_does_not_depend_on_the_order_in_which_arms_were_measured(plan):
    order = names(controls.quick(plan))
    arms = {name: arm(1.0 + place / 8) for place, name in enumerate(order)}
    shared = {"sources": {}, "runs": [], "order": order}
    pages = {
        comparison.page({**shared, "seeds": given})
        for given in (
            {"2": arms, "10": arms},
            {"10": dict(sorted(arms.items())), "2": arms},
        )
    }
    assert len(pages) == 1
    assert "Seeds 2, 10;" in pages.pop()


def test_lengths_are_compared_over_the_seeds_that_have_both_arms():
    found = seeds(fused=(arm(1.0), arm(3.0)), clm=(arm(2.0), None))
    assert "| 6 | 600 | 1.0000 | 2.0000 | 1 |" in comparison.tokens_part(found)


def test_quick_arms_of_all_seeds_come_before_the_rest(plan):
    parts = results.choose(plan, quick=False, only=())
    assert names(parts[0]) == names(controls.quick(plan))
    assert results.choose(plan, quick=True, only=()) == parts[:1]


def test_arms_have_names_of_their_own_and_settings_of_their_own(plan):
    every = [*controls.quick(plan), *controls.rest(plan)]
    assert len(set(names(every))) == len(every)
    asked = [
        json.dumps([control.base, bench(plan, "x").settings(control)], sort_keys=True)
        for control in every
    ]
    assert len(set(asked)) == len(every)


def bench(plan, output):
    return controls.Bench(plan=plan, made=None, output=output, seed=3)


def test_a_control_changes_what_it_says_and_the_seed_alone(plan):
    control = next(c for c in controls.quick(plan) if c.name == "kl")
    asked = bench(plan, "x").settings(control)["train"]
    recipes = bench(plan, "x").settings(
        next(c for c in controls.quick(plan) if c.name == "fused")
    )["train"]
    assert {k for k in asked if asked[k] != recipes[k]} == {"fusion_loss"}
    assert asked["seed"] == 3


def test_a_source_alone_is_fused_without_the_target(plan):
    made = {c.name: c for c in controls.quick(plan)}
    for name in plan.sources:
        fusing = bench(plan, "x").settings(made[f"only.{name}"])["fuse"]
        assert fusing["sources"] == [name]
    assert bench(plan, "x").settings(made["self"])["fuse"]["sources"] == ["target"]


def test_only_names_arms_or_is_refused(plan):
    parts = results.choose(plan, quick=False, only=["kl", "clm"])
    assert [names(part) for part in parts] == [["clm", "kl"]]
    with pytest.raises(SystemExit, match=r"got 'klm'; there are untouched, clm"):
        results.choose(plan, quick=False, only=["klm"])


def test_an_arm_that_is_there_is_not_run_again(plan, tmp_path):
    control = controls.quick(plan)[2]
    own = bench(plan, str(tmp_path))
    had = {"settings": own.settings(control)}
    found = {"seeds": {"3": {control.name: had}}}
    results.work(own, control, found, "results.json", "1/1")
    assert found["seeds"]["3"][control.name] is had
    assert not list(tmp_path.iterdir())


def test_an_arm_of_other_settings_is_refused(plan, tmp_path):
    control = controls.quick(plan)[2]
    found = {"seeds": {"3": {control.name: {"settings": {}}}}}
    with pytest.raises(SystemExit, match="fused of seed 3"):
        results.work(bench(plan, str(tmp_path)), control, found, "r.json", "1/1")


def test_the_page_keeps_all_but_what_stands_between_the_markers(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(f"# Head\n\n{BEGIN}\nold\n{END}\n\ntail\n")
    results.write_page(str(path), "new")
    results.write_page(str(path), "newer")
    assert path.read_text() == (f"# Head\n\n{BEGIN}\n\nnewer\n\n{END}\n\ntail\n")


@pytest.mark.parametrize(
    "page", ["none", "{0}", "{1} {0}", "{0} {1} {1}", "{0} {0} {1}", "{1} {0} {1}"]
)
def test_a_page_without_both_markers_once_is_refused_and_kept(tmp_path, page):
    path = tmp_path / "page.md"
    text = page.format(BEGIN, END)
    path.write_text(text)
    with pytest.raises(SystemExit, match="once each"):
        results.write_page(str(path), "new")
    assert path.read_text() == text


def test_a_demo_that_is_not_there_is_named_with_its_command(tmp_path):
    for size, command in (("full", "make run$"), ("tiny", "make run DEMO=tiny$")):
        planned = recipe.read(demo.RECIPES[size], str(tmp_path))
        with pytest.raises(SystemExit, match=command):
            results.read_demo(planned, demo.RECIPES[size])


@pytest.mark.parametrize("part", [results.PART, strategies.PART, fusechat.PART])
def test_the_committed_page_has_both_markers_of_every_part(part):
    page = Path("docs/results.md").read_text()
    assert [page.count(marker) for marker in results.markers(part)] == [1, 1]


def test_every_part_of_the_committed_page_says_something():
    page = Path("docs/results.md").read_text()
    parts = re.findall(r"^<!-- ([\w -]+): begin -->$", page, re.MULTILINE)
    assert {results.PART, strategies.PART, fusechat.PART} <= set(parts)
    for part in parts:
        first, last = results.markers(part)
        told = page.partition(first)[2].partition(last)[0]
        assert re.search(r"\w", told), f"{part} is empty"


def test_a_part_is_written_and_the_other_stays(tmp_path):
    path = tmp_path / "page.md"
    first, last = results.markers("other")
    path.write_text(f"{BEGIN}\nmine\n{END}\n{first}\n{last}\n")
    results.write_page(str(path), "new", "other")
    assert path.read_text() == f"{BEGIN}\nmine\n{END}\n{first}\n\nnew\n\n{last}\n"
