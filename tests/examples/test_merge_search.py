from pathlib import Path
from typing import Any

import pytest

from examples import merge_search, merge_search_page, results
from examples.corpus import DOMAINS
from pipelines import searching
from train.search.trials import Found, Trial

ROOT = Path(__file__).parents[2]


def figures(objective: float) -> dict[str, Any]:
    return {"objective": objective, "bits": {"code": objective}, "accuracy": {}}


def result(seed: int) -> dict[str, Any]:
    """Makes a result up: CMA-ES ends below random search, and above the line."""
    ends = {"uniform": 3.0, "global": 2.0, "random": 2.6, "cma": 2.4 + 0.2 * seed}
    names = ("random", "cma") if seed else ends
    arms = {
        name: {
            "evaluations": 4,
            "dead": 0,
            "flat": False,
            "best": {
                "trial": 2,
                "search": figures(ends[name]),
                "report": figures(ends[name] + 1),
            },
        }
        for name in names
    }
    row = {"search": figures(4.0), "report": figures(5.0)}
    return {"models": {"base": row}, "arms": arms, "chosen": "cma"}


def found() -> dict[str, Any]:
    run = {"command": "c", "cpu": "p", "cores": 2, "versions": {"torch": "1"}}
    searches = {"ties": {str(seed): result(seed) for seed in (0, 1)}}
    return {"searches": searches, "budget": 4, "run": run}


def test_the_page_tells_means_and_spreads_over_seeds() -> None:
    page = merge_search_page.page(found())
    assert "| CMA-ES | 3.5000 (3.4000 to 3.6000) |" in page
    assert "| one global value | 3.0000 |" in page
    assert "| base | 5.0000 |" in page


def test_the_page_tells_where_cma_es_is_not_below() -> None:
    page = merge_search_page.page(found())
    assert "On the report split CMA-ES is below one global value with 0 of 1" in page
    assert "On the report split CMA-ES is below random search with 1 of 1" in page


def test_the_plot_has_a_panel_for_each_method() -> None:
    done = [
        Trial(number=n, genes=(0.0,), found=Found(objective=3.0 - n)) for n in range(2)
    ]
    drawn = merge_search_page.plot({m: {"cma": done} for m in searching.METHODS})
    assert all(f"{method}: least J" in drawn for method in searching.METHODS)


@pytest.mark.parametrize("size", ["full", "tiny"])
def test_recipes_say_what_is_searched(size: Any, tmp_path: Path) -> None:
    for method in searching.METHODS:
        for seed, first in ((4, True), (1, False)):
            path = merge_search.write_recipe(
                str(tmp_path), method, seed, size, first=first
            )
            given = searching.read_recipe(path, {})
            assert given.merge.names == list(DOMAINS)
            assert given.config.seed == seed
            assert len(given.config.baselines) == (3 if first else 1)


def test_an_expert_is_of_one_domain_and_the_shape_of_its_base() -> None:
    base = merge_search.BASE["full"]
    made = merge_search.expert(base, "prose")
    assert made.mixture == {"prose": 1.0}
    assert (made.width, made.layers) == (base.width, base.layers)


def test_the_page_of_results_has_a_place_for_searches() -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    assert all(page.count(marker) == 1 for marker in results.markers("search"))
    assert (ROOT / merge_search.PLOT).exists()
