"""Trials of a search: one file an arm, which is written anew after every trial.

An arm is one way to propose trials. Its file holds the trials so far and what its
strategy has learnt from them, as plain numbers, and is replaced by one rename: so at
every instant a kill leaves an arm between two trials. What a strategy proposes depends
on that file, the seed and the trial's number alone, so the same command goes on to the
same bytes.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from schemas import files
from schemas.arrays import Genes
from schemas.errors import SchemaError

VERSION = 1

DEAD = math.inf
"""The objective of a trial that has none: worse than any."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What measuring a merge on a split came to.

    Attributes:
      objective: what is minimized; NaN or infinite where it could not be formed.
      bits: bits per byte of each domain.
      accuracy: share of items answered, in [0, 1], of each task.
      error: why it could not be measured; None where it was.
    """

    objective: float
    bits: Mapping[str, float] = dataclasses.field(default_factory=dict)
    accuracy: Mapping[str, float] = dataclasses.field(default_factory=dict)
    error: str | None = None

    @property
    def rank(self) -> float:
        """The objective, or that of a dead trial where it is no finite number."""
        return self.objective if math.isfinite(self.objective) else DEAD


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One merge that was tried.

    Attributes:
      number: from 0.
      genes: as they were proposed.
      found: on the split that is searched on.
    """

    number: int
    genes: tuple[float, ...]
    found: Found

    @property
    def x(self) -> Genes:
        """Its genes."""
        return np.array(self.genes)


@runtime_checkable
class Strategy(Protocol):
    """A way to propose trials."""

    def propose(self, number: int) -> Genes:
        """Returns the genes of a trial."""

    def learn(self, trials: Sequence[Trial]) -> None:
        """Learns from trials 0 to n, of which only the last is new."""

    def state(self) -> dict[str, Any]:
        """Returns what it has learnt, as JSON values."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up what it had learnt."""


def seed_of(seed: int, number: int) -> int:
    """Returns the seed of a trial: of the search's and the trial's number alone.

    It is the first 4 bytes of blake2b over [seed, number], as numpy's and others'
    generators take no more.

    Example:
      >>> seed_of(0, 1) == seed_of(0, 1)
      True
      >>> seed_of(0, 1) == seed_of(1, 0)
      False
    """
    told = files.canonical_json([seed, number]).encode()
    return int.from_bytes(hashlib.blake2b(told, digest_size=4).digest(), "big")


def best(trials: Sequence[Trial]) -> Trial | None:
    """Returns the trial of least objective, the first of equal ones; None of the dead.

    That is where no trial has a finite objective.
    """
    found = min(trials, key=lambda trial: trial.found.rank)
    return None if found.found.rank == DEAD else found


def all_dead(trials: Sequence[Trial]) -> SchemaError:
    """Returns the error of a search of which no trial has an objective."""
    found = trials[0].found
    return SchemaError(
        f"one of {len(trials)} trials must have a finite objective, none has; of the"
        f" first: {found.error or f'its objective is {found.objective}'}; narrow the"
        " ranges of weight and lambda"
    )


def is_flat(trials: Sequence[Trial]) -> bool:
    """Says whether several trials all have one objective, so that none is chosen."""
    ranks = {trial.found.rank for trial in trials}
    return len(trials) > 1 and len(ranks) == 1 and DEAD not in ranks


def run_arm(
    path: str,
    identity: Mapping[str, Any],
    strategy: Strategy,
    budget: int,
    measure: Callable[[Genes], Found],
    *,
    progress: Callable[[Trial], None],
) -> list[Trial]:
    """Measures the trials of an arm that are not there yet.

    Args:
      path: the arm's file.
      identity: all that shapes it, as JSON values by name.
      strategy: proposes them.
      budget: how many there are in the end: so many calls of `measure`, no more.
      measure: of the merge that genes make.
      progress: is given every trial that is measured.

    Raises:
      SchemaError: if the file is of another search; names the first difference.
    """
    trials = _resume(path, identity, strategy)
    while len(trials) < budget:
        x = strategy.propose(len(trials))
        found = measure(x)
        genes = tuple(map(float, x))
        trials.append(Trial(number=len(trials), genes=genes, found=found))
        strategy.learn(trials)
        _write(path, identity, strategy, trials)
        progress(trials[-1])
    return trials[:budget]


def _resume(path: str, identity: Mapping[str, Any], strategy: Strategy) -> list[Trial]:
    """Reads the trials so far, and lets the strategy take up what it had learnt."""
    if not files.exists(path):
        return []
    told = files.read_json(path)
    refuse_other(path, told, identity)
    strategy.restore(told["strategy"])
    return read(path)


def read(path: str) -> list[Trial]:
    """Reads the trials of an arm's file."""
    told = files.read_json(path)["trials"]
    return [_trial(number, entry) for number, entry in enumerate(told)]


def refuse_other(path: str, told: Any, identity: Mapping[str, Any]) -> None:
    """Refuses a file of another search.

    Raises:
      SchemaError: if it is one; names the first difference.
    """
    if not isinstance(told, dict) or told.get("schema_version") != VERSION:
        raise SchemaError(
            f"{path} must be of a search, of schema version {VERSION}, and is not;"
            " remove it, or choose another folder"
        )
    had = told["identity"]
    for key in sorted({*had, *identity}):
        if had.get(key) != _plain(identity.get(key)):
            raise SchemaError(
                f"{path} was made with {key} = {had.get(key)!r}, and now it is"
                f" {identity.get(key)!r}; choose another folder, remove this file, or"
                " pass --overwrite to search all anew"
            )


def _plain(value: Any) -> Any:
    """Returns a value as it comes back from JSON."""
    return json.loads(files.canonical_json(value))


def _write(
    path: str,
    identity: Mapping[str, Any],
    strategy: Strategy,
    trials: Sequence[Trial],
) -> None:
    told = {
        "schema_version": VERSION,
        "identity": dict(identity),
        "strategy": strategy.state(),
        "trials": [_entry(trial) for trial in trials],
    }
    files.write_json(path, told)


def as_json(found: Found) -> dict[str, Any]:
    """Writes a result as JSON values; an objective that is no finite number is null."""
    value = found.objective
    finite = value if math.isfinite(value) else None
    return {**dataclasses.asdict(found), "objective": finite}


def from_json(told: Mapping[str, Any]) -> Found:
    """Reads a result."""
    value = told["objective"]
    return Found(**{**told, "objective": DEAD if value is None else value})


def _entry(trial: Trial) -> dict[str, Any]:
    return {"genes": list(trial.genes), **as_json(trial.found)}


def _trial(number: int, entry: Mapping[str, Any]) -> Trial:
    told = dict(entry)
    genes = tuple(told.pop("genes"))
    return Trial(number=number, genes=genes, found=from_json(told))
