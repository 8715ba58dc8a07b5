import base64
from typing import Any

import numpy as np
import pytest

from tests.golden import __main__ as golden
from tests.golden.cases import Cases

NAMES = [
    *("splits", "windows", "dialogues", "tokens", "maps", "fused", "frame", "chunks"),
]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return Cases(tmp_path_factory.mktemp("golden"))


def same(found: Any, wanted: Any) -> None:
    """Compares two trees; numbers of floating point may differ in their last digit."""
    if isinstance(wanted, dict):
        assert sorted(found) == sorted(wanted)
        for key, value in wanted.items():
            same(found[key], value)
    elif isinstance(wanted, list) and any(isinstance(v, float) for v in _flat(wanted)):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)
    else:
        assert found == wanted


def _flat(tree: list[Any]) -> list[Any]:
    return [v for e in tree for v in (_flat(e) if isinstance(e, list) else [e])]


@pytest.mark.parametrize("name", NAMES)
def test_todays_code_makes_what_the_golden_file_holds(name: str, cases: Cases) -> None:
    made, wanted = cases.all[name](), golden.read(name)
    if name == "frame":  # another zstandard may pack the same bytes otherwise
        made.pop("frame"), wanted.pop("frame")
    same(made, wanted)


@pytest.mark.parametrize("name", ["frame", "kept/frame-1"])  # today's, and version 1
def test_a_frame_that_was_written_once_is_still_read(name: str, cases: Cases) -> None:
    wanted = golden.read(name)
    same(cases.read(base64.b64decode(wanted.pop("frame"))), wanted)


def test_every_case_has_a_file_and_every_file_a_case(cases: Cases) -> None:
    assert sorted(cases.all) == sorted(NAMES)
    assert sorted(path.stem for path in golden.FOLDER.glob("*.json")) == sorted(NAMES)
