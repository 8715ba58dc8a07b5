"""Writes what a strategy takes to know of vocabularies into a fused folder.

`transforms.strategies` reads it on the workers: for every source its map to sequences
of the target's tokens; for the warped strategies one target token for each of its own,
by statistics of what stands beside what in the corpus where that is asked for; under
`reference` what the authors look up.
"""

import dataclasses
from collections.abc import Collection, Sequence

from pipelines import counting, lexicons
from pipelines.counting import CountConfig
from schemas import files, tables
from transforms import strategies
from transforms.functional import (
    cooccurrence,
    counterparts,
    token_map,
    vocabulary,
)
from transforms.functional.token_map import TokenMap
from transforms.strategies import Strategy
from transforms.tokenizer import Tokenizer

COUNTS = "counts"
"""Folder, within that of the maps, of the co-occurrences of each source."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Maps:
    """The maps of a fused folder. A file that is there, and the same, is left.

    Attributes:
      folder: of the maps.
      target: the target's tokenizer.
      strategy: how tokens are aligned.
      reference: whether as the authors do.
      overwrite: whether maps of other tokenizers, counts or strategies are replaced.
    """

    folder: str
    target: Tokenizer
    strategy: Strategy
    reference: bool
    overwrite: bool

    def write(self, name: str, own: Tokenizer, counted: CountConfig | None) -> None:
        """Writes what is to be known of a source.

        Args:
          name: of the source.
          own: its tokenizer.
          counted: finished counts, for statistics; None where there is nothing to
            count, as of the target and itself.

        Raises:
          SchemaError: if another map is in the way and `overwrite` is off.
        """
        path = strategies.vocabulary_file(self.folder, name)
        prints = own.fingerprint, self.target.fingerprint
        if not self._is_made(path, vocabulary.identity(*prints), vocabulary.WHAT):
            with files.publish(path) as sink:
                vocabulary.save_map(vocabulary.build_map(own, self.target), sink)
        if self.strategy == "spans":
            return
        counts = counting.fingerprint_of(counted) if counted else None
        if self.reference:
            self._write_lexicon(name, own, counted, counts)
        else:
            self._write_tokens(name, own, counted, counts)

    def _write_lexicon(
        self, name: str, own: Tokenizer, counted: CountConfig | None, counts: str | None
    ) -> None:
        told = strategies.lexicon_identity(
            own.fingerprint, self.target.fingerprint, self.strategy, counts
        )
        path = strategies.lexicon_file(self.folder, name)
        if self._is_made(path, told, strategies.WHAT):
            return
        found = counting.read_counts(counted.output) if counted else None
        made = lexicons.build_lexicon(own, self.target, self.strategy, found)
        with files.publish(path) as sink:
            strategies.save_lexicon(made, told, sink)

    def _write_tokens(
        self, name: str, own: Tokenizer, counted: CountConfig | None, counts: str | None
    ) -> None:
        told = token_map.identity(
            own.fingerprint,
            self.target.fingerprint,
            strategy=strategies.KINDS[self.strategy],
            counts=counts,
        )
        path = strategies.tokens_file(self.folder, name)
        if self._is_made(path, told, token_map.WHAT):
            return
        made = self._choose(own, counted, counts)
        with files.publish(path) as sink:
            token_map.save_map(made, sink, source=own, target=self.target)

    def _choose(
        self, own: Tokenizer, counted: CountConfig | None, counts: str | None
    ) -> TokenMap:
        if self.strategy == "exact":
            return counterparts.build_first(own, self.target)
        if self.strategy == "mined":
            return counterparts.build_mined(own, self.target)
        found = (
            counting.read_counts(counted.output) if counted else cooccurrence.tally([])
        )
        return counterparts.build_statistics(
            own, self.target, found, fingerprint=counts
        )

    def _is_made(self, path: str, identity: dict[str, str], what: str) -> bool:
        return tables.is_made(path, identity, what=what, overwrite=self.overwrite)

    def remove_others(self, names: Collection[str], counted: Collection[str]) -> None:
        """Removes what another strategy or other sources have left.

        Args:
          names: of the sources, the target among them.
          counted: those of which co-occurrences were counted.
        """
        warped = () if self.strategy == "spans" else names
        kept = {
            "": names,
            strategies.TOKENS: () if self.reference else warped,
            strategies.LEXICONS: warped if self.reference else (),
        }
        for kind, wanted in kept.items():
            folder = files.join(self.folder, kind) if kind else self.folder
            for name in files.names(folder, ".parquet"):
                if name.removesuffix(".parquet") not in wanted:
                    files.remove_tree(files.join(folder, name))
        for name in files.folders(files.join(self.folder, COUNTS)):
            if name not in counted:
                files.remove_tree(files.join(self.folder, COUNTS, name))


def count(
    config: CountConfig, runner_flags: Sequence[str], *, slices: str | None
) -> None:
    """Counts how often tokens stand beside each other, unless that was done.

    Args:
      config: what is counted.
      runner_flags: Beam's.
      slices: those that this process fuses, one of several; then the counts must be
        there, as each of the processes would count the whole corpus.

    Raises:
      ValueError: if the counts must be there, and are not.
    """
    if slices is not None and not counting.is_whole(config, dry=True):
        raise ValueError(
            f"co-occurrences must be in {config.output} before --slices are fused by"
            " statistics; count them once: the same command with --maps_only in place"
            f" of --slices {slices}"
        )
    counting.count_windows(config, runner_flags)
