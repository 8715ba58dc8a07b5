"""Groups the row groups of a split's windows files into slices, the units of work."""

from collections.abc import Sequence

from schemas import files, parquet, windows
from schemas.plan import Slice


def plan_slices(folder: str, names: Sequence[str], slice_bytes: int) -> list[Slice]:
    """Groups the row groups of windows files into slices of about `slice_bytes`."""
    slices: list[Slice] = []
    footers = files.each(parquet.footer, [files.join(folder, name) for name in names])
    for name, footer in zip(names, footers, strict=True):
        groups, start = footer["groups"], 0
        while start < len(groups):
            stop, size = start, 0
            while stop < len(groups) and (stop == start or size < slice_bytes):
                size += groups[stop]["text_bytes"]
                stop += 1
            chosen = groups[start:stop]
            slices.append(
                Slice(
                    index=len(slices),
                    file=name,
                    row_group_start=start,
                    row_group_stop=stop,
                    windows=sum(group["windows"] for group in chosen),
                    text_bytes=size,
                    digest=windows.slice_digest(group["digest"] for group in chosen),
                )
            )
            start = stop
    return slices
