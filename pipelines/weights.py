"""Weights given by hand: NAME=W for each candidate, DOMAIN:NAME=W where it differs."""

import dataclasses
import math
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """What each candidate weighs.

    Attributes:
      everywhere: by candidate.
      by_domain: by domain, what differs there, by candidate.
    """

    everywhere: Mapping[str, float]
    by_domain: Mapping[str, Mapping[str, float]]

    def shares(self, names: Sequence[str]) -> tuple[float, ...]:
        """Returns the weights of candidates, in their order."""
        return tuple(self.everywhere[name] for name in names)

    def domain_shares(self, names: Sequence[str]) -> dict[str, tuple[float, ...]]:
        """Returns the same for each domain that has weights of its own."""
        return {
            domain: tuple({**self.everywhere, **own}[name] for name in names)
            for domain, own in self.by_domain.items()
        }


def parse(
    weights: Sequence[str], domain_weights: Sequence[str], names: Sequence[str]
) -> Weights:
    """Reads the weights of the candidates `names`.

    A domain may be called anything; a candidate's name has no colon and no equals sign.

    Raises:
      ValueError: if an entry is malformed or names no candidate, or if a candidate has
        no weight, or two; or if nothing weighs anything, everywhere or in a domain.
    """
    everywhere: dict[str, float] = {}
    by_domain: dict[str, dict[str, float]] = {}
    for entry in weights:
        name, weight = _entry(entry, "weights", "NAME=W", names)
        _put(everywhere, name, weight, "weights")
    for entry in domain_weights:
        domain, colon, rest = _before_name(entry)
        if not (colon and domain):
            raise ValueError(f"domain_weights must be DOMAIN:NAME=W, got {entry!r}")
        name, weight = _entry(rest, "domain_weights", "DOMAIN:NAME=W", names)
        _put(by_domain.setdefault(domain, {}), name, weight, "domain_weights")
    if missing := [name for name in names if name not in everywhere]:
        raise ValueError(
            f"weights must name every candidate, {', '.join(names)}, but lack"
            f" {', '.join(missing)}; add {missing[0]}=0 to leave it out"
        )
    found = Weights(everywhere=everywhere, by_domain=by_domain)
    for where, shares in {
        "": found.shares(names),
        **found.domain_shares(names),
    }.items():
        if not any(shares):
            raise ValueError(
                "weights must be above 0 for some candidate, but all are 0"
                + f" in domain {where!r}" * bool(where)
            )
    return found


def _before_name(entry: str) -> tuple[str, str, str]:
    """Cuts DOMAIN:NAME=W at the colon in front of the name."""
    left, equals, weight = entry.rpartition("=")
    domain, colon, name = left.rpartition(":")
    return domain, colon, name + equals + weight


def _entry(entry: str, key: str, form: str, names: Sequence[str]) -> tuple[str, float]:
    name, equals, text = entry.rpartition("=")
    if not equals or name not in names:
        raise ValueError(
            f"{key} must be {form} with a candidate's name, one of {', '.join(names)},"
            f" got {entry!r}"
        )
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise ValueError(
            f"{key} must be {form} with W a number of at least 0, got {entry!r}"
        )
    return name, weight


def _put(found: dict[str, float], name: str, weight: float, key: str) -> None:
    if name in found:
        raise ValueError(f"{key} must name each candidate once, {name} stands twice")
    found[name] = weight
