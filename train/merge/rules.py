"""Rules: which tensors are merged how, by their state-dict keys.

The keys of a recipe's `[merge]` are the rule for all tensors; `[[merge.rules]]` go
before it, and the first whose pattern fits is taken::

    [merge]
    method = "ties"
    settings = { weight = { models = [0.7, 0.3] }, density = 0.6 }

    [[merge.rules]]
    pattern = "*.mlp.*"
    settings.density = { depth = [0.2, 0.8] }      # over the layers, first to last

    [[merge.rules]]
    pattern = "*norm*"
    method = "linear"                              # begins with its own defaults

    [[merge.rules]]
    pattern = "*.self_attn.*"
    layers = [0, 3]                                # of layers 0 to 3 of each stack
    settings.density = 0.2

    [[merge.rules]]
    pattern = "lm_head.*"
    take = "base"                                  # one model's, as it is

A value is one of these, and a bare list is none, as it could mean either of two::

    0.5                                   for all models, in all layers
    { depth = [0, 0.5, 1] }               in a line between these, over the layers
    { depth = [0, 1], outside = 0.5 }     and this for tensors that are of no layer
    { models = [0.7, 0.3] }               one for each model, in their order
    { models = { chat = 0.7, code = 0.3 } }            the same, by name
    { models = [{ depth = [0, 1] }, { depth = [1, 0] }] }
"""

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from schemas import settings as words
from train.merge import methods
from train.merge.layers import Layer
from train.merge.settings import unknown

ALL = "*"
"""The pattern of the rule for all tensors."""

BASE = "base"
"""What the base is called where a model is named."""

_KEYS = ("pattern", "layers", "method", "settings", "use_base", "take")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """How the tensors are merged whose keys a pattern fits.

    Attributes:
      pattern: for whole keys; `*` stands for anything, `?` for one character, `[ab]`
        for one of these, upper and lower case apart.
      method: the merge method; None where `take` is given.
      settings: of the method, as they are written.
      use_base: whether a method that can do without a base gets it, if there is one.
      take: the model whose tensor is taken as it is, or "base".
      layers: the first and the last layer, from 0, that it is for; None: for all
        tensors, those of no layer too.
    """

    pattern: str
    method: str | None
    settings: Mapping[str, Any]
    use_base: bool = True
    take: str | None = None
    layers: tuple[int, int] | None = None

    def fits(self, key: str, layer: Layer | None) -> bool:
        """Says whether the rule is for a tensor, given its key and layer."""
        if self.layers is not None:
            first, last = self.layers
            if layer is None or not first <= layer.index <= last:
                return False
        return fnmatch.fnmatchcase(key, self.pattern)

    @property
    def shown(self) -> str:
        """The rule as messages call it."""
        if self.layers is None:
            return repr(self.pattern)
        return f"{self.pattern!r} of layers {self.layers[0]} to {self.layers[1]}"

    def takes_base(self, has_base: bool) -> bool:
        """Says whether the method gets the base."""
        if self.method is None or not has_base:
            return False
        needs = methods.METHODS[self.method].base
        return needs == "needed" or (needs == "optional" and self.use_base)


def read_rules(
    method: str,
    settings: Mapping[str, Any],
    tables: Sequence[Any],
    names: Sequence[str],
    *,
    use_base: bool,
    has_base: bool,
) -> tuple[Rule, ...]:
    """Reads the rules of a recipe, the one for all tensors last.

    Args:
      method: for all tensors.
      settings: of it.
      use_base: whether it gets the base where it can do without.
      tables: `[[merge.rules]]`.
      names: of the models, in order.
      has_base: whether there is a base.

    Raises:
      ValueError: if a rule lacks a pattern, has an unknown key, or a method, setting
        or value that cannot be; names the rule.
    """
    last = Rule(pattern=ALL, method=method, settings=dict(settings), use_base=use_base)
    found = []
    for number, table in enumerate(tables, 1):
        where = f"rule {number} of [[merge.rules]]"
        if not isinstance(table, Mapping):
            raise ValueError(f"{where} must be a table, got {table!r}")
        found.append(_rule(table, last, where))
        _check(found[-1], names, f"{where} ({found[-1].shown})", has_base)
    _check(last, names, "[merge]", has_base)
    return (*found, last)


