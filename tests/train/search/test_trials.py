import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as drawn

from schemas.errors import SchemaError
from tests.train.search import toys
from train.search import strategies, trials
from train.search.strategies import Listed
from train.search.trials import Found, Strategy, Trial

ROOT = Path(__file__).parents[3]
NUMBERS = drawn.integers(0, 10**6)


@given(NUMBERS, NUMBERS)
def test_the_seed_of_a_trial_is_of_the_search_and_its_number_alone(
    seed: int, number: int
) -> None:
    found = trials.seed_of(seed, number)
    assert found == trials.seed_of(seed, number)
    assert 0 <= found < 2**32
    assert found != trials.seed_of(seed, number + 1)
    assert found != trials.seed_of(seed + 1, number)


@given(NUMBERS, drawn.lists(drawn.integers(0, 50), min_size=1, max_size=8))
def test_what_a_generation_samples_does_not_depend_on_what_was_asked_before(
    seed: int, numbers: list[int]
) -> None:
    strategy = toys.evolution(seed)
    found = {number: strategy.propose(number) for number in numbers}
    for number, x in found.items():
        assert np.array_equal(toys.evolution(seed).propose(number), x)


def best_of(done: list[Trial]) -> Trial:
    best = trials.best(done)
    assert best is not None
    return best


def evolving(budget: int) -> Strategy:
    return toys.evolution()


def on_a_line(budget: int) -> Strategy:
    return strategies.one_for_all(toys.genome(), "lambda", budget)


def drawing(budget: int) -> Strategy:
    return strategies.at_random(toys.genome(), toys.SEED)


@pytest.mark.parametrize("make", [evolving, on_a_line, drawing])
def test_a_resumed_search_is_one_that_was_not_interrupted(
    make: Callable[[int], Strategy], tmp_path: Path
) -> None:
    whole = toys.run(tmp_path / "whole", make(toys.BUDGET))
    for budget in range(1, toys.BUDGET + 1):
        path = tmp_path / "parts"
        parts = trials.run_arm(
            str(path),
            toys.IDENTITY,
            make(toys.BUDGET),
            budget,
            toys.bowl,
            progress=lambda _: None,
        )
    assert parts == whole
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_search_that_is_killed_at_any_instant_ends_with_the_same_bytes(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.search.deadly_toys", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 45  # five or six instants a trial


@pytest.mark.parametrize("budget", [1, 7, 8, 9, 23])
def test_there_are_as_many_evaluations_as_the_budget_says(
    budget: int, tmp_path: Path
) -> None:
    for name, make in {"cma": evolving, "line": on_a_line, "random": drawing}.items():
        counted: list[Trial] = []
        for _ in range(2):
            done = trials.run_arm(
                str(tmp_path / name),
                toys.IDENTITY,
                make(budget),
                budget,
                toys.bowl,
                progress=counted.append,
            )
        assert len(done) == len(counted) == budget
        assert [trial.number for trial in done] == list(range(budget))


def test_a_greater_budget_goes_on_and_a_smaller_one_takes_the_first(
    tmp_path: Path,
) -> None:
    whole = toys.run(tmp_path / "a", budget=30)
    assert toys.run(tmp_path / "b", budget=10) == whole[:10]
    assert toys.run(tmp_path / "b", budget=30) == whole
    assert toys.run(tmp_path / "b", budget=10) == whole[:10]


def test_cma_es_finds_the_optimum_that_random_search_does_not() -> None:
    found = {
        name: best_of(toys.run(f"memory://toys/{name}", make(200), 200))
        for name, make in {"cma": evolving, "random": drawing}.items()
    }
    values = toys.genome().values(found["cma"].x)
    assert np.allclose(values, toys.OPTIMUM, atol=0.05)
    assert 10 * found["cma"].found.rank < found["random"].found.rank


@pytest.mark.parametrize("objective", [math.nan, math.inf, -math.inf])
def test_a_trial_without_a_finite_objective_is_worse_than_all_others(
    objective: float, tmp_path: Path
) -> None:
    def measure(x: np.ndarray) -> Found:
        found = toys.bowl(x)
        return Found(objective=objective, error="x") if x[0] > 0.5 else found

    for _ in range(2):  # measured, and read back
        done = trials.run_arm(
            str(tmp_path / "a"),
            toys.IDENTITY,
            toys.evolution(),
            toys.BUDGET,
            measure,
            progress=lambda _: None,
        )
        dead = [trial for trial in done if trial.found.rank == trials.DEAD]
        assert 0 < len(dead) < len(done)
        assert all((trial in dead) == (trial.x[0] > 0.5) for trial in done)
        assert best_of(done).x[0] <= 0.5
        late, early = (sum(t in dead for t in part) for part in (done[20:], done[:20]))
        assert late < early  # it has learnt where none is


def test_a_search_without_any_objective_says_why() -> None:
    done = [
        Trial(number=n, genes=(0.0,), found=Found(objective=math.nan, error="broken"))
        for n in range(3)
    ]
    assert trials.best(done) is None
    assert not trials.is_flat(done)
    told = "one of 3 trials must have .* of the first: broken;"
    assert re.match(told, str(trials.all_dead(done)))


def test_where_all_are_equal_the_first_is_taken_and_the_search_goes_on(
    tmp_path: Path,
) -> None:
    done = trials.run_arm(
        str(tmp_path / "a"),
        toys.IDENTITY,
        toys.evolution(),
        toys.BUDGET,
        lambda _: Found(objective=1.0),
        progress=lambda _: None,
    )
    assert len({trial.genes for trial in done}) == toys.BUDGET
    assert best_of(done).number == 0
    assert trials.is_flat(done)
    assert not trials.is_flat(toys.run(tmp_path / "b"))


def test_a_state_is_plain_numbers(tmp_path: Path) -> None:
    toys.run(tmp_path / "a")
    told = json.loads((tmp_path / "a").read_text())
    state = told["strategy"]
    assert sorted(state) == [
        *("covariance", "generation", "mean", "path_covariance", "path_sigma", "sigma"),
    ]
    assert state["generation"] == toys.BUDGET // toys.evolution().population
    assert np.array(state["covariance"]).shape == (toys.GENES, toys.GENES)
    assert len(told["trials"]) == toys.BUDGET


def test_trials_of_another_search_are_refused(tmp_path: Path) -> None:
    toys.run(tmp_path / "a", budget=2)
    for identity in ({**toys.IDENTITY, "of": "b"}, {**toys.IDENTITY, "more": 1}):
        with pytest.raises(SchemaError, match=r"was made with (of|more) = "):
            trials.run_arm(
                str(tmp_path / "a"),
                identity,
                Listed(genes=lambda _: np.zeros(1)),
                3,
                toys.bowl,
                progress=lambda _: None,
            )
    (tmp_path / "a").write_text("[]")
    with pytest.raises(SchemaError, match="must be of a search, of schema version 1"):
        toys.run(tmp_path / "a")


def test_a_state_of_another_genome_is_refused(tmp_path: Path) -> None:
    state = toys.evolution().state()
    other = strategies.Evolution(np.zeros(2), 0.2, 0)
    with pytest.raises(SchemaError, match="must be of 2 genes"):
        other.restore(state)
