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
from schemas.windows import Window
from transforms import joined, strategies
from transforms.functional import cooccurrence, reference_rows
from transforms.functional.cooccurrence import Counts, Keys, Tokens
from transforms.functional.reference_rows import Lexicon


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
    """One scored model.

    Attributes:
      scores: its scores folder.
      tokenizer: its fingerprint.
      size: ids of its tokenizer.
      controls: ids that are no text, rising.
    """

    scores: str
    tokenizer: str
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
      reference: whether pairs are the authors': of tokens decoded one by one, control
        tokens among them. Then `output` holds their lexicons, "source" and "target".
      overwrite: whether files of other inputs are written anew.
    """

    windows: str
    source: Scored
    target: Scored
    output: str
    identity: str
    reference: bool = False
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
            keys.append(self._pairs(window, *said))
            tokens += len(said[1].token_ids)
        _write(tables, cooccurrence.tally(keys))
        tables.footer.update(windows=len(keys), failed=failed, tokens=tokens)

    def give_up(self, piece: Slice, tables: parquet.TableWriter, reason: str) -> None:
        """Counts nothing, and every window as failed."""
        _write(tables, cooccurrence.tally([]))
        tables.footer.update(windows=0, failed=piece.windows, tokens=0)

    def load(self) -> None:
        """There is nothing to load that would take long."""

    def release(self) -> None:
        """There is nothing to let go of."""

    def _pairs(self, window: Window, source: Score, target: Score) -> Keys:
        """Lists the pairs of one window."""
        if self.reference:
            return reference_rows.pair_window(
                source.token_ids, target.token_ids, self._lexicon()
            )
        return cooccurrence.find_pairs(
            window.text.encode(),
            _tokens(source, self.source),
            _tokens(target, self.target),
        )

    def _lexicon(self) -> Lexicon:
        tokenizers = (self.source.tokenizer, self.target.tokenizer)
        return _load_lexicon(self.output, *tokenizers)


@functools.lru_cache(maxsize=4)
def _load_lexicon(folder: str, source: str, target: str) -> Lexicon:
    names = (("source", source), ("target", target))
    return strategies.load_lexicon(folder, *names, "statistics")


def _write(tables: parquet.TableWriter, counts: Counts) -> None:
    ids = (counts.source_ids, counts.target_ids, counts.counts)
    tables.write(cooccurrences.to_table(ids))


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
