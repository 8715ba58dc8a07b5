"""Brings a source's rows to the target's tokens, by one of the strategies.

    spans        by bytes: `functional.align`, `functional.project`
    exact, mined, statistics
                 by warped spellings: `functional.transfer`
    the last three under `reference`
                 as the authors' code has it: `functional.reference_rows`

What it takes to know of a source's and the target's vocabulary lies in small files of
the fused folder, one or two for each source, that workers read once.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pyarrow as pa

from schemas import files, tables
from schemas.scores import Score
from schemas.tables import File
from schemas.windows import Window
from transforms.functional import (
    align,
    counterparts,
    project,
    reference_rows,
    token_map,
    transfer,
    vocabulary,
)
from transforms.functional.reference_maps import Marks
from transforms.functional.reference_rows import Lexicon
from transforms.functional.token_map import TokenMap
from transforms.functional.transfer import Partners, Transferred
from transforms.functional.vocabulary import VocabularyMap
from transforms.sources import Source

Strategy = Literal["spans", "exact", "mined", "statistics"]

Kind = Literal["first", "mined", "statistics"]

KINDS: Mapping[str, Kind] = {
    "exact": "first",
    "mined": "mined",
    "statistics": "statistics",
}
"""Which token map a strategy takes; of `exact` only tokens of the same bytes count."""

FORMAT = "fusebeam.lexicon.1"
"""Name and version of a lexicon's file, in its metadata."""

WHAT = "lexicon"
"""What an error calls that file."""

TOKENS, LEXICONS = "tokens", "lexicons"
"""Folders, within that of the maps, of token maps and of lexicons."""

LEXICON = pa.schema(
    [
        pa.field("token", pa.string()),
        pa.field("decoded", pa.string(), nullable=False),
        pa.field("mapped", pa.int32(), nullable=False),
    ]
)
"""A row for each source id: its spellings, and its target id as the authors map it."""


def vocabulary_file(folder: str, name: str) -> str:
    """Names the file of a source's `VocabularyMap`."""
    return files.join(folder, f"{name}.parquet")


def tokens_file(folder: str, name: str) -> str:
    """Names the file of a source's `TokenMap`."""
    return files.join(folder, TOKENS, f"{name}.parquet")


def lexicon_file(folder: str, name: str) -> str:
    """Names the file of what the authors look up of a source."""
    return files.join(folder, LEXICONS, f"{name}.parquet")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """A source and the target: how rows of the one become the other's.

    Attributes:
      strategy: how tokens are aligned.
      pairs: from the source's vocabulary to sequences of the target's.
      own: the target's onto itself, which tells what its tokens spell.
      partners: one target token for each source token; None for spans.
      lexicon: what the authors look up; None but under `reference`.
    """

    strategy: Strategy
    pairs: VocabularyMap
    own: VocabularyMap
    partners: Partners | None = None
    lexicon: Lexicon | None = None

    def rows(
        self, window: Window, source: Score, target: Score, *, eos: bool, k: int
    ) -> Transferred:
        """Brings the rows of one window over.

        Args:
          window: the window.
          source: what the source says of it; it did not fail.
          target: the target's tokens and rows.
          eos: whether both token lists end with their EOS.
          k: entries to keep, more than the source has.
        """
        alike = self._begins_alike(source, target)
        if self.strategy == "spans":
            found = project.project_rows(
                align.align_spans(target.byte_ends, source.byte_ends, eos=eos),
                source,
                self.pairs,
                target.token_ids,
                begins_alike=alike,
                k=k,
            )
            return Transferred(projected=found, used=found.covered)
        if self.lexicon is not None:
            return reference_rows.transfer_window(
                source, target, self.lexicon, strategy=self.strategy, k=k
            )
        if self.partners is None:
            raise ValueError(f"strategy {self.strategy} must have a token map")
        partners = self.partners
        if alike:
            partners = Partners(ids=partners.ids, start_ids=partners.ids)
        pairing = transfer.pair_tokens(
            window.text.encode(), source, target, strategy=self.strategy
        )
        chosen = transfer.find_rows(
            pairing, source, target, partners, strategy=self.strategy
        )
        return transfer.transfer_rows(chosen, source, target, partners, k=k)

    def _begins_alike(self, source: Score, target: Score) -> bool:
        """Says whether both tokenizers, or neither, put a space before a window."""
        theirs = self.pairs.puts_space(source.token_ids, source.byte_ends)
        return theirs == self.own.puts_space(target.token_ids, target.byte_ends)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Aligner:
    """Brings what the sources of a fused folder say to the target's positions.

    Attributes:
      folder: of the maps.
      target: the target.
      strategy: how tokens are aligned.
      reference: whether as the authors do.
    """

    folder: str
    target: Source
    strategy: Strategy
    reference: bool

    def eos(self, window: Window, source: Source) -> bool:
        """Says whether both tokenizations of a window end with their EOS."""
        return source.ends_with_eos(window) and self.target.ends_with_eos(window)

    def transfer(
        self,
        window: Window,
        target: Score,
        source: Source,
        score: Score,
        *,
        least: int = 1,
    ) -> Transferred:
        """Brings one source's rows to the target's positions and vocabulary.

        Args:
          window: the window.
          target: the target's score of it; it did not fail.
          source: the source.
          score: what it says of the window, draws among the entries.
          least: entries to have room for, were there fewer.
        """
        # All of a source's entries and the gold are kept until they are mixed.
        k = max(least, score.top_ids.shape[1], target.top_ids.shape[1]) + 1
        if score.error is not None:
            nothing = project.project_nothing(len(target.token_ids) - 1, k=k)
            return Transferred(projected=nothing, used=nothing.covered)
        pair = load_pair(
            self.folder, source, self.target, self.strategy, self.reference
        )
        eos = self.eos(window, source)
        return pair.rows(window, score, target, eos=eos, k=k)


