import json
from pathlib import Path

import pytest

from tests.transforms import chat_templates as made
from transforms import templates
from transforms.templates import RefusalError, Template


def folder(path: Path, **config: object) -> str:
    path.mkdir(exist_ok=True)
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return str(path)


def render(text: str, **more: str) -> str:
    return Template(text=text, tokens={}, **more).render(made.TURNS)  # type: ignore[arg-type]


def test_a_model_s_own_template_and_special_tokens_are_read(tmp_path: Path) -> None:
    model = folder(
        tmp_path,
        chat_template=made.ZEPHYR,
        bos_token="<s>",
        eos_token={"content": "</s>", "lstrip": False},
        pad_token=None,
    )
    found = templates.read(model)
    assert found.text == made.ZEPHYR
    assert found.tokens == {"bos_token": "<s>", "eos_token": "</s>"}


def test_a_template_in_a_file_of_its_own_comes_before_the_configuration(
    tmp_path: Path,
) -> None:
    model = folder(tmp_path, chat_template="old")
    (tmp_path / "chat_template.jinja").write_text("new")
    assert templates.read(model).text == "new"


def test_several_templates_are_told_apart_by_name(tmp_path: Path) -> None:
    named = [
        {"name": "default", "template": "a"},
        {"name": "tool_use", "template": "b"},
    ]
    model = folder(tmp_path, chat_template=named)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("c")
    for name, text in ((None, "a"), ("tool_use", "b"), ("rag", "c")):
        assert templates.read(model, name).text == text
    with pytest.raises(
        ValueError, match="called 'tools', it has default, rag, tool_use"
    ):
        templates.read(model, "tools")


def test_a_file_or_the_template_itself_takes_the_place_of_the_model_s(
    tmp_path: Path,
) -> None:
    model = folder(tmp_path / "model", chat_template="a", eos_token="</s>")
    file = tmp_path / "mine.jinja"
    file.write_text("b")
    assert templates.read(model, str(file)).text == "b"
    own = templates.read(model, "{{ eos_token }}")
    assert own.render(made.TURNS) == "</s>"


def test_a_model_without_a_template_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"it has none; name .* --chat_template"):
        templates.read(folder(tmp_path))


def test_what_is_no_jinja_is_refused(tmp_path: Path) -> None:
    for text in ("{% if %}", "{{ messages | random }}"):
        with pytest.raises(ValueError, match="must be a Jinja template"):
            templates.read(folder(tmp_path, chat_template=text))


@pytest.mark.parametrize(
    "attack",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.getcwd() }}",
        "{{ raise_exception.__globals__.os }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{% include '/etc/passwd' %}",
        "{{ dict.mro() }}",
        "{{ lipsum() }}",
        "{{ messages[0].format_map.__globals__ }}",
    ],
)
def test_a_template_reaches_nothing_of_python_s_own(attack: str) -> None:
    with pytest.raises(RefusalError, match=r"SecurityError|UndefinedError|TypeError"):
        render(attack)


def test_a_template_s_own_refusal_is_told(tmp_path: Path) -> None:
    with pytest.raises(RefusalError, match="no system turns here"):
        render("{{ raise_exception('no system turns here') }}")


@pytest.mark.parametrize(
    "telling",
    [
        "{{ raise_exception('I refuse ' + messages[0].content) }}",
        "{{ raise_exception(messages[0].content[:3]) }}",
        "{{ raise_exception(messages[0].content | upper) }}",
        "{{ raise_exception(messages) }}",
        "{{ {}[messages[0].content].there }}",
        "{{ messages[0].content | dictsort }}",
    ],
)
def test_a_refusal_that_may_quote_what_was_said_is_told_without_it(
    telling: str,
) -> None:
    with pytest.raises(RefusalError) as caught:
        render(telling)
    assert made.TURNS[0].content == "Be  brief."
    told = str(caught.value).lower()
    assert "be " not in told
    assert "brief" not in told


def test_a_template_that_asks_for_the_day_is_told_the_one_named(
    tmp_path: Path,
) -> None:
    assert render(made.DATED, date="2024-07-26").startswith("26 Jul 2024\n")
    model = folder(tmp_path, chat_template=made.DATED)
    assert templates.read(model, date="2024-07-26").date == "2024-07-26"
    with pytest.raises(ValueError, match="--chat_date"):
        templates.read(model)


def test_fingerprints_tell_text_tokens_and_day_apart() -> None:
    one = Template(text="a", tokens={"bos_token": "<s>"}, date=None)
    others = [
        Template(text="b", tokens={"bos_token": "<s>"}, date=None),
        Template(text="a", tokens={"bos_token": "<t>"}, date=None),
        Template(text="a", tokens={"bos_token": "<s>"}, date="2024-07-26"),
    ]
    assert len({t.fingerprint for t in (one, *others)}) == 4


def test_json_is_written_as_it_is() -> None:
    assert render("{{ {'a': '<é>'} | tojson }}") == '{"a": "<é>"}'


def test_loops_may_be_left() -> None:
    assert (
        render("{% for m in messages %}{{ m.role }}{% break %}{% endfor %}") == "system"
    )
