from pathlib import Path

import pytest

from examples import inputs
from schemas import locks
from schemas.errors import SchemaError


def make(output: str, **wanted: object) -> bool:
    with inputs.making(output, wanted) as missing:
        return missing


def test_inputs_are_made_once(tmp_path: Path) -> None:
    assert make(str(tmp_path), size="tiny", seed=0)
    assert not make(str(tmp_path), size="tiny", seed=0)


def test_inputs_that_were_not_finished_are_made_again(tmp_path: Path) -> None:
    def stop() -> None:
        with inputs.making(str(tmp_path), {"seed": 0}):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert make(str(tmp_path), seed=0)


def test_inputs_of_other_settings_are_refused_by_the_first_that_differs(
    tmp_path: Path,
) -> None:
    assert make(str(tmp_path), size="tiny", seed=0, models=["m"] * 99)
    with pytest.raises(SchemaError, match=r"made by seed = 0, and now it is 1; remove"):
        make(str(tmp_path), size="tiny", seed=1, models=["m"] * 99)
    with pytest.raises(SchemaError, match=r"made by models = .*\.\.\., and now it is"):
        make(str(tmp_path), size="tiny", seed=0, models=[])
    with pytest.raises(SchemaError, match=r"made by models = .*, and now it is None"):
        make(str(tmp_path), size="tiny", seed=0)


def test_inputs_are_not_made_in_a_bucket() -> None:
    with pytest.raises(ValueError, match=r"on a disk of this machine.*gs://a/b"):
        make("gs://a/b", size="tiny")


def test_two_commands_do_not_make_the_same_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "WAIT_S", 0.0)
    with (
        inputs.making(str(tmp_path), {"seed": 0}),
        pytest.raises(SchemaError, match="another one is making inputs there"),
    ):
        make(str(tmp_path), seed=0)
    assert not make(str(tmp_path), seed=0)
