"""Scored models as candidates of fusion, and what whole documents cost them."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64, Int32

from schemas import files, parquet, plan, scores, windows
from schemas.plan import Slice
from schemas.windows import Window
from transforms import joined
from transforms.functional import weigh


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """One scored model.

    Attributes:
      name: what provenance calls it.
      scores: its scores folder.
      tokenizer: fingerprint of its tokenizer.
      eos_id: its EOS, or None.
      counts: fingerprint of its co-occurrences with the target's tokens; None where
        none were counted.
    """

    name: str
    scores: str
    tokenizer: str
    eos_id: int | None
    counts: str | None = None

    def ends_with_eos(self, window: Window) -> bool:
        """Says whether its tokens of a window end with its EOS."""
        return window.eos_follows and self.eos_id is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Spent:
    """What w windows cost s sources: the few columns that a document's cost takes.

    Attributes:
      begins: whether a window begins its document.
      ends: whether it ends it.
      n_bytes: bytes of it that count.
      nats: cost of these by source; NaN where it failed.
    """

    begins: Bool[np.ndarray, " w"]
    ends: Bool[np.ndarray, " w"]
    n_bytes: Int32[np.ndarray, " w"]
    nats: Float64[np.ndarray, "w s"]


def document_costs(
    folder: str, sources: Sequence[Source], piece: Slice, identity: str
) -> Float64[np.ndarray, "w s"]:
    """Returns for each window of a slice what its whole document costs each source.

    A document may reach into the slices before and behind. Of these it reads costs
    alone, some bytes a window, so every slice comes to the same sums by itself, in
    whatever order slices are done.

    Args:
      folder: the windows folder.
      sources: the candidates.
      piece: the slice.
      identity: digest of the job's inputs: tells when the plan is another.

    Returns:
      Bits per byte, as `weigh.document_costs` defines them.
    """
    slices = _plan(folder, identity)
    own = _spent(folder, sources, piece)
    before, behind = [], []
    if not own.begins[:1].all():
        for other in reversed(slices[: piece.index]):
            before.append(_spent(folder, sources, other))
            if before[-1].begins.any():
                break
    if not own.ends[-1:].all():
        for other in slices[piece.index + 1 :]:
            behind.append(_spent(folder, sources, other))
            if behind[-1].ends.any():
                break
    parts = [*reversed(before), own, *behind]
    start = sum(len(part.begins) for part in before)
    costs = weigh.document_costs(
        np.concatenate([part.nats for part in parts]),
        np.concatenate([part.n_bytes for part in parts]),
        np.concatenate([part.begins for part in parts]),
    )
    return costs[start : start + piece.windows]


@functools.lru_cache(maxsize=1)
def _plan(folder: str, _: str) -> list[Slice]:
    """Reads a plan, which may be long, once for all slices; the digest is its age."""
    return plan.read(folder)


def _spent(folder: str, sources: Sequence[Source], piece: Slice) -> _Spent:
    path = files.join(folder, piece.file)
    groups = range(piece.row_group_start, piece.row_group_stop)
    starts, ends = _columns(
        parquet.read(path, windows.SCHEMA, groups, ("byte_start", "ends_document"))
    )
    nats, sizes = [], []
    for source in sources:
        tables = parquet.read(
            joined.scores_of(folder, source.scores, piece),
            scores.SCHEMA,
            columns=("nll_nats", "n_bytes"),
        )
        spent, n_bytes = _columns(tables)
        nats.append(spent)
        sizes.append(n_bytes)
    return _Spent(
        begins=starts == 0,
        ends=ends.astype(bool),
        n_bytes=sizes[0],
        nats=np.stack(nats, axis=-1).astype(np.float64),
    )


def _columns(tables: Iterable[pa.Table]) -> list[np.ndarray]:
    """Returns the columns of a file's tables end to end; null is NaN."""
    parts = [[column.to_numpy() for column in table.columns] for table in tables]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]
