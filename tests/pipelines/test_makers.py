import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from examples import demo
from examples.corpus import Size
from pipelines import cli, makers, recipe, run
from pipelines.makers import Inputs

ROOT = Path(__file__).parents[2]
TEXT = """
output = "{folder}/made"
[inputs]
{inputs}
[corpus]
inputs = ["{folder}/made/inputs/a.jsonl"]
[prepare]
splits = "fusion=.5,heldout=.5"
max_bytes = 100
[target]
model = "{folder}/made/inputs/t"
[sources.one]
model = "{folder}/made/inputs/m"
"""


def read(folder: Path, *lines: str, output: str | None = None) -> recipe.Recipe:
    path = folder / "recipe.toml"
    path.write_text(TEXT.format(folder=folder, inputs="\n".join(lines)))
    return recipe.read(str(path), output)


def inputs(folder: Path, *lines: str, output: str | None = None) -> Inputs:
    found = read(folder, *lines, output=output).inputs
    assert found is not None
    return found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Returns what the demo was asked to make, instead of making it."""
    found: list[Any] = []

    def make_inputs(output: str, size: Size, seed: int = 0) -> None:
        found.append((output, size, seed))

    monkeypatch.setattr(demo, "make_inputs", make_inputs)
    return found


def test_an_example_is_told_the_recipes_own_folder_and_settings(
    tmp_path: Path, asked: list[Any]
) -> None:
    lines = ('made_by = "examples.demo"', 'size = "tiny"')
    # What the recipe names lies there, wherever the run's own folder is put.
    makers.make(inputs(tmp_path, *lines, "seed = 3", output="elsewhere"))
    makers.make(inputs(tmp_path, *lines))
    made = f"{tmp_path}/made"
    assert asked == [(made, "tiny", 3), (made, "tiny", 0)]


def recipes() -> list[Path]:
    """Returns the recipes of the examples that have their inputs made."""
    found = sorted((ROOT / "examples").glob("*.toml"))
    return [path for path in found if "[inputs]" in path.read_text()]


@pytest.mark.parametrize("path", recipes(), ids=lambda path: path.stem)
def test_examples_make_what_their_recipes_name(path: Path) -> None:
    plan = recipe.read(str(path))
    assert plan.inputs is not None
    assert plan.inputs.output == plan.output
    assert makers.find(plan.inputs).__module__ == plan.inputs.made_by
    named = [plan.target, *plan.sources.values(), *plan.prepare.inputs]
    assert all(place.startswith(f"{plan.output}/inputs/") for place in named)


def test_there_are_examples_that_make_their_inputs() -> None:
    names = ["demo", "tiny", "fusechat", "fusechat_tiny"]
    names += ["table7", "table7_tiny", "table7_gpu"]
    names += ["reasoning", "reasoning_tiny", "reasoning_smollm2"]
    assert {path.stem for path in recipes()} == {*names}


def test_inputs_are_made_before_anything_else(
    tmp_path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        assert len(asked) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(run.prepare, "prepare_corpus", stop)
    plan = read(tmp_path, 'made_by = "examples.demo"', 'size = "tiny"')
    with pytest.raises(KeyboardInterrupt):
        run.run(plan)


@pytest.mark.parametrize(
    "name",
    [
        *('"os"', '"examples"', '"examples."', '"examples.a.b"', '"tests.tiny"', "3"),
        *(
            '"examples./tmp/a"',
            '"examples.demo\\n"',
            '"Examples.demo"',
            '"examples.Demo"',
        ),
    ],
)
def test_a_recipe_names_no_program_but_an_example(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"own examples.*a recipe is data, and cannot"):
        read(tmp_path, f"made_by = {name}")


def test_a_table_that_names_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"own examples, as 'examples.demo', got None"):
        read(tmp_path, 'size = "tiny"')


@pytest.mark.parametrize(
    ("place", "where"),
    [
        ("a.jsonl", r"\[corpus\]\.inputs \(.*a\.jsonl\)"),
        ("t", r"\[target\]\.model"),
        ("m", r"\[sources\.one\]\.model"),
    ],
)
def test_nothing_is_made_for_a_recipe_that_takes_other_inputs(
    place: str, where: str, tmp_path: Path
) -> None:
    lines = '[inputs]\nmade_by = "examples.demo"\nsize = "tiny"'
    text = TEXT.format(folder=tmp_path, inputs="").replace("[inputs]", lines)
    path = tmp_path / "recipe.toml"
    path.write_text(text.replace(f"/made/inputs/{place}", f"/mine/{place}"))
    told = rf"{where} must lie in {tmp_path}/made/inputs, .* leave \[inputs\] out"
    with pytest.raises(ValueError, match=told):
        recipe.read(str(path))


@pytest.mark.parametrize("value", ["[1]", "0.5", "true", "{a = 1}"])
def test_settings_are_text_or_whole_numbers(value: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\[inputs\]\.seed must be text or a whole"):
        read(tmp_path, 'made_by = "examples.demo"', f"seed = {value}")


def test_inputs_lie_in_the_recipes_own_output_which_must_be_there(
    tmp_path: Path,
) -> None:
    path = tmp_path / "recipe.toml"
    text = TEXT.format(folder=tmp_path, inputs='made_by = "examples.demo"')
    path.write_text(text.replace(f'output = "{tmp_path}/made"', ""))
    with pytest.raises(ValueError, match="must hold 'output', where they lie"):
        recipe.read(str(path), "elsewhere")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['size = "tniy"'], r"\[inputs\]\.size must be full, tiny, got 'tniy'"),
        ([], r"\[inputs\] must hold 'size' for examples\.demo"),
        (['size = "tiny"', "sed = 1"], r"size, seed, got 'sed'; did you mean seed"),
        (['size = "tiny"', 'seed = "1"'], r"seed must be of type int, got '1'"),
    ],
)
@pytest.mark.usefixtures("asked")
def test_what_an_example_does_not_take_is_refused(
    lines: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        makers.make(inputs(tmp_path, 'made_by = "examples.demo"', *lines))


def test_an_example_without_inputs_of_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"examples\.smollm2 has no make_inputs"):
        makers.make(inputs(tmp_path, 'made_by = "examples.smollm2"'))


def test_an_example_that_is_not_there_is_told_apart_from_a_missing_checkout(
    tmp_path: Path,
) -> None:
    with pytest.raises(FileNotFoundError, match=r"name an example.*did you mean"):
        makers.make(inputs(tmp_path, 'made_by = "examples.tabel7"'))


def test_examples_of_another_project_are_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = types.ModuleType("examples")
    other.__path__ = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, "examples", other)
    with pytest.raises(ImportError, match=rf"checkout's own.* loaded {tmp_path}"):
        makers.make(inputs(tmp_path, 'made_by = "examples.demo"', 'size = "tiny"'))


def test_examples_that_are_no_checkouts_are_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Of an installed wheel, beside which somebody else's package may lie.
    (tmp_path / "examples").mkdir()
    for name in ("__init__", "demo"):
        (tmp_path / "examples" / f"{name}.py").write_text("raise SystemExit(9)\n")
    monkeypatch.setattr(makers, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    read(tmp_path, 'made_by = "examples.demo"', 'size = "tiny"')
    assert cli.main(["run", "recipe.toml"]) == 1
    told = capsys.readouterr().err
    assert f"{tmp_path} has no examples/demo.py of FuseBeam's" in told
    assert "leave [inputs] out" in told


def test_the_checkouts_examples_are_found_from_any_folder(tmp_path: Path) -> None:
    # In a process of its own, whose path does not lead to the examples.
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "__init__.py").write_text("raise SystemExit(9)\n")
    code = (
        "import sys; from pipelines import makers; sys.path.remove(sys.argv[1]);"
        "makers._open_package(); import examples.corpus; print(examples.__path__[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == str(ROOT / "examples")
