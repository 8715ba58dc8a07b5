from typing import Any

import pytest

from train.merge import layers, rules
from train.merge.layers import Layer
from train.merge.rules import Rule

NAMES = ("chat", "code")


def read(
    tables: Any = (), settings: Any = None, method: str = "linear", base: bool = False
) -> tuple[Rule, ...]:
    return rules.read_rules(
        method, settings or {}, tables, NAMES, use_base=True, has_base=base
    )


def settled(settings: Any, key: str = "h.0.w", count: int = 3) -> dict[str, Any]:
    keys = [key, *(f"h.{i}.w" for i in range(count))]
    settings = {**settings, "normalize": False}
    return rules.settle(
        read(settings=settings)[-1], NAMES, layers.layers_of(keys)[key], key
    )


def test_the_first_rule_that_fits_is_taken() -> None:
    found = read([{"pattern": "*.mlp.*"}, {"pattern": "*"}], method="linear")
    assert rules.rule_for(found, "h.0.mlp.up", None) is found[0]
    assert rules.rule_for(found, "h.0.norm", None) is found[1]
    assert rules.idle(found, {"h.0.norm": None}) == [found[0]]


def test_patterns_are_of_whole_keys_and_tell_cases_apart() -> None:
    rule = read([{"pattern": "h.[01].w?"}])[0]
    assert rule.fits("h.1.wq", None)
    assert not any(
        rule.fits(key, None) for key in ("h.1.w", "xh.1.wq", "h.2.wq", "H.1.wq")
    )


def test_a_rule_without_a_method_goes_on_with_the_settings_for_all() -> None:
    given = {"weight": 0.3, "normalize": False}
    same, other, last = read(
        [
            {"pattern": "a*", "settings": {"weight": 0.7}},
            {"pattern": "b*", "method": "karcher"},
        ],
        given,
    )
    assert (same.method, same.settings) == ("linear", {**given, "weight": 0.7})
    assert (other.method, other.settings) == ("karcher", {})
    assert last.settings == given


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (0.3, [0.3, 0.3]),
        ({"models": [0.3, 0.7]}, [0.3, 0.7]),
        ({"models": {"code": 0.7, "chat": 0.3}}, [0.3, 0.7]),
        ({"depth": [1, 2]}, [1.25, 1.25]),
        ({"depth": [0, 1, 4]}, [0.5, 0.5]),
        ({"models": [{"depth": [0, 1]}, {"depth": [5, 1]}]}, [0.25, 4.0]),
        ({"depth": [0, 1], "outside": 9}, [0.25, 0.25]),
    ],
)
def test_a_value_is_of_models_or_of_depth_as_it_says(value: Any, wanted: Any) -> None:
    assert settled({"weight": value}, "h.1.w", count=5)["weight"] == wanted


def test_depth_runs_from_the_first_layer_to_the_last() -> None:
    found = [
        settled({"weight": {"depth": [2, 0, 8]}}, f"h.{i}.w", 5)["weight"][0]
        for i in range(5)
    ]
    assert found == [2, 1, 0, 4, 8]


def test_a_single_layer_is_the_first() -> None:
    assert settled({"weight": {"depth": [2, 8]}}, "h.0.w", 1)["weight"] == [2, 2]


