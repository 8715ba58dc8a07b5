from pathlib import Path

from pipelines import recipe


def read(tmp_path: Path, text: str) -> recipe.Recipe:
    """Reads a recipe, which is written to recipe.toml in a folder."""
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return recipe.read(str(path))
