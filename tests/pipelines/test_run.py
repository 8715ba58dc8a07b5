import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines import recipe, run
from pipelines.progress import Stage
from schemas.errors import FusionError
from schemas.manifest import Manifest

GOOD = """
output = "runs/x"
[corpus]
inputs = ["a.jsonl"]
[prepare]
splits = "fusion=.8,dev=.1,heldout=.1"
max_bytes = 100
[target]
model = "t"
[sources.one]
model = "m"
"""


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    made.write_text(GOOD)
    return str(made)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Returns what the command would have run, instead of running it."""
    found: list[Any] = []
    monkeypatch.setattr(run, "run", lambda *given: found.append(given))
    return found


@pytest.mark.parametrize("first", [True, False])
def test_beams_words_may_stand_before_or_behind_the_recipe(
    first: bool, path: str, asked: list[Any]
) -> None:
    beams = ["--runner", "DirectRunner", "--no_use_public_ips"]
    words = [*beams, path] if first else [path, *beams]
    assert run.main([*words, "--output=y", "--", "--java"]) == 0
    ((plan, flags, _),) = asked
    assert plan.output == "y"
    assert flags == [*beams, "--java"]
    assert not plan.overwrite


def test_overwrite_reaches_the_recipe(path: str, asked: list[Any]) -> None:
    run.main([path, "--overwrite"])
    assert asked[0][0].prepare.overwrite


def test_only_takes_several_names_and_may_stand_more_than_once(
    path: str, asked: list[Any]
) -> None:
    run.main([path, "--only", "fused", "source.one", "--only=untouched"])
    assert asked[0][2] == ["fused", "source.one", "untouched"]


@pytest.mark.parametrize("word", ["--overwrit", "other.toml"])
def test_a_word_that_nobody_knows_is_refused(
    word: str, path: str, asked: list[Any]
) -> None:
    with pytest.raises(SystemExit, match=f"unknown argument '{word}'"):
        run.main([path, word])
    assert not asked


def manifest_of(windows: int) -> Manifest:
    return Manifest(
        stage="windows",
        fingerprint="",
        settings={},
        inputs={},
        origins={},
        counts={"documents": windows, "windows": windows, "text_bytes": windows},
        files=(),
        code_version="",
    )


def test_an_empty_split_that_is_needed_ends_the_run_behind_prepare(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {"fusion": manifest_of(9), "dev": manifest_of(0), "heldout": manifest_of(0)}
    monkeypatch.setattr(run.prepare, "prepare_corpus", lambda *_: made)
    with pytest.raises(FusionError, match="split 'heldout' must hold windows"):
        run.run(recipe.read(path))


@pytest.mark.parametrize("flag", ["--template_location=gs://b/t", "--dry_run=True"])
def test_a_job_that_nobody_awaits_is_refused_before_any_stage(
    flag: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    monkeypatch.setattr(run.prepare, "prepare_corpus", lambda *_: begun.append("x"))
    with pytest.raises(ValueError, match=r"run must await .*; give them to the comm"):
        run.run(recipe.read(path), ["--runner=DataflowRunner", flag])
    assert not begun


def test_an_evaluation_shows_its_slices(
    path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluate_model(_: Any, progress: Any) -> dict[str, Any]:
        progress("slice 1/2")
        progress("slice 2/2")
        return {"a": {"nats": 1.0, "bytes": 1, "windows": 1, "failed": 0}}

    monkeypatch.setattr(run.evaluate, "evaluate_model", evaluate_model)
    run.evaluate_all(recipe.read(path), ["untouched"], Stage("evaluate"))
    shown = capsys.readouterr().err
    assert shown == "evaluate untouched: slice 1/2\nevaluate untouched: slice 2/2\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run.evaluate_all(recipe.read(path), ["untouched"], Stage("evaluate"))
    shown = capsys.readouterr().err
    assert shown.count("\r") == 2
    assert shown.endswith("slice 2/2\n")


def test_a_domain_may_be_called_with_colons() -> None:
    made = manifest_of(1)
    counts = {**made.counts, "taught:a:b:one": 3, "taught:a:b:target": 1}
    shown = run.taught_table(dataclasses.replace(made, counts=counts)).splitlines()
    assert shown[0].split() == ["taught", "by", "one", "target"]
    assert shown[1].split() == ["a:b", "75%", "25%"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[ensembles.a]", r"\[ensembles\.a\]: models of an ensemble must have one"),
        ('[merges.b]\nmethod = "linear"', r"\[merges\.b\]: .*neox"),
    ],
)
def test_models_that_do_not_fit_are_refused_before_any_work(
    table: str, message: str, models: dict[str, str], tmp_path: Path
) -> None:
    text = GOOD.replace('"t"', f'"{models["llama"]}"').replace(
        'output = "runs/', 'output = "'
    )
    text = text.replace('"m"', f'"{models["llama"]}"')
    more = f'[sources.neox]\nmodel = "{models["neox"]}"\n{table}\n'
    named = 'models = ["source.one", "source.neox"]\n'
    path = tmp_path / "recipe.toml"
    path.write_text(text + more + named)
    plan = recipe.read(str(path), str(tmp_path / "out"))
    with pytest.raises(ValueError, match=message):
        run.run(plan)
    assert not (tmp_path / "out").exists()
    with pytest.raises(
        FileNotFoundError, match=r"got .a\.jsonl."
    ):  # what is not asked for may be
        run.run(plan, only=["fused"])
