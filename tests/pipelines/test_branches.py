from pathlib import Path

import pytest

from tests.recipes import read

PAIRWISE = """
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
[fuse]
top_k = 7
[pairs]
seq_length = 99
[arms.clm]
clm_weight = 1.0
[merges.linear]
method = "linear"
[merges.ties]
method = "ties"
"""


def test_pairs_are_a_fusion_and_an_arm_for_each_source(tmp_path: Path) -> None:
    plan = read(tmp_path, PAIRWISE)
    assert list(plan.fusions) == ["fused", "pair.one", "pair.two"]
    assert [arm.name for arm in plan.arms] == ["clm", "pair.one", "pair.two"]
    pair = plan.fuse_of("pair.two")
    assert pair.sources == ("two=runs/x/scores/two",)
    assert pair.output == "runs/x/fusions/pair.two"
    assert (pair.top_k, pair.seq_length) == (7, 99)
    assert (pair.granularity, pair.include_target) == ("document", True)
    assert plan.train(plan.arms[2]).folders == (pair.output,)
    assert plan.fuse.output == "runs/x/fused"
    assert plan.train(plan.arms[0]).folders == ("runs/x/fused",)
    assert (plan.fuse.granularity, plan.fuse.seq_length) == ("document", 2048)


@pytest.mark.parametrize(
    ("table", "line", "granularity"),
    [
        ("fuse", 'granularity = "position"', "position"),
        ("pairs", 'granularity = "window"', "window"),
        ("pairs", "reference = true", "window"),
        ("pairs", 'fusion = "avgce"', "document"),
    ],
)
def test_what_is_told_of_pairs_goes_over_their_default(
    table: str, line: str, granularity: str, tmp_path: Path
) -> None:
    text = PAIRWISE.replace(f"[{table}]", f"[{table}]\n{line}")
    assert read(tmp_path, text).fuse_of("pair.one").granularity == granularity


@pytest.mark.parametrize(
    ("line", "granularity"),
    [
        ("", "document"),
        ('granularity = "position"', "position"),
        ("reference = true", "window"),
        ('fusion = "static"\nweights = ["one=1", "two=1", "target=1"]', "window"),
    ],
)
def test_many_to_one_beside_pairs_chooses_by_what_they_choose_unless_told(
    line: str, granularity: str, tmp_path: Path
) -> None:
    own = f"[fusions.many]\n{line}\n[arms.many]\n[pairs]"
    plan = read(tmp_path, PAIRWISE.replace("[pairs]", own))
    assert plan.fuse_of("many").granularity == granularity
    pair = plan.fuse_of("pair.one").granularity
    assert pair == plan.fuse.granularity == "document"


def test_a_pair_may_have_settings_of_its_own(tmp_path: Path) -> None:
    more = """
[fusions."pair.one"]
top_k = 3
[arms."pair.one"]
learning_rate = [1e-3, 1e-4]
"""
    text = PAIRWISE.replace('heldout=.5"', 'dev=.1,heldout=.4"') + more
    plan = read(tmp_path, text)
    assert [plan.fuse_of(f"pair.{n}").top_k for n in ("one", "two")] == [3, 7]
    assert plan.fuse_of("pair.one").granularity == "document"
    assert [arm.name for arm in plan.arms] == ["clm", "pair.one", "pair.two"]
    assert plan.arms[1].rates == (1e-3, 1e-4)


def test_pairs_may_be_of_some_sources(tmp_path: Path) -> None:
    plan = read(tmp_path, PAIRWISE.replace("[pairs]", '[pairs]\nsources = ["two"]'))
    assert [arm.name for arm in plan.arms] == ["clm", "pair.two"]
    assert plan.fuse.sources == ("one=runs/x/scores/one", "two=runs/x/scores/two")


