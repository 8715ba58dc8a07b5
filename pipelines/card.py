"""The model card of a merged model: README.md, which says how it came to be."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from schemas import files
from schemas.manifest import FileEntry
from schemas.version import VERSION
from train.merge import methods, rules
from train.merge.inputs import Input

NAME = "README.md"


def text(
    models: Sequence[Input],
    settings: Mapping[str, Any],
    prints: Mapping[str, Any],
    notes: Sequence[str],
    measured: Mapping[str, Sequence[float]],
) -> str:
    """Writes the card, but for the checksums.

    Args:
      models: the inputs.
      settings: those that shape the merged model.
      prints: fingerprints of what it is made of.
      notes: what was taken for what.
      measured: weights that a first pass has found, by what they are of.
    """
    named = {one.name: spoken(one) for one in models}
    names = settings["models"]
    title = ", ".join(named[name] for name in names)
    keys = {name: name if name == rules.BASE else f"model:{name}" for name in named}
    rows = [(name, named[name], prints[keys[name]]) for name in named]
    cited = "\n".join(
        f"- `{name}`: {methods.METHODS[name].source}" for name in _methods(settings)
    )
    parts = [
        f"---\nlibrary_name: transformers\ntags: [fusebeam, merge]\n---\n# {title},"
        f" merged by {settings['method']}\n\nMerged with FuseBeam {VERSION}. The"
        " licenses of all models below apply.\n",
        _table(("name", "model", "fingerprint"), rows),
        f"## Recipe\n\n```toml\n{_recipe(named, settings)}```\n",
        f"## Methods\n\n{cited}\n",
    ]
    if measured:
        listed = [[of, *(f"{w:.6f}" for w in found)] for of, found in measured.items()]
        parts.append(f"## Weights, as measured\n\n{_table(['of', *names], listed)}")
    if notes:
        parts.append("## Notes\n\n" + "".join(f"- {note}\n" for note in notes))
    return "\n".join(parts)


def checksums(entries: Sequence[FileEntry]) -> str:
    """Writes the last part of the card: what its weights are checked by."""
    rows = [(entry.name, f"{entry.bytes:,}", entry.sha256) for entry in entries]
    return f"\n## Checksums\n\n{_table(('file', 'bytes', 'SHA-256'), rows)}"


def spoken(one: Input) -> str:
    """Returns what a card calls a model: of the hub with its commit, else its folder.

    Of a path that is the last part.
    """
    return one.pinned if one.commit is not None else files.name_of(one.model)


def _methods(settings: Mapping[str, Any]) -> list[str]:
    """Lists the methods that a recipe names, each once."""
    listed = (rule.get("method") for rule in settings["rules"])
    return list(dict.fromkeys([settings["method"], *filter(None, listed)]))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _recipe(named: Mapping[str, str], settings: Mapping[str, Any]) -> str:
    """Writes the settings as the recipe that gives them."""
    plain = {k: v for k, v in settings.items() if k not in ("models", "rules")}
    if not plain["settings"]:
        del plain["settings"]
    given = {
        "models": {name: named[name] for name in settings["models"]},
        **({rules.BASE: named[rules.BASE]} if rules.BASE in named else {}),
        **plain,
    }
    return merge_table(given, settings["rules"])


def merge_table(given: Mapping[str, Any], tables: Sequence[Mapping[str, Any]]) -> str:
    """Writes a table `[merge]` and its rules as TOML."""
    lines = ["[merge]", *_lines(given)]
    for rule in tables:
        lines += ["", "[[merge.rules]]", *_lines(rule)]
    return "\n".join(lines) + "\n"


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {toml(v)}" for key, v in table.items() if v is not None]


def toml(value: Any) -> str:
    """Writes a value as TOML reads it.

    Example:
      >>> toml({"weight": {"models": [0.5, 1]}, "normalize": True})
      '{ "weight" = { "models" = [0.5, 1] }, "normalize" = true }'
    """
    if isinstance(value, Mapping):
        inner = ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value)
