import json
from pathlib import Path

import pytest

from tests.transforms import chat_templates as made
from transforms import meter, templates
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


DOUBLED = "{% set x = 'a' %}" + "{% set x = x OP x %}" * 40 + "{{ x | length }}"


@pytest.mark.parametrize(
    "bomb",
    [
        "{{ 9**(9**9) }}",
        "{{ 'a' * 10**9 }}",
        "{{ [messages] * 10**8 }}",
        "{{ (1, 2) * 99999999 }}",
        "{% set ns = namespace(x=3) %}{% for i in range(99999) %}"
        "{% set ns.x = ns.x * ns.x %}{% endfor %}",
        DOUBLED.replace("OP", "+"),
        DOUBLED.replace("OP", "~"),
        DOUBLED.replace("'a'", "[1]")
        .replace("x OP x", "[x, x]")
        .replace("length", "string"),
        DOUBLED.replace("'a'", "[1]")
        .replace("x OP x", "[x, x]")
        .replace("| length", ""),
        "{% set x = 'a' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 40,
        "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}"
        "{% endfor %}",
        "{% for i in range(99999) %}{{ range(99999) | sum }}{% endfor %}",
        "{% for i in range(999) %}{{ range(9999) | map('string') | join }}{% endfor %}",
        "{% for i in range(99) recursive %}{{ loop(range(99)) if loop.depth < 9 }}"
        "{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}"
        "{{ f(99) }}",
        "{% for i in range(99999) %}" + "text " * 100 + "{% endfor %}",
        "{% macro f() %}" + "text " * 100 + "{% endmacro %}"
        "{% set x %}{% for i in range(99999) %}{{ f() }}{% endfor %}{% endset %}",
        "{{ 'a' | center(10**9) }}",
        "{{ 'a' | center(1000000000) }}",
        "{{ 'a'.ljust(10**9) }}",
        "{{ '1'.zfill(10**9) }}",
        "{{ ('\t' * 10**6).expandtabs(10**6) }}",
        "{{ ('\n' * 10**6) | indent(10**6) }}",
        "{{ ('a' * 10**6) | replace('a', 'a' * 10**6) }}",
        "{{ ('a' * 10**6).replace('', 'a' * 10**6) }}",
        "{{ ('a' * 10**5).join(['b'] * 10**3) }}",
        "{{ (['b'] * 10**3) | join('a' * 10**5) }}",
        "{{ ['a'] | map('center', 10**9) | list }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (10**9, 1) }}",
        "{{ '%0999999999d' | format(1) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ ('{0}' * 10**5).format('a' * 10**5) }}",
        "{{ [1] | batch(10**9, 'a') | list }}",
        "{{ [1] | tojson(indent=10**9) }}",
        "{{ [[[1] * 99] * 9] | tojson(indent=9999) }}",
        "{{ 1.5 | round(10**7) }}",
        "{{ ('a' * 10**6) | wordwrap(1, wrapstring='b' * 10**6) }}",
        "{{ 'aa'.translate({97: 'b' * 10**7}) }}",
    ],
)
def test_a_template_that_takes_time_or_memory_without_end_is_refused_by_name(
    bomb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "MAX_STEPS", 1 << 12)  # sooner
    made_of = templates.read(
        folder(tmp_path), "{%- if true -%}" + bomb + "{%- endif %}"
    )
    with pytest.raises(RefusalError, match=r"the chat template given must .* at most"):
        made_of.render(made.TURNS)


def test_what_templates_do_is_within_the_limits() -> None:
    said = made.TURNS * 99
    assert len(Template(text=made.CHATML, tokens={}).render(said)) > 5000
    assert render("{{ 2**10 }}{{ '%s %s' % ('a', 2) }}{{ 'ab' * 2 }}") == "1024a 2abab"
    assert render("{{ messages | map(attribute='role') | join(', ') }}").count(",") == 4
    assert render("{{ [1, 2] | batch(3, 0) | list }}") == "[[1, 2, 0]]"
    assert (
        render("{% for a, b in {'x': 1}.items() %}{{ loop.length }}{% endfor %}") == "1"
    )
    assert render("{{ 'x-y'.replace('-', ' ').split()[::-1] }}") == "['y', 'x']"


def test_a_template_nested_too_deeply_is_refused_by_name(tmp_path: Path) -> None:
    deep = "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}"
    loops = "{% for a in b %}" * 30 + "{% endfor %}" * 30
    for text in (deep, loops):
        with pytest.raises(ValueError, match=r"chat template of .* must be a Jinja"):
            templates.read(folder(tmp_path, chat_template=text))


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


def test_options_of_json_stand_where_transformers_has_them() -> None:
    assert render("{{ 'é' | tojson(true) }}") == '"\\u00e9"'
    assert render("{{ [1] | tojson(false, 1) }}") == "[\n 1\n]"
    assert render("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}").startswith('{"a"')


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("tokenizer_config.json", b"{", "must be JSON"),
        ("tokenizer_config.json", b"\xff", "must be JSON"),
        ("tokenizer_config.json", b"[]", "must hold a JSON object"),
        ("special_tokens_map.json", b"no", "must be JSON"),
        ("chat_template.json", b'{"chat_template": [{"name": "a"}]}', "must be a text"),
        ("chat_template.json", b'{"chat_template": ["a"]}', "must be a text"),
        ("chat_template.json", b'{"chat_template": 7}', "must be a text"),
        ("chat_template.jinja", b"\xff", "must be UTF-8"),
        ("additional_chat_templates/a.jinja", b"a\xff", "must be UTF-8"),
    ],
)
def test_a_broken_file_of_a_model_is_told_by_name(
    file: str, content: bytes, told: str, tmp_path: Path
) -> None:
    model = folder(tmp_path, chat_template="a")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"{Path(file).name} {told}"):
        templates.read(model)


def test_a_template_file_that_is_no_text_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"mine\.jinja must be UTF-8"):
        templates.read(folder(tmp_path), str(tmp_path / "mine.jinja"))


def test_loops_may_be_left() -> None:
    assert (
        render("{% for m in messages %}{{ m.role }}{% break %}{% endfor %}") == "system"
    )