def test_a_tensor_of_no_layer_has_the_value_outside_or_is_refused() -> None:
    value = {"depth": [0, 1], "outside": 0.4}
    assert settled({"weight": value}, "norm.w")["weight"] == [0.4, 0.4]
    with pytest.raises(ValueError, match=r"norm\.w: it is of no layer, so depth"):
        settled({"weight": {"depth": [1, 2]}}, "norm.w")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([0.3, 0.7], r"a list could be of the models or of the layers, got \[0\.3, 0"),
        ({"models": [0.3]}, r"a list or table of 2 values, for chat, code"),
        ({"models": {"chat": 1, "kode": 2}}, r"must name each of chat, code, got chat"),
        ({"models": [[0, 1], 1]}, r"the value of one model must be a single one or"),
        ({"depth": [1]}, r"two numbers or more, got \[1\]"),
        ({"depth": [1, "x"]}, r"two numbers or more"),
        ({"depth": [0, 1], "models": [1, 2]}, r"beside 'models' nothing may stand"),
        ({"depth": [0, 1], "outside": [1, 2]}, r"outside must be a number, got \[1, 2"),
        ({"depth": [0, 1], "outside": True}, r"outside must be a number, got True"),
        ({"depth": [0, 1], "outside": {"models": [1, 2]}}, r"outside must be a number"),
        ({"layers": [0, 1]}, r"must be a value, \{ depth"),
        ("much", r"must be a number, got 'much'"),
    ],
)
def test_a_value_that_could_be_read_otherwise_is_refused(value: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read(settings={"weight": value})


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"method": "linear"}, r"rule 1 .* must hold 'pattern'"),
        ({"pattern": "*", "methd": "linear"}, r"got 'methd'; did you mean method"),
        ({"pattern": "*", "weight": 1}, r"written as settings\.weight = "),
        ({"pattern": "*", "take": "chad"}, r"got 'chad'; did you mean chat"),
        ({"pattern": "*", "take": "chat", "method": "linear"}, r"nothing may stand"),
        ({"pattern": "*", "method": "ties"}, r"ties merges differences from a base"),
        ({"pattern": "*", "use_base": 1}, r"use_base must be true or false"),
        ({"pattern": "*", "settings": 1}, r"settings must be a table"),
        (["*"], r"rule 1 .* must be a table"),
    ],
)
def test_a_wrong_rule_is_refused_by_number_and_pattern(table: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read([table])


@pytest.mark.parametrize(
    ("names", "use_base", "advised"), [(["one", "two"], True, 1), (["one"], False, 0)]
)
def test_keeping_the_base_out_is_advised_only_where_it_is_in_the_way(
    names: list[str], use_base: bool, advised: int
) -> None:
    with pytest.raises(ValueError, match="slerp must have two models") as caught:
        rules.read_rules("slerp", {"t": 1}, [], names, use_base=use_base, has_base=True)
    assert str(caught.value).count("use_base = false") == advised


def test_a_slip_in_settings_is_not_laid_to_the_base() -> None:
    with pytest.raises(ValueError, match=r"got 'tt'; did you mean t\?$"):
        read(method="slerp", settings={"tt": 0.5}, base=True)


def test_a_method_that_can_do_without_a_base_is_kept_from_it_on_demand() -> None:
    free, bound = read(
        [{"pattern": "a*", "method": "nuslerp", "use_base": False}],
        method="ties",
        base=True,
    )
    assert not free.takes_base(True)
    assert bound.takes_base(True)


def test_layers_are_told_by_the_first_number_of_a_key() -> None:
    found = layers.layers_of(
        ["model.layers.0.w", "model.layers.11.experts.3.w", "vision.0.w", "norm"]
    )
    assert found["model.layers.11.experts.3.w"] == Layer(
        stack="model.layers", index=11, count=12
    )
    assert found["vision.0.w"] == Layer(stack="vision", index=0, count=1)
    assert found["norm"] is None


def test_a_rule_of_layers_is_for_these_and_no_others() -> None:
    rule = read([{"pattern": "*.w", "layers": [1, 2]}])[0]
    found = layers.layers_of(["h.0.w", "h.1.w", "h.2.w", "h.3.w", "h.1.b", "end.w"])
    fitting = [key for key, layer in found.items() if rule.fits(key, layer)]
    assert fitting == ["h.1.w", "h.2.w"]


@pytest.mark.parametrize("given", [[1], [2, 1], [-1, 0], [0, True], 1, [0.0, 1.0]])
def test_layers_that_are_no_range_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="layers must be the first and the last layer"):
        read([{"pattern": "*", "layers": given}])


def test_one_model_may_be_taken_of_some_layers() -> None:
    (rule, _) = read([{"pattern": "*", "layers": [0, 0], "take": "chat"}])
    assert (rule.take, rule.layers) == ("chat", (0, 0))
