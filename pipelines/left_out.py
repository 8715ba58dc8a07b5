"""Counts the documents that prepare left out, by reason."""

from collections import Counter
from collections.abc import Sequence

from schemas import files, parquet
from schemas.errors import FusionError
from transforms import prepare, rejects
from transforms.prepare import Cut, Unit


def count(
    cut: Cut, units: Sequence[Unit], inputs: Sequence[str], max_fraction: float
) -> Counter[str]:
    """Counts what was left out by reason, and refuses too many rejects.

    Args:
      cut: how the corpus was cut.
      units: its files.
      inputs: what the command calls them.
      max_fraction: share of the documents that may be rejected.

    Raises:
      FusionError: if there are too many, or a part is of another command's settings.
    """
    folder = files.join(cut.output, prepare.REJECTS)
    reasons: Counter[str] = Counter()
    lists = [files.join(folder, unit.rejects) for unit in units]
    contents = files.each(files.read_bytes, lists)
    for content in contents:
        reasons.update(rejects.reason_of(line) for line in content.splitlines())
    parts = [
        files.join(cut.output, split, unit.part)
        for split in cut.splits
        for unit in units
    ]
    footers = files.each(parquet.footer, parts)
    own = [cut.unit_fingerprint(unit) for _ in cut.splits for unit in units]
    beside = [content for _ in cut.splits for content in contents]
    for part, footer, wanted, listed in zip(parts, footers, own, beside, strict=True):
        if footer["fingerprint"] != wanted or not rejects.belongs(listed, footer):
            raise FusionError(
                f"{part} must be of this command's settings when its folder is"
                " described, but another command wrote it anew meanwhile; give each its"
                " own folder, and repeat this one"
            )
    kept = sum(footer["documents"] for footer in footers)
    if not kept and not reasons:
        raise FusionError(
            f"the corpus must hold a document, but {len(units)} files hold none; are"
            f" {', '.join(inputs)} the right ones?"
        )
    bad = sum(n for reason, n in reasons.items() if reason != prepare.NEAR_DUPLICATE)
    read = kept + sum(reasons.values())
    if bad > max_fraction * read:
        found = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items()))
        raise FusionError(
            f"at most {max_fraction:g} of the documents may be rejected,"
            f" got {bad} of {read} ({found}); they are listed in {folder}: mend them,"
            " or allow a share by --max_reject_fraction"
        )
    return reasons
