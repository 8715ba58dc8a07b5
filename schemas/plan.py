"""plan.jsonl: the slices of a windows folder, the unit of work of every later stage.

A slice is a range of row groups of one file. One slice in, one file out, named by the
slice alone, so every source's file of a slice holds the same windows in the same order.
"""

import dataclasses
import json
from collections.abc import Iterable
from typing import TypeVar

from schemas import files
from schemas.errors import SchemaError

Item = TypeVar("Item")

NAME = "plan.jsonl"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A range of row groups of one windows file.

    Attributes:
      index: its number in the plan, from 0.
      file: name of the windows file.
      row_group_start: first row group.
      row_group_stop: row group behind the last.
      windows: how many windows it holds.
      text_bytes: UTF-8 bytes of their text.
      digest: digest of the ids of its windows in order.
    """

    index: int
    file: str
    row_group_start: int
    row_group_stop: int
    windows: int
    text_bytes: int
    digest: str

    @property
    def output(self) -> str:
        """Name of the file that a stage makes of this slice."""
        return f"slice-{self.index:06d}.parquet"


def to_line(piece: Slice) -> str:
    """Writes a slice as one line of the plan."""
    return json.dumps(dataclasses.asdict(piece), separators=(",", ":"))


def from_line(line: str) -> Slice:
    """Reads a slice from one line of the plan.

    Raises:
      SchemaError: if the line is not a slice.
    """
    try:
        return Slice(**json.loads(line))
    except (TypeError, ValueError) as error:
        raise SchemaError(f"a line of {NAME} must be a slice: {error}") from error


def write(folder: str, slices: Iterable[Slice]) -> None:
    """Publishes the plan of a windows folder."""
    text = "".join(to_line(piece) + "\n" for piece in slices)
    files.write_bytes(files.join(folder, NAME), text.encode())


def read(folder: str) -> list[Slice]:
    """Reads the plan of a windows folder, in order."""
    text = files.read_bytes(files.join(folder, NAME)).decode()
    return [from_line(line) for line in text.splitlines()]


def select(slices: list[Item], chosen: str | None) -> list[Item]:
    """Keeps the slices A to B of "A-B", both included, counted from 0; all of None.

    Raises:
      ValueError: if the range is malformed or reaches beyond the plan.
    """
    if chosen is None:
        return slices
    if not slices:
        raise ValueError(
            f"--slices must lie in the plan, which is empty, as no document fell into"
            f" this split; got {chosen!r}: give the split a larger share"
        )
    first, dash, last = chosen.partition("-")
    if not (first.isdigit() and (last.isdigit() if dash else True)):
        raise ValueError(f"--slices must be A-B or A, got {chosen!r}")
    start, stop = int(first), int(last or first)
    if not start <= stop < len(slices):
        raise ValueError(
            f"--slices must lie in 0-{len(slices) - 1}, first to last, got {chosen!r}"
        )
    return slices[start : stop + 1]