def _rule(table: Mapping[str, Any], last: Rule, where: str) -> Rule:
    """Reads one rule; without a method it goes on with the settings for all."""
    for key in table:
        if key not in _KEYS:
            near = words.suggestion(key, _KEYS)
            raise ValueError(
                f"{where} may hold {', '.join(_KEYS)}, got {key!r}{near}; settings of"
                f" the method are written as settings.{key} = ..."
            )
    pattern, own = table.get("pattern"), table.get("settings", {})
    if not isinstance(pattern, str) or not pattern:
        raise ValueError(
            f"{where} must hold 'pattern', a glob for keys as \"*.mlp.*\", got"
            f" {pattern!r}"
        )
    if not isinstance(own, Mapping):
        raise ValueError(f"{where}: settings must be a table, got {own!r}")
    take, method = table.get("take"), table.get("method")
    use_base = table.get("use_base", last.use_base)
    if not isinstance(use_base, bool):
        raise ValueError(f"{where}: use_base must be true or false, got {use_base!r}")
    layers = _layers(table.get("layers"), where)
    if take is not None:
        if not set(table) <= {"pattern", "layers", "take"}:
            raise ValueError(
                f"{where}: with 'take' nothing is merged, so beside it, the pattern and"
                f" layers nothing may stand, got {', '.join(table)}"
            )
        return Rule(
            pattern=pattern, method=None, settings={}, take=str(take), layers=layers
        )
    settings = own if method is not None else {**last.settings, **own}
    return Rule(
        pattern=pattern,
        method=str(method or last.method),
        settings=dict(settings),
        use_base=use_base,
        layers=layers,
    )


def _layers(given: Any, where: str) -> tuple[int, int] | None:
    """Reads which layers a rule is for."""
    if given is None:
        return None
    if (
        not isinstance(given, list | tuple)
        or [type(n) for n in given] != [int, int]
        or not 0 <= given[0] <= given[1]
    ):
        raise ValueError(
            f"{where}: layers must be the first and the last layer, counted from 0, as"
            f" [0, 3], got {given!r}"
        )
    first, last = given
    return first, last


def _check(rule: Rule, names: Sequence[str], where: str, has_base: bool) -> None:
    """Tries a rule on three numbers, so that slips show before any work."""
    if rule.take is not None:
        known = [*names, *([BASE] if has_base else [])]
        if rule.take not in known:
            near = words.suggestion(rule.take, known)
            raise ValueError(
                f"{where}: take must name one of {', '.join(known)}, got"
                f" {rule.take!r}{near}"
            )
        return
    try:
        _try(rule, names, has_base)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _try(rule: Rule, names: Sequence[str], has_base: bool) -> None:
    settings = settle(rule, names, Layer(stack="", index=1, count=3), "any tensor")
    assert rule.method is not None
    method = methods.METHODS[rule.method]
    if method.base == "needed" and not has_base:
        raise ValueError(
            f"{rule.method} merges differences from a base: give base, a model that all"
            " models were trained from"
        )
    if settings.get("granularity") in ("model", "layer"):
        settings = {**settings, "weights": [1 / len(names)] * len(names)}
    base = torch.tensor([1.0, -2.0, 3.0])
    models = [base + 0.1 * torch.eye(3)[j % 3] * (j + 1) for j in range(len(names))]
    generator = torch.Generator().manual_seed(0) if method.seeded else None
    given = base if rule.takes_base(has_base) else None
    try:
        methods.merge_tensors(rule.method, models, given, settings, generator)
    except ValueError as error:
        free = method.base == "optional" and given is not None
        cure = "; use_base = false keeps the base out of it"
        raise ValueError(f"{error}{cure * free}") from error


def rule_for(rules: Sequence[Rule], key: str, layer: Layer | None) -> Rule:
    """Returns the first rule that fits a tensor; the last one fits all."""
    return next(rule for rule in rules if rule.fits(key, layer))


def idle(rules: Sequence[Rule], found: Mapping[str, Layer | None]) -> list[Rule]:
    """Returns the rules that are never taken: slips, most likely.

    Args:
      rules: the rules.
      found: the layer of each tensor, by key.
    """
    used = {id(rule_for(rules, key, layer)) for key, layer in found.items()}
    return [rule for rule in rules[:-1] if id(rule) not in used]