def choose_partners(made: TokenMap, pairs: VocabularyMap, strategy: str) -> Partners:
    """Returns the target tokens that stand for source tokens under a strategy.

    Those that begin a window are of windows that do not begin alike for both.
    """
    ids = made.target_ids
    if strategy == "exact":
        alike = np.isin(made.how, (token_map.BYTES, token_map.ROLE))
        ids = np.where(alike, ids, np.int32(-1))
        # the bytes of inside running text are others than those that begin a window
        made = dataclasses.replace(made, target_ids=np.full_like(ids, -1))
    return Partners(ids=ids, start_ids=counterparts.beginning(made, pairs))


@functools.lru_cache(maxsize=16)
def load_pair(
    folder: str,
    source: Source,
    target: Source,
    strategy: Strategy,
    reference: bool,
) -> Pair:
    """Reads what a strategy takes from the files of a fused folder.

    Args:
      folder: that holds the maps.
      source: the source.
      target: the target, whose map onto itself lies there too.
      strategy: how tokens are aligned.
      reference: whether as the authors do; spans know no such way.

    Raises:
      SchemaError: if a file is of other tokenizers, or of another strategy.
    """
    pair = Pair(
        strategy=strategy,
        pairs=_vocabulary(folder, source, target),
        own=_vocabulary(folder, target, target),
    )
    if strategy == "spans":
        return pair
    if reference:
        lexicon = load_lexicon(
            folder,
            (source.name, source.tokenizer),
            (target.name, target.tokenizer),
            strategy,
            source.counts,
        )
        return dataclasses.replace(pair, lexicon=lexicon)
    with files.open_input(tokens_file(folder, source.name)) as file:
        made = token_map.load_map(
            file,
            source_fingerprint=source.tokenizer,
            target_fingerprint=target.tokenizer,
            strategy=KINDS[strategy],
            counts=source.counts,
        )
    partners = choose_partners(made, pair.pairs, strategy)
    return dataclasses.replace(pair, partners=partners)


@functools.lru_cache(maxsize=16)
def _vocabulary(folder: str, source: Source, target: Source) -> VocabularyMap:
    with files.open_input(vocabulary_file(folder, source.name)) as file:
        return vocabulary.load_map(
            file,
            source_fingerprint=source.tokenizer,
            target_fingerprint=target.tokenizer,
        )


def lexicon_identity(
    source: str, target: str, strategy: str, counts: str | None
) -> dict[str, str]:
    """Returns what a lexicon's file says of itself: that tells it from another.

    Args:
      source: fingerprint of the source's tokenizer.
      target: fingerprint of the target's.
      strategy: exact, mined or statistics.
      counts: fingerprint of what statistics were counted of, where they were.
    """
    return {
        "format": FORMAT,
        "strategy": strategy,
        "source_fingerprint": source,
        "target_fingerprint": target,
        "counts": counts or "",
    }


def save_lexicon(made: Lexicon, identity: Mapping[str, str], sink: File) -> None:
    """Writes the source's half of a lexicon, a row for each of its ids."""
    columns = {
        "token": list(made.source_tokens),
        "decoded": list(made.source_decoded),
        "mapped": made.mapped,
    }
    marks = {
        "source_mark": made.marks.source,
        "target_mark": made.marks.target,
        "lends_prefix": str(int(made.marks.lends_prefix)),
    }
    tables.save(pa.table(columns, schema=LEXICON), {**identity, **marks}, sink)


def load_lexicon(
    folder: str,
    source: tuple[str, str],
    target: tuple[str, str],
    strategy: str,
    counts: str | None = None,
) -> Lexicon:
    """Reads the lexicon of a source and the target.

    Args:
      folder: of the files.
      source: name, and fingerprint of the tokenizer.
      target: the same.
      strategy: exact, mined or statistics.
      counts: fingerprint of what statistics were counted of, where they were; nothing
        is counted of the target and itself.

    Raises:
      SchemaError: if a file is of other tokenizers, counts, or another strategy.
    """
    whole = lexicon_identity(source[1], target[1], strategy, counts)
    theirs, found = _half(folder, source[0], whole)
    alone = lexicon_identity(target[1], target[1], strategy, None)
    ours, _ = _half(folder, target[0], alone)
    marks = Marks(
        source=found["source_mark"],
        target=found["target_mark"],
        lends_prefix=found["lends_prefix"] == "1",
    )
    return Lexicon(
        marks=marks,
        source_tokens=theirs["token"].to_pylist(),
        target_tokens=ours["token"].to_pylist(),
        source_decoded=theirs["decoded"].to_pylist(),
        target_decoded=ours["decoded"].to_pylist(),
        mapped=theirs["mapped"].to_numpy(),
    )


def _half(
    folder: str, name: str, expected: Mapping[str, str]
) -> tuple[pa.Table, dict[str, str]]:
    with files.open_input(lexicon_file(folder, name)) as file:
        return tables.load(file, expected, LEXICON, what=WHAT)
