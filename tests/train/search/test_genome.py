import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as drawn

from train.merge import layers, rules
from train.search import genome, strategies
from train.search.genome import MODULES, Gene, Genome

KEYS = [
    "model.embed_tokens.weight",
    *(
        f"model.layers.{n}.{name}.weight"
        for n in range(7)
        for name in ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")
    ),
    "model.norm.weight",
]
RANGES = {"weight": (0.0, 1.0), "density": (0.1, 1.0), "lambda": (0.0, 2.0)}
STARTS = {"weight": 0.5, "density": 1.0, "lambda": 1.0}
MODELS = ("a", "b")

finite = drawn.floats(-1e6, 1e6)
shares = drawn.floats(0, 1)


def gene(low: float, high: float) -> Gene:
    return Gene(cell="all", setting="weight", model=None, low=low, high=high, start=low)


def made(groups: int = 3, *, normalized: bool = False) -> Genome:
    cells = genome.cells_of(layers.layers_of(KEYS), groups, MODULES)
    genes = genome.genes_of(cells, MODELS, RANGES, STARTS, normalized=normalized)
    return Genome(models=MODELS, cells=cells, genes=genes)


@given(finite, drawn.floats(-10, 10), drawn.floats(0.01, 10))
def test_a_gene_never_leaves_its_range(x: float, low: float, width: float) -> None:
    one = gene(low, low + width)
    assert low <= one.value(x) <= low + width


@given(shares)
def test_a_number_in_the_unit_interval_is_its_own_place(x: float) -> None:
    one = gene(-1.0, 3.0)
    assert one.value(x) == pytest.approx(-1 + 4 * x, abs=1e-12)
    assert one.place(one.value(x)) == pytest.approx(x, abs=1e-12)
    assert one.value(-x) == one.value(x)
    assert one.value(2 - x) == pytest.approx(one.value(x), abs=1e-12)


@given(drawn.floats(-9, 9), drawn.floats(0, 1e-3))
def test_a_small_step_is_a_small_change(x: float, step: float) -> None:
    assert abs(gene(0.0, 1.0).value(x + step) - gene(0.0, 1.0).value(x)) <= step + 1e-12


def test_both_ends_are_reached() -> None:
    assert (gene(0.1, 0.7).value(0.0), gene(0.1, 0.7).value(1.0)) == (0.1, 0.7)


@pytest.mark.parametrize("groups", range(1, 8))
def test_groups_part_the_layers_evenly_and_leave_none_out(groups: int) -> None:
    cells = genome.cells_of(layers.layers_of(KEYS), groups, MODULES)
    found = list(dict.fromkeys(cell.layers for cell in cells if cell.layers))
    assert len(found) == groups
    numbers = [n for first, last in found for n in range(first, last + 1)]
    assert numbers == list(range(7))
    sizes = {last - first + 1 for first, last in found}
    assert max(sizes) - min(sizes) <= 1


def test_every_tensor_is_of_one_cell() -> None:
    known = layers.layers_of(KEYS)
    cells = made().cells
    tables = [
        {"pattern": pattern, "layers": list(cell.layers)}
        for cell in cells
        if cell.layers
        for pattern in cell.patterns
    ]
    settled = rules.read_rules(
        "linear", {}, tables, MODELS, use_base=True, has_base=False
    )
    assert not rules.idle(settled, known)
    names = [c.name for c in cells if c.layers for _ in c.patterns] + ["outside"]
    found = {
        key: names[settled.index(rules.rule_for(settled, key, layer))]
        for key, layer in known.items()
    }
    assert found["model.layers.6.mlp.up_proj.weight"] == "layers 5-6 mlp"
    assert found["model.layers.0.input_layernorm.weight"] == "layers 0-2 rest"
    assert found["model.layers.3.self_attn.q_proj.weight"] == "layers 3-4 attention"
    assert found["model.norm.weight"] == "outside"
    assert set(found.values()) == {cell.name for cell in cells}


@pytest.mark.parametrize("groups", [0, 8])
def test_more_groups_than_layers_are_refused(groups: int) -> None:
    with pytest.raises(ValueError, match=r"groups must be in \[1, 7\]"):
        genome.cells_of(layers.layers_of(KEYS), groups, MODULES)


def test_models_without_layers_are_one_cell() -> None:
    cells = genome.cells_of(layers.layers_of(["a.weight"]), 1, MODULES)
    assert [cell.name for cell in cells] == ["outside"]


