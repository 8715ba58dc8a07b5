"""The command `fusebeam merge`: recipes, flags, and what it shows."""

import re
import shlex
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines import cli
from pipelines import merging as table
from schemas import manifest
from tests import merging
from tests.merging import SMALL, Made, run


def test_showing_says_what_becomes_of_every_tensor_and_writes_nothing(
    made: Made, out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = [
        {"pattern": "*mlp*", "settings": {"density": {"depth": [0.2, 0.8]}}},
        {"pattern": "*q_proj*", "method": "nuslerp", "use_base": False},
        {"pattern": "*k_proj*", "method": "nuslerp"},
    ]
    given = merging.table(made, out, method="ties", rules=rules, **SMALL)
    path = merging.recipe(tmp_path, given)
    assert cli.main(["merge", path, "--show"]) == 0
    told = capsys.readouterr().out.splitlines()
    line = next(line for line in told if line.startswith("model.layers.1.mlp.up_proj"))
    assert line.split()[1:6] == ["24", "x", "16", "F32", "model.layers.1"]
    assert "ties weight=[1, 1] density=[0.8, 0.8]" in line
    assert line.endswith("with base")
    for key, ends in (("q_proj", False), ("k_proj", True)):
        (line, *_) = (line for line in told if f"self_attn.{key}" in line)
        assert line.endswith("with base") == ends
    assert sum("model.layers." in line for line in told) == 18
    assert any(line.startswith("memory: ") for line in told)
    assert not Path(out).exists()


def test_the_command_takes_a_recipe_and_flags_over_it(
    made: Made, out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = merging.table(made, "elsewhere", method="ties", **SMALL)
    path = merging.recipe(tmp_path, given)
    words = ["merge", path, "--method=linear", "--output", out, "--runner=FnApiRunner"]
    assert cli.main(words) == 0
    assert f"{out}: 2 models merged, " in capsys.readouterr().out
    assert merging.same(
        merging.state(out), merging.plainly(made, "linear", {}, ["m1", "m2"])
    )


def test_a_flag_of_another_method_begins_with_its_own_defaults(
    made: Made, out: str, tmp_path: Path
) -> None:
    rules = [
        {"pattern": "*.mlp.*", "settings": {"density": 0.2}},
        {"pattern": "*norm*", "method": "slerp", "settings": {"t": 0.3}},
    ]
    more = {"settings": {"weight": 0.7, "density": 0.6}, "rules": rules}
    given = merging.table(made, out, method="ties", use_base=False, **more)
    path = merging.recipe(tmp_path, given)
    told = {
        method: [
            (rule.method, dict(rule.settings))
            for rule in table.read_recipe(path, {"method": method}).rules
        ]
        for method in ("linear", "ties")
    }
    norms, ties = ("slerp", {"t": 0.3}), {"weight": 0.7, "density": 0.6}
    assert told == {
        "linear": [("linear", {}), norms, ("linear", {})],
        "ties": [("ties", {**ties, "density": 0.2}), norms, ("ties", ties)],
    }


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("[sources.a]\n[merges.x]\n", r"with \[sources\] and .* --only merge\.x$"),
        ("[sources.a]\n", r"with \[sources\] it is .*run .* --only merge\.merged$"),
        ("[merges.x]\n[merges.y]\n", r"--only merge\.x merge\.y$"),
    ],
)
def test_a_recipe_of_a_run_is_led_to_the_command_that_merges_its_arms(
    more: str, told: str, made: Made, out: str, tmp_path: Path
) -> None:
    path = merging.recipe(tmp_path, merging.table(made, out, method="linear"))
    Path(path).write_text(Path(path).read_text() + more)
    with pytest.raises(ValueError, match=told):
        table.read_recipe(path, {})


