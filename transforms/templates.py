"""Chat templates: Jinja programs that turn a dialogue into text.

    template = read("models/qwen")
    template.render(turns)

They come with models and are run in Jinja's sandbox, set up as transformers sets it up:
no code but the template's own is run, and it can change nothing of what it is given.
"""

import dataclasses
import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import ext, meta, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from schemas import files
from schemas.dialogues import Turn
from transforms import checkpoint

DEFAULT = "default"
"""Name of the template that is used where none is named."""

_CONFIGS = ("special_tokens_map.json", "tokenizer_config.json")  # the later decides
_FILES = ("*.json", "*.jinja")
_BEGIN, _END = "generation_begins", "generation_ends"
_CLOCK = "strftime_now"
_UNDATED = (
    "a chat template must not depend on today's date, as the same corpus would be"
    " another tomorrow, but this one asks for it; name a day by --chat_date, e.g."
    " --chat_date=2024-07-26"
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A chat template, ready to render.

    Attributes:
      text: the program.
      tokens: spellings of special tokens that it may write, by name, e.g. `bos_token`.
      date: the day that it is told when it asks for today's, YYYY-MM-DD.
    """

    text: str
    tokens: Mapping[str, str]
    date: str | None = None

    @property
    def fingerprint(self) -> str:
        """Digests what its renderings depend on."""
        return files.digest([self.text, sorted(self.tokens.items()), self.date])

    def check(self) -> None:
        """Raises ValueError if it is no Jinja template, or has to know the day."""
        _compiled(self.text)
        told = meta.find_undeclared_variables(_environment().parse(self.text))
        if self.date is None and _CLOCK in told:
            raise ValueError(_UNDATED)

    def looked_for(self) -> tuple[str, ...]:
        """Lists the strings in its expressions: what it may look for in a turn."""
        return _strings(self.text)

    def render(
        self,
        turns: Sequence[Turn],
        *,
        prompt: bool = False,
        marks: tuple[str, str] = ("", ""),
    ) -> str:
        """Renders turns.

        Args:
          turns: the dialogue.
          prompt: whether the assistant is to go on from there.
          marks: written around each `{% generation %}` block.

        Raises:
          RefusalError: if the template refuses them, or fails; quotes nothing of them.
        """
        messages = [{"role": t.role, "content": t.content} for t in turns]
        try:
            return _compiled(self.text).render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=prompt,
                **{_CLOCK: self._today, _BEGIN: marks[0], _END: marks[1]},
                **self.tokens,
            )
        except TemplateError as error:
            raise RefusalError(self._told(error)) from error
        except _FAILURES as error:
            raise RefusalError(f"it fails with {type(error).__name__}") from error

    def _told(self, error: TemplateError) -> str:
        """Returns what a template says, unless that may quote the dialogue."""
        if error.message in self.looked_for():
            return error.message
        return f"with words that are not its own alone ({type(error).__name__})"

    def _today(self, form: str) -> str:
        """Says what day it is, for templates that write it."""
        if self.date is None:
            raise ValueError(_UNDATED)
        return datetime.date.fromisoformat(self.date).strftime(form)


class RefusalError(ValueError):
    """A template does not take a dialogue; what `Render` declares."""


_FAILURES = (
    *(TypeError, ValueError, AttributeError, LookupError),
    *(ArithmeticError, RecursionError),
)
"""What expressions of a template raise that do not fit the dialogue."""


class _Generation(ext.Extension):
    """`{% generation %}`: writes marks around what it holds."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Any) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begin, end = (
            nodes.Output([nodes.Name(name, "load")], lineno=line)
            for name in (_BEGIN, _END)
        )
        return [begin, nodes.Scope(body, lineno=line), end]


class _Namespace(Namespace):
    """`namespace()` of templates: nothing of Python's own can be set on it."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace's names must not begin with _: {name!r}")
        super().__setitem__(name, value)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _to_json(value: Any, **options: Any) -> str:
    """Writes JSON as it is, where Jinja's own filter would escape it for HTML."""
    return json.dumps(value, **{"ensure_ascii": False, **options})


