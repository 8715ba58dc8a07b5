"""The branches of a recipe: what is fused, what is trained on it, what is merged.

    scores of       ┌─ fused: all sources ──── [arms.NAME] ─────────┐
    the target and ─┼─ [fusions.NAME]: some ── [arms.NAME] ─────────┼─ [merges.NAME]
    every source    └─ [pairs]: n times one ── pair.SOURCE, n arms ─┤
    sources themselves ─────────────────────────────────────────────┘

Pairwise fusion (Wan et al. 2024, FuseChat, arXiv 2402.16107, section 3) trains a target
on each source alone, beside the pivot, which is the target as it was, and merges the
targets; many-to-one fusion trains one on all of them.
"""

import dataclasses
import graphlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from schemas import settings

Table = Mapping[str, Any]

ALL_SOURCES = "fused"
"""The fusion of all sources, and the arm on it where a recipe names none."""

ONE_MERGE = "merged"
"""The merge of a recipe that has [merge] alone."""

PAIR, FUSION, MERGE, SOURCE = "pair.", "fusion.", "merge.", "source."
ENSEMBLE = "ensemble."
"""What the names of these begin with, where one name could be of any."""

UNTOUCHED = "untouched"
"""The target as it was, in tables."""

SWEPT = "learning_rate"
"""The setting of an arm that may be a list, of which the dev split chooses."""

_ENSEMBLE_KEYS = ("models", "weights")