@pytest.mark.parametrize("flags", [[], ["--show"]])
def test_a_recipe_of_a_run_that_merges_nothing_is_told_so(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small_recipe(tmp_path, "")
    assert cli.main(["merge", path, *flags]) == 1
    assert "has neither [merge] nor [merges.NAME]" in capsys.readouterr().err


MERGES = """
[merge]
method = "ties"
models = ["m1", "m2"]
[merges.mean]
method = "linear"
[merges.cut]
[merges.both]
models = ["merge.mean", "m1"]
"""


def small_recipe(folder: Path, merges: str, target: str = "t") -> str:
    """Writes a recipe of a run of two arms, m1 and m2."""
    text = f"""
output = "{folder}/run"
[corpus]
inputs = ["a.jsonl"]
[prepare]
splits = "fusion=.5,heldout=.5"
[target]
model = "{target}"
[sources.one]
model = "s"
[arms.m1]
[arms.m2]
{merges}
"""
    (folder / "run.toml").write_text(text)
    return str(folder / "run.toml")


@pytest.fixture
def trained(made: Made, tmp_path: Path) -> str:
    """Returns the recipe of a run whose arms are trained and whose merges are not."""
    for arm in ("m1", "m2"):
        folder = tmp_path / "run" / "models" / arm
        shutil.copytree(made[arm], folder)
        (folder / manifest.NAME).write_text("{}")
    return small_recipe(tmp_path, MERGES, made["base"])


def test_the_merges_of_a_run_are_shown_before_they_are_made(
    trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["merge", trained, "--show", "--only", "merge.mean", "merge.cut"]
    assert cli.main(words) == 0
    told = capsys.readouterr().out
    heads = [line for line in told.splitlines() if line.startswith("──")]
    folder = tmp_path / "run" / "merges"
    assert heads == [f"── merge.{n}: {folder}/{n}" for n in ("mean", "cut")]
    mean, cut = told.split(heads[1])
    line = next(x for x in cut.splitlines() if x.startswith("model.layers.1.mlp.up"))
    assert "ties weight=[1, 1]" in line
    assert mean.count("linear weight=") == cut.count("ties weight=") > 18
    assert not folder.exists()


def test_a_merge_of_sources_is_shown_before_anything_is_made(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merges = f"""
[sources.two]
model = "{made["m2"]}"
[merge]
method = "ties"
models = ["source.one", "source.two"]
"""
    path = small_recipe(tmp_path, merges, made["base"])
    text = Path(path).read_text().replace('model = "s"', f'model = "{made["m1"]}"')
    Path(path).write_text(text)
    assert cli.main(["merge", path, "--show"]) == 0
    assert "ties weight=[1, 1]" in capsys.readouterr().out


def test_a_merge_of_what_is_not_made_yet_names_it_and_its_command(
    trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["merge", trained, "--show"]) == 1
    end = f"fusebeam run {trained} --only merge.mean"
    assert capsys.readouterr().err.strip().endswith(end)
    elsewhere = ["--show", "--output", f"{tmp_path}/other", "--only", "merge.cut"]
    assert cli.main(["merge", trained, *elsewhere]) == 1
    told = capsys.readouterr().err.strip()
    assert f"but m1, m2 of {tmp_path}/other are not made yet" in told
    end = f"fusebeam run {trained} --output {tmp_path}/other --only m1 m2"
    assert told.endswith(end)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--show", "--only", "merge.men"], "got 'merge.men'; did you mean merge.mean"),
        (
            ["--show", "--method=linear"],
            "only --only and --output may stand, got --met",
        ),
        (["--only", "merge.mean"], "--only must stand with --show"),
        ([], "--only merge.mean merge.cut merge.both"),
    ],
)
def test_what_cannot_be_shown_of_a_run_is_refused(
    words: list[str], told: str, trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["merge", trained, *words]) == 1
    assert told in capsys.readouterr().err


def test_the_recipe_and_the_commands_of_the_documentation_merge_tied_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs/running.md").read_text()
    part = page.partition("\n## Merging\n")[2].partition("\n## ")[0]
    (text,) = re.findall(r"```toml\n(.*?)```", part, re.DOTALL)
    lines = re.findall(r"^fusebeam (merge .*)$", part, re.MULTILINE)
    told = tomllib.loads(text)["merge"]
    monkeypatch.chdir(tmp_path)
    for seed, place in enumerate([told["base"], *told["models"].values()]):
        merging.write(tmp_path / place, "qwen2", seed, shard="1GB")
        assert "lm_head.weight" not in merging.state(place)
    Path("RECIPE.toml").write_text(text)
    assert len(lines) == 3
    for line in lines:
        assert cli.main(shlex.split(line)) == 0
    shown = capsys.readouterr().out
    for folder in (told["output"], "runs/mine/linear"):
        assert f"{folder}: 2 models merged" in shown
    embedding = "model.embed_tokens.weight"
    merged, base = merging.state(told["output"]), merging.state(told["base"])
    assert torch.equal(merged[embedding], base[embedding])
    assert not merging.same(merged, merging.state("runs/mine/linear"))


def test_a_dry_run_without_a_value_is_led_to_showing(
    made: Made, out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = merging.recipe(tmp_path, merging.table(made, out, method="ties"))
    assert cli.main(["merge", path, "--dry-run"]) == 1
    assert capsys.readouterr().err.endswith("tensor, give --show\n")


def test_a_misspelt_flag_is_refused_with_a_suggestion(
    made: Made, out: str, tmp_path: Path
) -> None:
    path = merging.recipe(tmp_path, merging.table(made, out, method="ties"))
    with pytest.raises(SystemExit, match=r"'--metod=linear'; did you mean --method\?"):
        cli.main(["merge", path, "--metod=linear"])


def test_the_output_of_a_recipe_is_below_that_of_its_run(
    made: Made, tmp_path: Path
) -> None:
    path = Path(merging.recipe(tmp_path, merging.table(made, "x", method="linear")))
    text = path.read_text().replace('output = "x"\n', "")
    path.write_text('output = "runs/mine"\n' + text)
    assert table.read_recipe(str(path), {}).config.output == "runs/mine/merged"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"method": "tis"}, r"\[merge\].*method must be one of .*did you mean ties"),
        ({"densty": 1}, r"known keys only, got 'densty'"),
        ({"settings": {"densty": 1}}, r"got 'densty'; did you mean density"),
        (
            {"method": "varm", "settings": {"weights": {"models": [0.2, 0.8]}}},
            r"\[merge\]: varm takes granularity, got 'weights'$",
        ),
        ({"settings": {"weight": [1, 2]}}, r"a list could be of the models or"),
        ({"rules": [{"method": "linear"}]}, r"rule 1 .* must hold 'pattern'"),
        ({"rules": [{"pattern": "*x*"}]}, r"every rule must fit a tensor.*'\*x\*'"),
        ({"rules": [{"pattern": "*", "take": "m3"}]}, r"take must name one of m1, m2"),
        ({"base": None}, r"ties merges differences from a base"),
        ({"models": ["a.gguf"]}, r"'a.gguf' must be a folder or a name"),
        ({"models": ["x/y", "z/y", "base=y"]}, r"not 'base', got model-1, model-2"),
        ({"method": "slerp", "settings": {"t": 0.5}}, r"use_base = false keeps the"),
        ({"dtype": "int8"}, r"dtype must be"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(
    change: dict[str, Any], told: str, made: Made, out: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        run(made, out, **{"method": "ties", **change})
    assert not Path(out).exists()
