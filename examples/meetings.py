"""A source meets a target: every window's rows under a strategy, and what they keep."""

import dataclasses
import typing
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from examples import information
from examples.information import Figures
from pipelines import map, scored
from pipelines.map import MapConfig
from schemas import files
from schemas.scores import Score
from schemas.windows import Window
from transforms import strategies as ways
from transforms.functional import align, coverage
from transforms.functional import vocabulary as vocabularies
from transforms.functional.token_map import TokenMap
from transforms.functional.transfer import Transferred
from transforms.functional.vocabulary import VocabularyMap
from transforms.strategies import Pair, Strategy
from transforms.tokenizer import Tokenizer

STRATEGIES: tuple[Strategy, ...] = typing.get_args(Strategy)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Participant:
    """A model with its scores.

    Attributes:
      name: in tables.
      scores: its scores folder.
      tokenizer: that they were made with.
      onto_itself: the map of its vocabulary onto itself, which knows what tokens spell.
    """

    name: str
    scores: str
    tokenizer: Tokenizer
    onto_itself: VocabularyMap

    @classmethod
    def read(cls, name: str, folder: str) -> "Participant":
        """Reads what is needed of a scores folder."""
        own = scored.tokenizer_of(folder)
        return cls(
            name=name,
            scores=folder,
            tokenizer=own,
            onto_itself=vocabularies.build_map(own, own),
        )

    def ends_with_eos(self, window: Window) -> bool:
        """Says whether its tokens of a window end with its EOS."""
        return window.eos_follows and self.tokenizer.eos_id is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meeting:
    """A source and a target.

    Attributes:
      source: whose rows are used.
      target: whose tokens are trained.
      pairs: what each strategy takes of the two vocabularies.
    """

    source: Participant
    target: Participant
    pairs: Mapping[Strategy, Pair]

    def rows(
        self, strategy: Strategy, window: Window, source: Score, target: Score
    ) -> Transferred:
        """Says what a strategy makes of a source's rows."""
        return self.pairs[strategy].rows(
            window,
            source,
            target,
            eos=self._ends_with_eos(window),
            k=source.top_ids.shape[1] + 1,
        )

    def _ends_with_eos(self, window: Window) -> bool:
        return all(one.ends_with_eos(window) for one in (self.source, self.target))

    def classes(
        self, window: Window, source: Score, target: Score, covered: np.ndarray
    ) -> np.ndarray:
        """Says by spans what each position is, from `coverage`."""
        return coverage.classify_positions(
            align.align_spans(
                target.byte_ends, source.byte_ends, eos=self._ends_with_eos(window)
            ),
            covered,
            source,
            target.byte_ends,
            target_eos=self.target.ends_with_eos(window),
        )


def meet(
    source: Participant,
    target: Participant,
    strategies: Sequence[Strategy],
    folder: str,
) -> Meeting:
    """Builds all maps from a source to a target.

    Args:
      source: whose rows are used.
      target: whose tokens are trained.
      strategies: that the maps are for.
      folder: keeps token maps, a file for each pair and kind.
    """
    mapping = vocabularies.build_map(source.tokenizer, target.tokenizer)
    pairs: dict[Strategy, Pair] = {}
    for strategy in strategies:
        partners = None
        if strategy != "spans":
            made = _token_map(source, target, ways.KINDS[strategy], folder)
            partners = ways.choose_partners(made, mapping, strategy)
        pairs[strategy] = Pair(
            strategy=strategy,
            pairs=mapping,
            own=target.onto_itself,
            partners=partners,
        )
    return Meeting(source=source, target=target, pairs=pairs)


def _token_map(
    source: Participant, target: Participant, kind: ways.Kind, folder: str
) -> TokenMap:
    file = files.join(folder, f"{source.name}-{target.name}.{kind}.parquet")
    made, _, _ = map.map_tokens(
        MapConfig(
            source=source.scores, target=target.scores, strategy=kind, output=file
        )
    )
    return made


def side_by_side(
    windows: str, source: Participant, target: Participant
) -> Iterator[tuple[Window, Score, Score]]:
    """Yields each window that neither failed on, with what both say of it."""
    both = (scored.pairs(one.scores, windows) for one in (source, target))
    for (window, theirs), (_, mine) in zip(*both, strict=True):
        if theirs.error is None and mine.error is None:
            yield window, theirs, mine


def measure_pair(
    windows: str,
    source: Participant,
    target: Participant,
    strategies: Sequence[Strategy],
    folder: str,
) -> dict[str, Any]:
    """Measures what each strategy keeps of a source's rows.

    Args:
      windows: the windows folder that both scored.
      source: whose rows are used.
      target: whose tokens are trained.
      strategies: to measure.
      folder: keeps token maps.

    Returns:
      As JSON values: `strategies`, figures by strategy; `classes`, positions by their
      class under spans; `unused`, those of them that no strategy uses.
    """
    meeting = meet(source, target, strategies, folder)
    met = list(side_by_side(windows, source, target))
    shares = information.unigram(
        (mine.token_ids for _, _, mine in met), target.tokenizer.size
    )
    parts: dict[Strategy, list[Figures]] = {strategy: [] for strategy in strategies}
    classes: Counter[str] = Counter()
    unused: Counter[str] = Counter()
    for window, theirs, mine in met:
        anywhere = np.zeros(len(mine.token_ids) - 1, np.bool_)
        for strategy in strategies:
            moved = meeting.rows(strategy, window, theirs, mine)
            anywhere |= moved.used
            parts[strategy].append(
                information.measure_window(
                    moved.projected,
                    moved.used,
                    source=theirs,
                    target=mine,
                    ends_with_eos=[o.ends_with_eos(window) for o in (source, target)],
                    shares=shares,
                )
            )
        covered = meeting.rows("spans", window, theirs, mine).used
        found = meeting.classes(window, theirs, mine, covered)
        classes.update(coverage.count_classes(found))
        unused.update(coverage.count_classes(found[~anywhere]))
    return {
        "strategies": {
            strategy: dataclasses.asdict(information.total(each))
            for strategy, each in parts.items()
        },
        "classes": dict(classes),
        "unused": dict(unused),
    }