def test_a_fusion_that_nobody_asks_for_is_none(tmp_path: Path) -> None:
    text = PAIRWISE.replace("[arms.clm]\nclm_weight = 1.0\n", "")
    plan = read(tmp_path, text)
    assert list(plan.fusions) == ["pair.one", "pair.two"]
    assert [arm.name for arm in plan.arms] == ["pair.one", "pair.two"]


def test_a_named_fusion_is_of_some_sources_and_arms_name_it(tmp_path: Path) -> None:
    more = """
[fusions.half]
sources = ["two"]
temperature = 2.0
fusion = "avgce"
[arms.other]
fusion = "half"
"""
    plan = read(tmp_path, PAIRWISE + more)
    half = plan.fuse_of("half")
    assert half.sources == ("two=runs/x/scores/two",)
    assert (half.temperature, half.top_k, half.granularity) == (2.0, 7, "document")
    assert half.output == "runs/x/fusions/half"
    assert plan.train(plan.arms[1]).folders == (half.output,)


def test_an_arm_may_be_trained_on_several_fusions_by_weight(tmp_path: Path) -> None:
    more = """
[fusions.half]
sources = ["two"]
[arms.both]
fusion = ["fused", "half"]
data_weights = [0.7, 0.3]
"""
    plan = read(tmp_path, PAIRWISE + more)
    arm = next(arm for arm in plan.arms if arm.name == "both")
    config = plan.train(arm)
    assert config.folders == ("runs/x/fused", "runs/x/fusions/half")
    assert config.data_weights == (0.7, 0.3)
    for fusion in ("[]", '["fused", "haf"]', "[1]"):
        given = more.replace('["fused", "half"]', fusion)
        with pytest.raises(ValueError, match=r"\[arms\.both\]: fusion must be one of"):
            read(tmp_path, PAIRWISE + given)


def test_without_arms_every_named_fusion_has_one(tmp_path: Path) -> None:
    text = PAIRWISE.partition("[pairs]")[0]
    plan = read(tmp_path, text + '[fusions.half]\nsources = ["two"]\n[fusions.all]\n')
    assert [(arm.name, *arm.fusions) for arm in plan.arms] == [
        ("half", "half"),
        ("all", "all"),
    ]
    assert list(plan.fusions) == ["half", "all"]
    assert plan.fuse_of("all").granularity == "window"


def test_merges_are_of_the_pairs_with_the_target_as_base(tmp_path: Path) -> None:
    plan = read(tmp_path, PAIRWISE)
    assert [merge.models for merge in plan.merges] == [("pair.one", "pair.two")] * 2
    made = plan.merge(plan.merges[1]).config
    assert made.places == {
        "pair.one": "runs/x/models/pair.one",
        "pair.two": "runs/x/models/pair.two",
        "base": "t",
    }
    assert made.output == "runs/x/merges/ties"
    assert plan.models["merge:ties"] == made.output
    assert list(plan.models) == [
        *("untouched", "clm", "pair.one", "pair.two", "merge:linear", "merge:ties"),
        *("source:one", "source:two"),
    ]


def test_the_table_merge_alone_is_one_merge(tmp_path: Path) -> None:
    text = PAIRWISE.partition("[merges.linear]")[0] + '[merge]\nmethod = "ties"\n'
    plan = read(tmp_path, text)
    (made,) = plan.merges
    assert plan.merge(made).config.method == "ties"
    assert plan.models["merge:merged"] == "runs/x/merged"
    shared = read(tmp_path, text + "[merges.a]\n[merges.b]\nseed = 3\n")
    found = [shared.merge(merge).config for merge in shared.merges]
    assert [(one.method, one.seed) for one in found] == [("ties", 0), ("ties", 3)]
    assert found[0].output == "runs/x/merges/a"