def settle(
    rule: Rule, names: Sequence[str], layer: Layer | None, key: str
) -> dict[str, Any]:
    """Returns the settings of a rule's method for one tensor, all of them.

    Args:
      rule: the rule; it merges, and takes nothing.
      names: of the models, in order.
      layer: of the tensor.
      key: of the tensor, for messages.

    Raises:
      ValueError: if a value cannot be, or the method refuses it, or finds it itself.
    """
    assert rule.method is not None
    given = {
        name: _value(value, names, layer, f"{name} of {rule.method} for {key}")
        for name, value in rule.settings.items()
    }
    settled = methods.settle(rule.method, given, len(names))
    parameters = methods.METHODS[rule.method].parameters
    for name in given:
        if parameters[name].found:
            raise unknown(rule.method, parameters, name)
    return settled


def _value(value: Any, names: Sequence[str], layer: Layer | None, where: str) -> Any:
    """Returns a value for one tensor: one for all models, or a list of one for each."""
    if isinstance(value, list | tuple):
        raise ValueError(
            f"{where}: a list could be of the models or of the layers, got"
            f" {list(value)!r}; write {{ models = [...] }}, one for each of"
            f" {', '.join(names)}, or {{ depth = [...] }}, from the first layer to the"
            " last"
        )
    if not isinstance(value, Mapping):
        return value
    if "models" not in value:
        return _at_depth(value, layer, where)
    if len(value) > 1:
        raise ValueError(
            f"{where}: beside 'models' nothing may stand, got {sorted(value)}; a depth"
            " goes inside: { models = [{ depth = [...] }, ...] }"
        )
    listed = _by_model(value["models"], names, where)
    return [_single(one, layer, where) for one in listed]


def _by_model(listed: Any, names: Sequence[str], where: str) -> list[Any]:
    """Brings values by name or in order into the order of the models."""
    if isinstance(listed, Mapping):
        if set(listed) != set(names):
            raise ValueError(
                f"{where}: models must name each of {', '.join(names)}, got"
                f" {', '.join(listed)}"
            )
        return [listed[name] for name in names]
    if not isinstance(listed, list | tuple) or len(listed) != len(names):
        raise ValueError(
            f"{where}: models must be a list or table of {len(names)} values, for"
            f" {', '.join(names)}, got {listed!r}"
        )
    return list(listed)


def _single(value: Any, layer: Layer | None, where: str) -> Any:
    if isinstance(value, list | tuple):
        raise ValueError(
            f"{where}: the value of one model must be a single one or"
            f" {{ depth = [...] }}, got {list(value)!r}"
        )
    return _at_depth(value, layer, where) if isinstance(value, Mapping) else value


def _at_depth(value: Mapping[str, Any], layer: Layer | None, where: str) -> Any:
    """Interpolates numbers, spread evenly over the layers, at one of them.

    With n numbers y and a layer at depth d in [0, 1], x = d (n - 1) and i = floor(x):
    (1 - (x - i)) y[i] + (x - i) y[i + 1].
    """
    if not set(value) <= {"depth", "outside"} or "depth" not in value:
        raise ValueError(
            f"{where} must be a value, {{ depth = [...] }} or {{ models = [...] }}, got"
            f" {dict(value)!r}"
        )
    numbers = value["depth"]
    if (
        not isinstance(numbers, list | tuple)
        or len(numbers) < 2
        or not all(type(n) in (int, float) for n in numbers)
    ):
        raise ValueError(
            f"{where}: depth must be a list of two numbers or more, got {numbers!r}"
        )
    outside = value.get("outside")
    if "outside" in value and type(outside) not in (int, float):
        raise ValueError(f"{where}: outside must be a number, got {outside!r}")
    if layer is None:
        if "outside" not in value:
            raise ValueError(
                f"{where}: it is of no layer, so depth does not say its value; write"
                " { depth = [...], outside = VALUE }, or a rule for it"
            )
        return outside
    x = layer.depth * (len(numbers) - 1)
    low = min(int(x), len(numbers) - 2)
    return float((low + 1 - x) * numbers[low] + (x - low) * numbers[low + 1])
