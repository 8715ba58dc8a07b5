"""By what slices of scores were computed, on which their last bits depend.

A worker computes by the best that it has: another may lack a package for attention, or
a compiler. Each file's footer says what it was; a manifest counts the files of each.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from schemas import files, manifest, parquet
from schemas.errors import SchemaError
from schemas.manifest import Manifest

_SLICES = "slices:"
_SHOWN = 20
"""Ranges of slices that are named of each kind."""


def way_of(footer: Mapping[str, Any]) -> str | None:
    """Returns by what a slice was computed; None where it was given up.

    Files from before do not say what reduced their logits.
    """
    if (way := footer.get("way")) is None:
        return None
    reduction = footer.get("reduction")
    return str(way) if reduction is None else f"{way}, logits by {reduction}"


def count(footers: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Counts slices by what they were computed by; returns counts for a manifest."""
    found = Counter(way for footer in footers if (way := way_of(footer)))
    return {f"{_SLICES}{way}": n for way, n in sorted(found.items())}


def counted(counts: Mapping[str, int]) -> dict[str, int]:
    """Returns the slices of each way, of a manifest's counts; none in old ones."""
    return {
        key.removeprefix(_SLICES): n
        for key, n in counts.items()
        if key.startswith(_SLICES)
    }


def spoken(counts: Mapping[str, int]) -> str:
    """Writes the slices of each way, of a manifest's counts; "" where none are told."""
    found = counted(counts)
    return "; ".join(f"{n:,} slices {way}" for way, n in found.items())


def check(folder: str, made: Manifest) -> None:
    """Checks that slices were computed as the manifest states, if it does.

    Raises:
      SchemaError: if their footers say otherwise.
    """
    found = counted(count(list(_footers(folder, made).values())))
    stated = counted(made.counts)
    if stated and stated != found:
        raise SchemaError(
            f"{folder} must have slices computed as its manifest states, {stated}, the"
            f" files say {found}"
        )


def mixed(folder: str, made: Manifest) -> list[str]:
    """Says where slices of a folder were computed by different things, and the cure.

    Returns:
      One line, or none where all are alike.
    """
    if len(counted(made.counts)) == 1:
        return []
    places: dict[str, list[int]] = {}
    for place, footer in enumerate(_footers(folder, made).values()):
        if way := way_of(footer):
            places.setdefault(way, []).append(place)
    if len(places) < 2:
        return []
    told = "; ".join(
        f"{len(slices):,} ({_ranges(slices)}) {way}"
        for way, slices in sorted(places.items())
    )
    return [
        f"{folder}: slices were not all computed alike, so that their last bits depend"
        f" on who made them: {told}. They are whole, and fit each other; for the same"
        f" bytes wherever they are made, give all workers the same packages and GPUs,"
        f" remove the files of one kind and {manifest.NAME}, and repeat the command"
    ]


def _footers(folder: str, made: Manifest) -> dict[str, dict[str, Any]]:
    names = [entry.name for entry in made.files]
    found = files.each(lambda name: parquet.footer(files.join(folder, name)), names)
    return dict(zip(names, found, strict=True))


def _ranges(slices: Sequence[int]) -> str:
    """Writes numbers of slices, rising, as --slices takes them: 0-4, 7, 9-12."""
    runs: list[list[int]] = []
    for place in slices:
        if runs and runs[-1][-1] == place - 1:
            runs[-1][-1] = place
        else:
            runs.append([place, place])
    told = [str(a) if a == b else f"{a}-{b}" for a, b in runs[:_SHOWN]]
    return ", ".join([*told, *(["and more"] if len(runs) > _SHOWN else [])])