def test_a_merge_of_another_method_begins_with_its_own_defaults(
    tmp_path: Path,
) -> None:
    shared = """
[merge]
method = "ties"
settings = {weight = 0.7, density = 0.6}
[[merge.rules]]
pattern = "*.mlp.*"
settings.density = 0.2
[[merge.rules]]
pattern = "*norm*"
method = "slerp"
settings.t = 0.3
use_base = false
[merges.as_shared]
[merges.same]
method = "ties"
[merges.mean]
method = "linear"
[merges.own]
method = "linear"
settings = {weight = 0.1}
"""
    plan = read(tmp_path, PAIRWISE.partition("[merges.linear]")[0] + shared)
    found = {merge.name: plan.merge(merge).rules for merge in plan.merges}
    told = {
        name: [(rule.method, dict(rule.settings)) for rule in rules]
        for name, rules in found.items()
    }
    norms = ("slerp", {"t": 0.3})
    ties = {"weight": 0.7, "density": 0.6}
    everywhere = [("ties", {**ties, "density": 0.2}), norms, ("ties", ties)]
    assert told == {
        "as_shared": everywhere,
        "same": everywhere,
        "mean": [("linear", {}), norms, ("linear", {})],
        "own": [("linear", {"weight": 0.1}), norms, ("linear", {"weight": 0.1})],
    }


def test_shared_settings_beside_no_method_are_of_every_merge(tmp_path: Path) -> None:
    shared = "[merge]\nsettings = {weight = 0.3}\n[merges.linear]"
    plan = read(tmp_path, PAIRWISE.replace("[merges.linear]", shared))
    found = [plan.merge(merge).settings for merge in plan.merges]
    assert found == [{"weight": 0.3}] * 2


def test_a_merge_may_be_of_sources(tmp_path: Path) -> None:
    more = 'models = ["source.one", "clm", "source.two"]'
    plan = read(tmp_path, PAIRWISE.replace("[merges.ties]", f"[merges.ties]\n{more}"))
    made = plan.merge(plan.merges[-1]).config
    assert made.places == {
        "source.one": "m",
        "clm": "runs/x/models/clm",
        "source.two": "n",
        "base": "t",
    }


def test_an_ensemble_is_of_all_sources_unless_told(tmp_path: Path) -> None:
    more = '[ensembles.a]\n[ensembles.b]\nmodels = ["clm", "merge.ties"]\n'
    plan = read(tmp_path, PAIRWISE + more + "weights = [3, 1]\n")
    rows = plan.evaluations("heldout")
    assert list(rows) == [*plan.models, "ensemble:a", "ensemble:b"]
    first, second = rows["ensemble:a"], rows["ensemble:b"]
    assert (first.name, first.model, first.ensemble) == ("ensemble.a", "m", ("n",))
    assert first.ensemble_weights == ()
    assert second.model == "runs/x/models/clm"
    assert second.ensemble == ("runs/x/merges/ties",)
    assert second.ensemble_weights == (3.0, 1.0)
    assert not rows["untouched"].ensemble


def test_benchmarks_are_asked_of_no_ensemble(tmp_path: Path) -> None:
    more = '[ensembles.a]\n[evaluate]\ntasks = ["arc"]\n'
    rows = read(tmp_path, PAIRWISE + more).evaluations("heldout")
    assert rows["clm"].tasks == ("arc",)
    assert rows["ensemble:a"].tasks == ()


def test_a_merge_stands_behind_those_that_it_takes(tmp_path: Path) -> None:
    more = 'models = ["merge.ties", "clm"]'
    plan = read(tmp_path, PAIRWISE.replace('"linear"', f'"linear"\n{more}'))
    assert [merge.name for merge in plan.merges] == ["ties", "linear"]


