import re
from pathlib import Path

import pytest

from train.merge import methods
from train.merge.settings import WITHOUT_EFFECT, Parameter

PAGE = Path(__file__).parents[3] / "docs" / "algorithms.md"
SECTION = PAGE.read_text().split("## Merging weights: methods")[1].split("\n## ")[0]
ROWS = {
    row.split("`")[1]: [cell.strip() for cell in row.split(" | ")]
    for row in SECTION.splitlines()
    if row.startswith("| `")
}


def told(name: str, parameter: Parameter) -> str:
    """A setting as the table writes it: its name, and its default if it has one."""
    default = parameter.default
    if default is None:
        return f"`{name}`"
    if isinstance(default, float):
        default = f"{default:g}".replace("e-0", "e-")
    return f"`{name}` ({str(default).lower()})"


def test_the_table_of_the_documentation_has_every_method() -> None:
    assert sorted(ROWS) == sorted(methods.METHODS)


@pytest.mark.parametrize("name", sorted(methods.METHODS))
def test_the_table_of_the_documentation_tells_settings_and_defaults(name: str) -> None:
    method = methods.METHODS[name]
    known = {
        key: one
        for key, one in method.parameters.items()
        if key not in WITHOUT_EFFECT and not one.found
    }
    found = re.split(r", (?=`)", ROWS[name][2])
    assert sorted(found) == sorted(told(key, one) for key, one in known.items())
    assert ROWS[name][3].startswith(method.base)
