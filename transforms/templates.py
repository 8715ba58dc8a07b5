"""Chat templates: Jinja programs that turn a dialogue into text.

    template = read("models/qwen")
    template.render(turns)

They come with models and are run in a sandbox (`transforms/sandbox.py`).
"""

import dataclasses
import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.exceptions import TemplateError

from schemas import files
from schemas.dialogues import Turn
from transforms import checkpoint, sandbox
from transforms.meter import LimitError, Meter

DEFAULT = "default"
"""Name of the template that is used where none is named."""

FILES = ("*.json", "*.jinja")
"""Files of a model that hold its templates, and how its special tokens are spelled."""

_CONFIGS = ("special_tokens_map.json", "tokenizer_config.json")  # the later decides
_CLOCK = "strftime_now"
_UNDATED = (
    "must not depend on today's date, as the same corpus would be another tomorrow, but"
    " it asks for it; name a day by --chat_date, e.g. --chat_date=2024-07-26"
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A chat template, ready to render.

    Attributes:
      text: the program.
      tokens: spellings of special tokens that it may write, by name, e.g. `bos_token`.
      date: the day that it is told when it asks for today's, YYYY-MM-DD.
      name: what messages call it.
    """

    text: str
    tokens: Mapping[str, str]
    date: str | None = None
    name: str = "the chat template"

    @property
    def fingerprint(self) -> str:
        """Digests what its renderings depend on."""
        return files.digest([self.text, sorted(self.tokens.items()), self.date])

    def check(self) -> None:
        """Raises ValueError if it is no Jinja template, or has to know the day."""
        self._compiled()
        if self.date is None and _CLOCK in sandbox.variables(self.text):
            raise ValueError(f"{self.name} {_UNDATED}")

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
        begin, end = marks
        try:
            return self._compiled().render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=prompt,
                **{_CLOCK: self._today, sandbox.BEGIN: begin, sandbox.END: end},
                **{sandbox.METER: Meter()},
                **self.tokens,
            )
        except LimitError as error:
            raise RefusalError(f"{self.name} {error}") from error
        except TemplateError as error:
            raise RefusalError(self._told(error)) from error
        except _FAILURES as error:
            raise RefusalError(f"it fails with {type(error).__name__}") from error

    def _compiled(self) -> jinja2.Template:
        try:
            return _compiled(self.text)
        except ValueError as error:
            raise ValueError(f"{self.name} {error}") from error

    def _told(self, error: TemplateError) -> str:
        """Returns what a template says, unless that may quote the dialogue."""
        if error.message in self.looked_for():
            return error.message
        return f"with words that are not its own alone ({type(error).__name__})"

    def _today(self, form: str) -> str:
        """Says what day it is, for templates that write it."""
        if self.date is None:
            raise ValueError(f"{self.name} {_UNDATED}")
        return datetime.date.fromisoformat(self.date).strftime(form)


class RefusalError(ValueError):
    """A template does not take a dialogue; what `Render` declares."""


_FAILURES = (
    *(TypeError, ValueError, AttributeError, LookupError),
    *(ArithmeticError, RecursionError),
)
"""What expressions of a template raise that do not fit the dialogue."""


_compiled = functools.lru_cache(maxsize=8)(sandbox.compiled)
_strings = functools.lru_cache(maxsize=8)(sandbox.strings)


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
    found = checkpoint.fetch(model, FILES)
    if found.gguf_file is not None:
        own, tokens = _of_gguf(found.folder, found.gguf_file)
    else:
        own, tokens = _of_folder(found.folder), _tokens(found.folder)
    name = f"the chat template of {model}"
    if template is None or template in own:
        text = _named(own, template or DEFAULT, model)
    elif "{%" in template or "{{" in template:
        name, text = "the chat template given", template
    elif template.endswith(".jinja"):
        name = f"the chat template {template}"
        text = _decoded(files.read_bytes(template), template)
    else:
        text = _named(own, template, model)
    made = Template(text=text, tokens=tokens, date=date, name=name)
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
        " or a .jinja file by --chat_template"
    )


def _of_folder(folder: Path) -> dict[str, str]:
    """Reads the templates of a folder by name; files of their own come first."""
    found: dict[str, str] = {}
    for name in ("tokenizer_config.json", "chat_template.json"):
        told = _json(folder / name).get("chat_template")
        found |= _listed(told, folder / name)
    for path in sorted(folder.glob("additional_chat_templates/*.jinja")):
        found[path.stem] = _decoded(path.read_bytes(), path)
    if (path := folder / "chat_template.jinja").is_file():
        found[DEFAULT] = _decoded(path.read_bytes(), path)
    return found


def _listed(told: Any, path: Path) -> dict[str, str]:
    """Reads the templates that a configuration holds: one, or some with names."""
    if told is None:
        return {}
    listed = told if isinstance(told, list) else [{"name": DEFAULT, "template": told}]
    found: dict[str, str] = {}
    for one in listed:
        match one:
            case {"name": str(name), "template": str(text)}:
                found[name] = text
            case _:
                raise ValueError(
                    f"chat_template of {path} must be a text, or a list of objects of"
                    " name and template, texts both; mend it or fetch it again"
                )
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
    if not path.is_file():
        return {}
    try:
        told = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} must be JSON, but cannot be read ({error}); fetch it again"
        ) from error
    if not isinstance(told, dict):
        raise ValueError(f"{path} must hold a JSON object; fetch it again")
    return told


def _decoded(content: bytes, path: Path | str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} must be UTF-8, as every chat template, but is not ({error.reason}"
            f" at byte {error.start}); save it as UTF-8"
        ) from error


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
