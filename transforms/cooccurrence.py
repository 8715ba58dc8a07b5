"""Counts co-occurrences over a corpus: a slice in, a file of sparse counts out.

The counts of a slice are the output of its work, as everywhere: written once under a
temporary name, renamed, skipped when they are there. So between the steps of a pipeline
travel file names alone, a repeated or retried bundle counts nothing twice, and a job
that was killed goes on where it stopped; a `CombineGlobally` of sparse arrays would
carry megabytes from each slice through the runner, and begin anew. What is left to do,
one sum of integers over the files, is exact in any order.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
import pyarrow as pa

from schemas import cooccurrences, files, parquet
from schemas.plan import Slice
from schemas.scores import Score
from transforms import joined
from transforms.functional import cooccurrence
from transforms.functional.cooccurrence import Counts, Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
    """One scored model.

    Attributes:
      scores: its scores folder.
      size: ids of its tokenizer.
      controls: ids that are no text, rising.
    """

    scores: str
    size: int
    controls: tuple[int, ...]


@functools.lru_cache(maxsize=16)
def _mask(controls: tuple[int, ...], size: int) -> np.ndarray:
    mask = np.zeros(size, np.bool_)
    mask[list(controls)] = True
    return mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class CountSlices:
    """Writes how often tokens stood beside each other in a slice.

    Attributes:
      windows: the windows folder.
      source: the source.
      target: the target.
      output: the folder of the counts.
      identity: digest of all inputs.
      overwrite: whether files of other inputs are written anew.
    """

    windows: str
    source: Scored
    target: Scored
    output: str
    identity: str
    overwrite: bool = False

    @property
    def schema(self) -> pa.Schema:
        """Columns of the files."""
        return cooccurrences.SCHEMA

    @property
    def options(self) -> dict[str, Any]:
        """Options of the writer: those of every file."""
        return {}

    def fingerprint(self, piece: Slice) -> str:
        """Digests all that shapes the file of a slice."""
        return files.digest([cooccurrences.STAGE, self.identity, piece.digest])

    def fill(self, piece: Slice, tables: parquet.TableWriter) -> None:
        """Counts a slice; a window that either model failed at is left out."""
        sides = (self.source, self.target)
        keys, failed, tokens = [], 0, 0
        for window, said in joined.read(
            self.windows, piece, [side.scores for side in sides]
        ):
            if any(score.error is not None for score in said):
                failed += 1
                continue
            source, target = map(_tokens, said, sides)
            keys.append(cooccurrence.find_pairs(window.text.encode(), source, target))
            tokens += len(target.token_ids)
        counts = cooccurrence.tally(keys)
        tables.write(
            cooccurrences.to_table(
                (counts.source_ids, counts.target_ids, counts.counts)
            )
        )
        tables.footer.update(windows=len(keys), failed=failed, tokens=tokens)


def _tokens(score: Score, side: Scored) -> Tokens:
    return Tokens(
        token_ids=score.token_ids,
        byte_ends=score.byte_ends,
        controls=_mask(side.controls, side.size),
    )


def read_counts(folder: str, names: list[str]) -> Counts:
    """Sums the counts of a folder's files."""
    parts = (cooccurrences.read(files.join(folder, name)) for name in names)
    return cooccurrence.add(
        Counts(source_ids=sources, target_ids=targets, counts=counts)
        for part in parts
        for sources, targets, counts in part
    )