def tables(*lines: str) -> str:
    return PAIRWISE + "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            PAIRWISE.replace("[pairs]", '[pairs]\nsources = ["tow"]'),
            r"\[pairs\].sources must name sources, which are one, two.*'tow'; did you",
        ),
        (
            PAIRWISE.replace("[pairs]", '[pairs]\nsources = ["one", "one"]'),
            "each once, got 'one'",
        ),
        (PAIRWISE.replace("[pairs]", "[pairs]\nsources = []"), "a list of names"),
        (
            PAIRWISE.replace("[pairs]", "[pairs]\nseq_len = 9"),
            r"\[fuse\] and \[pairs\]",
        ),
        (tables('[fusions."pair.tow"]'), r"begins with 'pair\.' must be one of"),
        (tables('[arms."pair.tow"]'), r"did you mean pair\.two"),
        (tables('[arms."pair.one"]', 'fusion = "fused"'), "fusion must be left out"),
        (tables('[fusions."pair.one"]', 'sources = ["two"]'), "sources must be left"),
        (tables("[fusions.fused]"), "no fusion may be called 'fused'"),
        (tables("[merges.merged]"), "no merge may be called 'merged'"),
        (tables("[merges.a]", "show = true"), r"\[merges\.a\] must not hold 'show'"),
        (
            tables("[fusions.a]", 'output = "b"'),
            r"\[fusions\.a\] must not hold 'output'",
        ),
        (
            tables("[fusions.a]", "top_k = 0"),
            r"\[fuse\] and \[fusions\.a\]: top_k must",
        ),
        (tables("[arms.a]", 'fusion = "pair.tow"'), r"got 'pair\.tow'; did you mean"),
        (
            tables("[arms.a]", 'fusion = ["fused", "pair.one", "fused"]'),
            r"\[arms\.a\]: fusion must name each once, got 'fused' twice",
        ),
        (tables("[arms.pair.one]"), r'stands in quotes: \[arms\."pair\.one"\]'),
        (tables('[arms."merge.a"]'), "no arm may be called"),
        (tables('[arms."fusion.a"]'), "no arm may be called"),
        (tables('[merges."a/b"]'), r"letters, digits, and _\.-"),
        (tables("[merges.a]", 'models = ["pair.tow"]'), "arms, merges and sources"),
        (
            tables("[merges.a]", 'models = ["a"]'),
            r"which are .* merge\.ties, merge\.a,",
        ),
        (
            tables("[merges.a]", 'models = ["merge.b", "clm"]')
            + '[merges.b]\nmodels = ["merge.a", "clm"]\n',
            r"no merge may take itself, but (a takes b takes a|b takes a takes b);",
        ),
        (PAIRWISE.replace("[pairs]\nseq_length = 99", ""), "must hold 'models'"),
        (tables("[merges.a]", 'models = ["source.tow"]'), "did you mean source.two"),
        (tables('[arms."ensemble.a"]'), "no arm may be called"),
        (tables("[ensembles.a]", 'models = ["one"]'), "arms, merges and sources"),
        (tables("[ensembles.a]", 'models = ["clm"]'), "two models or more, got clm"),
        (tables("[ensembles.a]", 'model = ["clm"]'), "models and weights, got 'model'"),
        (tables("[ensembles.a]", "weights = [1]"), r"\[ensembles\.a\]: .* 2 models"),
        (tables("[ensembles.a]", "weights = [1, -1]"), r"\[ensembles\.a\]: weights of"),
        (tables("[ensembles.a]", "weights = 1"), r"weights must be a list of numbers"),
        (tables("[ensembles.a]", 'weights = ["1", 1]'), "must be a list of numbers"),
        (tables("[evaluate]", 'ensemble = ["a"]'), "must not hold 'ensemble'"),
        (tables("[merges.a]", 'method = "tie"'), r"did you mean ties"),
        (
            tables(
                "[merges.a]",
                'method = "slerp"',
                'models = ["clm", "pair.one", "pair.two"]',
                "settings = {t = 0.5}",
            ),
            r"\[merges\.a\].*slerp must have .* at most 2 models",
        ),
    ],
)
def test_a_wrong_recipe_of_several_fusions_is_refused_in_one_line(
    text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        read(tmp_path, text)
    assert str(refused.value).startswith(f"{tmp_path}/recipe.toml")
    assert len(str(refused.value).splitlines()) == 1
