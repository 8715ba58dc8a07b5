"""What runs on Flink: the demo's tiny recipe, and one that is smaller still."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from examples import demo
from pipelines import recipe
from pipelines.recipe import Recipe
from schemas import files
from tests import small_run, tiny
from tests.kill import local

ROOT = Path(__file__).parent.parent.parent
FILES = 8


def make_demo(folder: Path) -> None:
    """Writes what `make run DEMO=tiny` makes and fuses, and its recipe."""
    made = str(folder / "demo")
    demo.make_inputs(made, "tiny")
    text = (ROOT / demo.RECIPES["tiny"]).read_text()
    # Paths that workers understand wherever they run.
    (folder / "recipe.toml").write_text(text.replace("runs/tiny", made))


def make_inputs(folder: Path) -> None:
    """Writes corpus, models that are made in a moment, and many small slices."""
    small_run.write_inputs(folder, FILES)
    tiny.llama(folder / "other", seed=2)
    text = small_run.recipe(
        [f"{folder}/corpus"],
        f"{folder}/llama",
        {"writer": f"{folder}/neox", "expert": f"{folder}/other"},
        slice_bytes=1000,
        group_windows=4,
        arms={"fused": {"clm_weight": 0.5}},
    )
    (folder / "recipe.toml").write_text(text)


def read(inputs: Path, output: Path) -> Recipe:
    """Reads a recipe of these inputs."""
    return recipe.read(str(inputs / "recipe.toml"), str(output.absolute()))


def commands(plan: Recipe) -> dict[str, list[str]]:
    """Returns the command lines of all that runs on Flink, by what they write."""
    made = {"windows": ["prepare", *local.flags(plan.prepare)]}
    for name in ("target", *plan.sources):
        made[f"scores/{name}"] = ["score", *local.flags(plan.score(name))]
    return {**made, "fused": ["fuse", *local.flags(plan.fuse)]}


def contents(folder: Path) -> dict[str, str]:
    """Digests every file of a run, but what is temporary."""
    return {
        str(path.relative_to(folder)): files.checksum(str(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and files.TEMPORARY not in path.parts
    }


def call(
    module: str, words: Sequence[str], folder: Path
) -> subprocess.CompletedProcess[str]:
    """Runs a module of ours as a command, in a folder."""
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
