import dataclasses
from typing import Literal

import pytest

from schemas import settings
from schemas.settings import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    inputs: tuple[str, ...] = setting(help="files")
    top_k: int = setting(10, help="entries")
    rate: float = setting(0.5, help="share, 100 % is 1")
    kind: Literal["ce", "kl"] = setting("ce", help="loss")
    limit: int | None = setting(None, help="bytes")
    fast: bool = setting(False, help="haste", shapes_output=False)


def parse(*argv: str) -> Config:
    return settings.parse_flags(Config, argv, prog="test", description="")


def test_flags_become_fields() -> None:
    config = parse("--inputs", "a", "b", "--top-k=3", "--rate", "1", "--kind", "kl")
    assert config == Config(inputs=("a", "b"), top_k=3, rate=1.0, kind="kl")


def test_a_boolean_has_both_spellings() -> None:
    assert parse("--inputs", "a", "--fast").fast
    assert not parse("--inputs", "a", "--no-fast").fast


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--top_k=3"], "inputs"),
        (["--inputs", "a", "--top_k=x"], "top_k"),
        (["--inputs", "a", "--kind=mse"], "kind"),
    ],
)
def test_a_bad_command_line_ends_with_the_flag_named(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(*argv)
    assert message in capsys.readouterr().err


def test_an_unknown_flag_is_refused_with_a_suggestion() -> None:
    with pytest.raises(SystemExit, match=r"--topk.*did you mean --top_k"):
        parse("--inputs", "a", "--topk=3")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"inputs": ["a"], "topk": 3}, r"'topk'; did you mean top_k"),
        ({"inputs": ["a"], "top_k": "3"}, r"top_k must be int, got '3'"),
        ({"inputs": "a"}, r"inputs must be a list of a string, got 'a'"),
        ({"inputs": ["a"], "fast": 1}, r"fast must be true or false, got 1"),
        ({"inputs": ["a"], "kind": "mse"}, r"kind must be one of 'ce', 'kl'"),
        ({}, r"must hold 'inputs'"),
    ],
)
def test_a_bad_recipe_table_names_key_and_cure(
    table: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        settings.from_mapping(Config, table, "[score]")


def test_only_what_shapes_the_output_enters_the_fingerprint() -> None:
    one = Config(inputs=("a",))
    assert settings.fingerprint(one) == settings.fingerprint(
        dataclasses.replace(one, fast=True)
    )
    assert settings.fingerprint(one) != settings.fingerprint(
        dataclasses.replace(one, top_k=11)
    )


def test_help_shows_defaults_and_units(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    shown = capsys.readouterr().out
    assert "(default: 10)" in shown
    assert "100 %" in shown