@functools.lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, ext.loopcontrols],
    )
    made.filters["tojson"] = _to_json
    del made.filters["random"], made.globals["lipsum"]  # another text each time
    made.globals["raise_exception"] = _refuse
    made.globals["namespace"] = _Namespace
    return made


@functools.lru_cache(maxsize=8)
def _compiled(text: str) -> jinja2.Template:
    try:
        return _environment().from_string(text)
    except TemplateError as error:
        raise ValueError(
            f"a chat template must be a Jinja template, this one is not: {error}"
        ) from error


@functools.lru_cache(maxsize=8)
def _strings(text: str) -> tuple[str, ...]:
    found = _environment().parse(text).find_all(nodes.Const)
    return tuple({c.value: None for c in found if isinstance(c.value, str)})


def read(
    model: str, template: str | None = None, *, date: str | None = None
) -> Template:
    """Reads a model's template, or another with the model's special tokens.

    Args:
      model: a folder or a `*.gguf` file, local or in a bucket, or a name on the hub.
      template: a name among the model's templates, a `.jinja` file, or the template
        itself; None = the model's own.
      date: the day that a template is told when it asks for today's.

    Raises:
      FileNotFoundError: if there is no such model or file.
      ValueError: if the model has no such template, or it is no Jinja template.
    """
    found = checkpoint.fetch(model, _FILES)
    if found.gguf_file is not None:
        own, tokens = _of_gguf(found.folder, found.gguf_file)
    else:
        own, tokens = _of_folder(found.folder), _tokens(found.folder)
    if template is None or template in own:
        text = _named(own, template or DEFAULT, model)
    elif "{%" in template or "{{" in template:
        text = template
    elif template.endswith(".jinja"):
        text = files.read_bytes(template).decode()
    else:
        text = _named(own, template, model)
    made = Template(text=text, tokens=tokens, date=date)
    made.check()
    return made


def _named(own: Mapping[str, str], name: str, model: str) -> str:
    """Returns a template by its name.

    Raises:
      ValueError: if the model has none of that name; says which it has.
    """
    if name in own:
        return own[name]
    has = f"it has {', '.join(sorted(own))}" if own else "it has none"
    raise ValueError(
        f"{model} must have a chat template called {name!r}, {has}; name one of its own"
        " or a .jinja file by --chat_template, or a model that has one by --chat_model"
    )


def _of_folder(folder: Path) -> dict[str, str]:
    """Reads the templates of a folder by name; files of their own come first."""
    found: dict[str, str] = {}
    for name in ("tokenizer_config.json", "chat_template.json"):
        told = _json(folder / name).get("chat_template")
        if isinstance(told, str):
            found[DEFAULT] = told
        elif isinstance(told, list):
            found |= {one["name"]: one["template"] for one in told}
    for path in sorted(folder.glob("additional_chat_templates/*.jinja")):
        found[path.stem] = path.read_text("utf-8")
    if (path := folder / "chat_template.jinja").is_file():
        found[DEFAULT] = path.read_text("utf-8")
    return found


def _tokens(folder: Path) -> dict[str, str]:
    """Reads how a folder's tokenizer spells its special tokens."""
    spelled: dict[str, str] = {}
    for name in _CONFIGS:
        for key, token in _json(folder / name).items():
            if key.endswith("_token"):
                text = token.get("content") if isinstance(token, dict) else token
                if isinstance(text, str):
                    spelled[key] = text
    return spelled


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def _of_gguf(folder: Path, file: str) -> tuple[dict[str, str], dict[str, str]]:
    """Reads templates and special tokens of a GGUF file."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(
        str(folder), gguf_file=file, trust_remote_code=False
    )
    told = loaded.chat_template
    own = told if isinstance(told, dict) else {DEFAULT: told} if told else {}
    tokens = {k: str(t) for k, t in loaded.special_tokens_map.items()}
    return own, {k: t for k, t in tokens.items() if k.endswith("_token")}
