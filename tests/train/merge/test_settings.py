from typing import Any

import pytest

from train.merge import methods

EVERY = sorted(methods.METHODS)


def test_what_is_left_out_takes_its_default() -> None:
    assert methods.settle("ties", {}, 2) == {
        "weight": [1.0, 1.0],
        "density": [1.0, 1.0],
        "rescale": "none",
        "normalize": True,
        "lambda": 1.0,
    }


def test_one_number_serves_all_models() -> None:
    assert methods.settle("ties", {"density": 0.2}, 3)["density"] == [0.2, 0.2, 0.2]
    assert methods.settle("ties", {"density": [0, 1]}, 2)["density"] == [0.0, 1.0]


@pytest.mark.parametrize("name", EVERY)
def test_settled_settings_settle_to_themselves(name: str) -> None:
    least = {"slerp": {"t": 1}}.get(name, {})
    if "weight" in methods.METHODS[name].parameters:
        least = {"weight": [1, 2]}
    settled = methods.settle(name, least, 2)
    assert methods.settle(name, settled, 2) == settled


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("tie", {}, "must be one of .*'tie'; did you mean ties"),
        ("ties", {"densty": 1}, "got 'densty'; did you mean density"),
        ("linear", {"int8_mask": True}, "takes weight, normalize, got 'int8_mask'"),
        ("slerp", {}, "slerp needs t: place between"),
        ("task_arithmetic", {}, "task_arithmetic needs weight: factor of each model"),
        ("ties", {"weight": [1, 2, 3]}, "one number a model, 2, got 3; a single"),
        ("ties", {"density": [0.1, 1.5]}, r"model 1, must be in \[0, 1\], got 1.5"),
        ("ties", {"density": -0.1}, r"density of ties must be in \[0, 1\], got -0.1"),
        ("ties", {"weight": float("nan")}, "must be a finite number, got nan"),
        ("ties", {"lambda": float("inf")}, "must be a finite number, got inf"),
        ("ties", {"lambda": [1.0]}, r"lambda of ties must be a number, got \[1.0\]"),
        ("ties", {"lambda": True}, "lambda of ties must be a number, got True"),
        ("ties", {"normalize": 1}, "normalize of ties must be true or false, got 1"),
        ("ties", {"int8_mask": 1}, "int8_mask of ties must be true or false, got 1"),
        ("ties", {"rescale": "l2"}, "must be one of none, l1, got 'l2'"),
        ("ties", {"rescale": "density"}, "must be one of none, l1, got 'density'"),
        ("ties", {"weight": "1.0"}, "weight of ties must be a number, got '1.0'"),
        ("sce", {"variant": "papers"}, "got 'papers'; did you mean paper"),
        ("karcher", {"max_iter": 2.5}, "must be a whole number, got 2.5"),
        ("karcher", {"max_iter": float("inf")}, "must be a finite number, got inf"),
        ("karcher", {"max_iter": float("nan")}, "must be a finite number, got nan"),
        ("ties", {"weight": 10**400}, "weight of ties must be a finite number, got 1"),
        ("varm", {"weights": [0.5]}, "one number a model, 2, got 1"),
        ("linear", {"weight": [1, -1]}, r"must not sum to 0 .* got \[1.0, -1.0\]"),
        ("multislerp", {"weight": [0.3, -0.3]}, "must not sum to 0"),
        (
            "della",
            {"density": 0.1},
            r"must be in \(0, 1\), got 0.1 and 0.15 .* model 0",
        ),
        (
            "della",
            {"density": [0.5, 0.9]},
            r"got 0.9 and 0.15 for model 1; .*below 0.1",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_cure(
    name: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        methods.settle(name, given, 2)


@pytest.mark.parametrize(
    ("name", "models", "message"),
    [
        ("linear", 0, "at least 1 models, the base apart, got 0"),
        ("nuslerp", 3, "at least 2 and at most 2 models, the base apart, got 3"),
        ("slerp", 3, "at least 1 and at most 2 models"),
        ("model_stock", 1, "at least 2 models"),
    ],
)
def test_a_number_of_models_that_a_method_cannot_merge_is_refused(
    name: str, models: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        methods.settle(name, {}, models)


def test_weights_that_sum_to_0_serve_where_they_are_not_divided_by_their_sum() -> None:
    given = {"weight": [1, -1], "normalize": False}
    assert methods.settle("linear", given, 2)["weight"] == [1.0, -1.0]


@pytest.mark.parametrize(("density", "epsilon"), [(0, 0.4), (1, 0.4), (0.5, 0.49)])
def test_nothing_is_drawn_at_0_and_1_so_any_epsilon_serves(
    density: float, epsilon: float
) -> None:
    given = {"density": density, "epsilon": epsilon}
    assert methods.settle("della", given, 1)["epsilon"] == [epsilon]


@pytest.mark.parametrize(("told", "meant"), [(True, "l1"), (False, "none")])
def test_a_truth_value_for_rescale_means_what_it_does_in_mergekit(
    told: bool, meant: str
) -> None:
    assert (
        methods.settle("dare_ties", {"weight": 1, "rescale": told}, 1)["rescale"]
        == meant
    )


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("varm", "weight", "varm takes granularity, got 'weight'"),
        ("sce", "int8_masks", "sce takes select_topk, variant, got 'int8_masks'"),
    ],
)
def test_what_is_told_of_a_slip_names_no_setting_that_is_found_or_has_no_effect(
    name: str, given: str, told: str
) -> None:
    with pytest.raises(ValueError, match=f"^{told}$"):
        methods.settle(name, {given: 1}, 2)


def test_a_mask_of_8_bits_is_taken_and_left_out() -> None:
    with_mask = methods.settle("sce", {"int8_mask": True}, 2)
    assert with_mask == methods.settle("sce", {}, 2)


@pytest.mark.parametrize("name", EVERY)
def test_every_setting_says_what_it_means_and_its_default_is_in_range(
    name: str,
) -> None:
    for parameter in methods.METHODS[name].parameters.values():
        assert parameter.meaning
        assert "\n" not in parameter.meaning
        if parameter.choices:
            assert parameter.default in parameter.choices
        elif isinstance(parameter.default, float):
            assert (parameter.low or 0) <= parameter.default
            assert parameter.high is None or parameter.default <= parameter.high


@pytest.mark.parametrize("name", EVERY)
def test_every_method_cites_its_source(name: str) -> None:
    method = methods.METHODS[name]
    assert method.source
    assert "References:" in (method.merge.__doc__ or "") or name in ("sce", "varm")