@pytest.mark.parametrize(("normalized", "lambdas"), [(False, 1), (True, 10)])
def test_lambda_is_of_a_cell_where_weights_say_nothing_of_scale(
    normalized: bool, lambdas: int
) -> None:
    found = made(normalized=normalized)
    assert len(found.cells) == 3 * 3 + 1
    assert sum(one.setting == "lambda" for one in found.genes) == lambdas
    assert len(found.genes) == 10 * 2 * 2 + lambdas


def test_the_start_weighs_all_models_the_same() -> None:
    found = made(normalized=True)
    every = found.settings(found.start)
    assert every.pop("all") == {}
    assert len(every) == 10
    for own in every.values():
        assert own == {
            "weight": {"models": {"a": 0.5, "b": 0.5}},
            "density": {"models": {"a": 1.0, "b": 1.0}},
            "lambda": 1.0,
        }


def test_genes_of_one_cell_leave_others_alone() -> None:
    found = made()
    x = found.start
    x[0] = 0.25
    before, after = found.settings(found.start), found.settings(x)
    changed = [name for name in before if before[name] != after[name]]
    assert changed == ["layers 0-2 attention"]
    assert after[changed[0]]["weight"] == {"models": {"a": 0.25, "b": 0.5}}


def values_of(found: Genome, setting: str, budget: int) -> list[tuple[float, float]]:
    """Returns the weight and the lambda of each trial of one value everywhere."""
    line = strategies.one_for_all(found, setting, budget)
    values = []
    for number in range(budget):
        x = line.propose(number)
        assert 0 <= x.min() <= x.max() <= 1
        told: dict[str, set[float]] = {}
        for gene, value in zip(found.genes, found.values(x), strict=True):
            told.setdefault(gene.setting, set()).add(value)
        assert told["density"] == {1.0}
        assert len(told["weight"]) == len(told["lambda"]) == 1
        values.append((*told["weight"], *told["lambda"]))
    return values


def test_one_weight_for_all_reaches_what_weight_and_lambda_reach_together() -> None:
    assert values_of(made(), "weight", 5) == [
        *((0.0, 1.0), (0.5, 1.0), (1.0, 1.0)),
        *((1.0, 1.5), (1.0, 2.0)),
    ]


def test_one_lambda_for_all_goes_from_end_to_end_of_its_range() -> None:
    found = made(normalized=True)
    assert values_of(found, "lambda", 3) == [(0.5, 0.0), (0.5, 1.0), (0.5, 2.0)]


@pytest.mark.parametrize("setting", ["weight", "lambda"])
def test_one_value_for_all_that_is_tried_once_is_the_start(setting: str) -> None:
    found = made(normalized=setting == "lambda")
    assert values_of(found, setting, 1) == [(0.5, 1.0)]


ranges = drawn.tuples(drawn.floats(-4, 4), drawn.floats(0.1, 4)).map(
    lambda ends: (ends[0], ends[0] + ends[1])
)


@given(ranges, ranges, drawn.integers(2, 9))
def test_one_value_for_all_is_evenly_spread_from_corner_to_corner_of_any_ranges(
    weights: genome.Range, lambdas: genome.Range, budget: int
) -> None:
    cells = genome.cells_of(layers.layers_of(["a.weight"]), 1, MODULES)
    wide = {**RANGES, "weight": weights, "lambda": lambdas}
    genes = genome.genes_of(cells, MODELS, wide, STARTS, normalized=False)
    found = Genome(models=MODELS, cells=cells, genes=genes)
    corners = [w * s for w in weights for s in lambdas]
    products = [w * s for w, s in values_of(found, "weight", budget)]
    expected = np.linspace(min(corners), max(corners), budget)
    assert np.allclose(products, expected, rtol=1e-7, atol=1e-9)


def test_random_search_draws_all_of_every_range() -> None:
    found = made()
    drawing = strategies.at_random(found, 0)
    all_of = np.array([found.values(drawing.propose(n)) for n in range(200)])
    for column, one in zip(all_of.T, found.genes, strict=True):
        width = one.high - one.low
        assert one.low <= column.min() < one.low + 0.05 * width
        assert one.high - 0.05 * width < column.max() <= one.high
        assert column.mean() == pytest.approx((one.low + one.high) / 2, abs=0.1 * width)
    for left, right in itertools.pairwise(all_of):
        assert not np.array_equal(left, right)