_BESIDE_PAIRS = {"granularity": "document"}
"""What fusions have unless told where there is [pairs]: they choose by dialogue.

All of them, so that what is told of pairs and many-to-one differs in the sources alone.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fusion:
    """One way to fuse scores.

    Attributes:
      name: in folders.
      sources: that teach, by name.
      settings: of fuse, the shared ones of `[fuse]` among them.
      where: the tables that they are from.
    """

    name: str
    sources: tuple[str, ...]
    settings: Table
    where: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to continue the target.

    Attributes:
      name: its name in tables and folders.
      fusions: names of the fusions that it is trained on.
      settings: what its table holds beside the shared settings of `[train]`.
      rates: learning rates to choose from on the dev split; empty where one is given.
    """

    name: str
    fusions: tuple[str, ...]
    settings: Table
    rates: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Merge:
    """One way to make one model of several.

    Attributes:
      name: in folders.
      models: what is merged: arms by name, merges and sources as `merge.NAME` and
        `source.NAME`.
      settings: of merge, the shared ones of `[merge]` among them.
    """

    name: str
    models: tuple[str, ...]
    settings: Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Models that are measured as one: the mean of their next-token probabilities.

    Attributes:
      name: in its row of the table.
      models: two or more, by names as of merges.
      weights: of the models, as its table has them; empty: all alike.
    """

    name: str
    models: tuple[str, ...]
    weights: tuple[float, ...]


def pairs_of(given: Table) -> dict[str, str]:
    """Returns the source of each pair by the name of its fusion and arm."""
    if "pairs" not in given:
        return {}
    named = _names(given["pairs"], "[pairs]", "sources", given["sources"], "sources")
    return {f"{PAIR}{name}": name for name in named or given["sources"]}


def _check_pairs(tables: Table, kind: str, pairs: Collection[str]) -> None:
    """Refuses a name of a pair that [pairs] does not make: a slip, most likely."""
    for name in tables if pairs else ():
        if name.startswith(PAIR) and name not in pairs:
            raise ValueError(
                f'[{kind}."{name}"]: with [pairs] a name that begins with {PAIR!r} must'
                f" be one of {', '.join(pairs)}{settings.suggestion(name, pairs)}"
            )


def fusions_of(given: Table) -> dict[str, Fusion]:
    """Reads the fusions of a recipe; the one of all sources is always among them.

    Raises:
      ValueError: if one is called as no fusion may be, or names what is no source.
    """
    shared, tables = given.get("fuse", {}), given.get("fusions", {})
    pairs = pairs_of(given)
    _check_pairs(tables, "fusions", pairs)
    found = {ALL_SOURCES: (tuple(given["sources"]), dict(shared), "[fuse]")}
    for name, source in pairs.items():
        own, where = dict(tables.get(name, {})), "[fuse] and [pairs]"
        if name in tables:
            where = f'[fuse], [pairs] and [fusions."{name}"]'
        if "sources" in own:
            raise ValueError(f"{where}: sources must be left out, [pairs] says them")
        own = {**given["pairs"], **own}
        own.pop("sources", None)
        found[name] = (source,), {**shared, **own}, where
    for name, table in tables.items():
        if name == ALL_SOURCES:
            raise ValueError(
                f"[fusions.{name}]: no fusion may be called {name!r}, which is [fuse]"
                " with all sources"
            )
        if name not in found:
            own, where = dict(table), f"[fusions.{name}]"
            named = _names(own, where, "sources", given["sources"], "sources")
            own.pop("sources", None)
            sources = named or tuple(given["sources"])
            found[name] = sources, {**shared, **own}, f"[fuse] and {where}"
    return {
        name: Fusion(
            name=name,
            sources=sources,
            settings=_beside_pairs(own) if pairs else own,
            where=where,
        )
        for name, (sources, own, where) in found.items()
    }


def _beside_pairs(given: Table) -> Table:
    """Lets costs be of documents, but where fuse asks for none or for others."""
    if given.get("fusion") == "static" or given.get("reference"):
        return given
    return {**_BESIDE_PAIRS, **given}


def arms_of(given: Table, fusions: Collection[str]) -> tuple[Arm, ...]:
    """Reads the arms of a recipe, those of its pairs last.

    Args:
      given: the recipe.
      fusions: names of its fusions.

    Raises:
      ValueError: if one is called as no arm may be, is trained on what is no fusion,
        or lists learning rates that are none.
    """
    pairs = pairs_of(given)
    # Without [arms] every fusion has one, and that of all sources where it is alone.
    lone = [name for name in fusions if name != ALL_SOURCES] or [ALL_SOURCES]
    tables: Table = given.get("arms", {name: {} for name in lone})
    _check_pairs(tables, "arms", pairs)
    if not (tables or pairs):
        raise ValueError("[arms] must hold an arm, or be left out")
    names = [*(name for name in tables if name not in pairs), *pairs]
    return tuple(_arm(n, tables.get(n, {}), n in pairs, fusions) for n in names)


def _arm(name: str, table: Table, paired: bool, fusions: Collection[str]) -> Arm:
    if name == UNTOUCHED or name.startswith((SOURCE, FUSION, MERGE, ENSEMBLE)):
        raise ValueError(f"[arms.{name}]: no arm may be called {name!r}")
    own = dict(table)
    if paired and "fusion" in own:
        raise ValueError(
            f'[arms."{name}"]: fusion must be left out, [pairs] says it, got'
            f" {own['fusion']!r}"
        )
    # An arm called as a fusion is trained on it, unless told.
    given = own.pop("fusion", name if name in fusions else ALL_SOURCES)
    listed = given if isinstance(given, list) else [given]
    for fusion in listed or [given]:
        if not isinstance(fusion, str) or fusion not in fusions:
            raise ValueError(
                f"[arms.{name}]: fusion must be one of {', '.join(fusions)}, or a list"
                f" of them, got {fusion!r}{settings.suggestion(str(fusion), fusions)}"
            )
        if listed.count(fusion) > 1:
            raise ValueError(
                f"[arms.{name}]: fusion must name each once, got {fusion!r} twice; a"
                " greater share of it is given by data_weights"
            )
    rates: tuple[float, ...] = ()
    if isinstance(own.get(SWEPT), list):
        rates = _rates(name, own.pop(SWEPT))
    return Arm(name=name, fusions=tuple(listed), settings=own, rates=rates)


def _rates(name: str, listed: list[Any]) -> tuple[float, ...]:
    numbers = [rate for rate in listed if type(rate) in (int, float)]
    if not listed or len({f"{rate:g}" for rate in numbers}) != len(listed):
        raise ValueError(
            f"[arms.{name}]: {SWEPT} must be a number or a list of numbers, each once,"
            f" got {listed!r}"
        )
    return tuple(map(float, numbers))


def merges_of(given: Table, arms: Sequence[str]) -> tuple[Merge, ...]:
    """Reads the merges of a recipe, each behind those that it takes.

    Args:
      given: the recipe.
      arms: names of its arms.

    Raises:
      ValueError: if one names what is neither arm, merge nor source, or takes itself.
    """
    tables = merge_tables(given)
    known = _made_and_given(given, arms)
    shared, found = given.get("merge", {}), {}
    for name, table in tables.items():
        where = f"[merges.{name}]"
        if name == ONE_MERGE and "merges" in given:
            raise ValueError(
                f"{where}: no merge may be called {name!r}, which is [merge] alone"
            )
        own = over(shared, table)
        models = _names(own, where, "models", known, "arms, merges and sources")
        own.pop("models", None)
        models = models or tuple(pairs_of(given))
        if not models:
            raise ValueError(
                f"{where} must hold 'models', the names of arms or sources to merge:"
                " without [pairs] nothing says them"
            )
        found[name] = Merge(name=name, models=models, settings=own)
    return tuple(found[name] for name in _in_order(found))


def _made_and_given(given: Table, arms: Sequence[str]) -> list[str]:
    """Returns the names of all that can be merged, or measured as one."""
    merges = (f"{MERGE}{name}" for name in merge_tables(given))
    return [*arms, *merges, *(f"{SOURCE}{name}" for name in given["sources"])]


def ensembles_of(given: Table, arms: Sequence[str]) -> tuple[Ensemble, ...]:
    """Reads the ensembles of a recipe, of all sources where they name no models.

    Raises:
      ValueError: if one holds another key, or fewer than two models.
    """
    known, found = _made_and_given(given, arms), []
    for name, table in given.get("ensembles", {}).items():
        where = f"[ensembles.{name}]"
        for key in table:
            if key not in _ENSEMBLE_KEYS:
                raise ValueError(
                    f"{where} may hold {' and '.join(_ENSEMBLE_KEYS)}, got {key!r}"
                    f"{settings.suggestion(key, _ENSEMBLE_KEYS)}"
                )
        named = _names(table, where, "models", known, "arms, merges and sources")
        models = named or tuple(f"{SOURCE}{source}" for source in given["sources"])
        if len(models) < 2:
            raise ValueError(f"{where} must be of two models or more, got {models[0]}")
        weights = table.get("weights", [])
        if not isinstance(weights, list) or {*map(type, weights)} - {int, float}:
            raise ValueError(
                f"{where}.weights must be a list of numbers, got {weights!r}"
            )
        told = tuple(map(float, weights))
        found.append(Ensemble(name=name, models=models, weights=told))
    return tuple(found)


def merge_tables(given: Table) -> Table:
    """Returns the tables of the merges of a recipe by name; [merge] alone is one."""
    alone: Table = {ONE_MERGE: {}} if "merge" in given else {}
    tables: Table = given.get("merges", alone)
    return tables


def over(shared: Table, own: Table) -> dict[str, Any]:
    """Lays a merge's table, or flags, over [merge]; settings go with their method.

    Where the table names another method, those of [merge] fall away, and those of its
    rules that name no method.
    """
    method = shared.get("method")
    if method is None or own.get("method", method) == method:
        return {**shared, **own}
    kept = {key: value for key, value in shared.items() if key != "settings"}
    if isinstance(kept.get("rules"), list):
        kept["rules"] = [_without_settings(rule) for rule in kept["rules"]]
    return {**kept, **own}


def _without_settings(rule: Any) -> Any:
    if not isinstance(rule, Mapping) or "method" in rule:
        return rule
    return {key: value for key, value in rule.items() if key != "settings"}


def _in_order(merges: Mapping[str, Merge]) -> list[str]:
    """Returns the names of merges, each behind those that it takes."""
    graph = {
        name: [m.removeprefix(MERGE) for m in made.models if m.startswith(MERGE)]
        for name, made in merges.items()
    }
    try:
        return list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        circle = " takes ".join(reversed(error.args[1]))
        raise ValueError(
            f"[merges]: no merge may take itself, but {circle}; take one of them out"
            " of another's models"
        ) from error


def _names(
    table: Table, where: str, key: str, known: Collection[str], kind: str
) -> tuple[str, ...]:
    """Reads a list of names; empty where there is none.

    Raises:
      ValueError: if it is no list of `known` names, each once.
    """
    if key not in table:
        return ()
    listed = table[key]
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"{where}.{key} must be a list of names, got {listed!r}")
    for name in listed:
        if name not in known or listed.count(name) > 1:
            raise ValueError(
                f"{where}.{key} must name {kind}, which are {', '.join(known)}, each"
                f" once, got {name!r}{settings.suggestion(str(name), known)}"
            )
    return tuple(listed)
