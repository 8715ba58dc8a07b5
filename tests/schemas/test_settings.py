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
    later: int = setting(0, help="what came later", omit_default=True)

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")


def parse(*argv: str) -> Config:
    return settings.parse_flags(Config, argv, prog="test", description="")


def test_flags_become_fields() -> None:
    config = parse("--inputs", "a", "b", "--top-k=3", "--rate", "1", "--kind", "kl")
    assert config == Config(inputs=("a", "b"), top_k=3, rate=1.0, kind="kl")


def test_a_list_given_in_parts_is_kept_whole() -> None:
    config = parse("--inputs", "a", "--top_k=3", "--inputs", "b", "c")
    assert config.inputs == ("a", "b", "c")


def test_a_boolean_has_both_spellings() -> None:
    assert parse("--inputs", "a", "--fast").fast
    assert not parse("--inputs", "a", "--no-fast").fast


@pytest.mark.parametrize("word", ["--no_fast", "--no-fast"])
def test_a_boolean_is_denied_in_either_spelling(word: str) -> None:
    assert not parse("--inputs", "a", "--fast", word).fast


def test_what_only_looks_like_a_denial_is_left_as_it_is() -> None:
    words = ["--no_use_public_ips", "--no-auth", "--no_fast"]
    spelt = settings.snake_case_flags(words, ["fast"])
    assert spelt == ["--no_use_public_ips", "--no_auth", "--no-fast"]


def test_a_missing_flag_is_named_with_what_it_is_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse()
    assert "error: --inputs must be given: files" in capsys.readouterr().err


def test_a_misspelt_flag_is_named_before_what_is_missing() -> None:
    with pytest.raises(SystemExit, match=r"'--input'; did you mean --inputs"):
        parse("--input", "a")


def test_the_usage_line_tells_what_must_be_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    shown = capsys.readouterr().out
    assert shown.startswith("usage: test --inputs INPUTS ... [flags]\n")
    assert "--rate NUMBER" in shown
    assert "--top_k INTEGER" in shown


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
        ({"inputs": ["a"], "top_k": 0}, r"\[score\]: top_k must be at least 1, got 0"),
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


def test_a_later_setting_at_its_default_leaves_no_trace() -> None:
    plain, given = Config(inputs=("a",)), Config(inputs=("a",), later=1)
    assert "later" not in settings.shaping(plain)
    assert settings.shaping(given) == {**settings.shaping(plain), "later": 1}


def test_help_shows_defaults_and_units(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    shown = capsys.readouterr().out
    assert "(default: 10)" in shown
    assert "100 %" in shown
