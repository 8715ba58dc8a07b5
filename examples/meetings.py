"""A source meets a target: every window's rows under a strategy, and what they keep."""

import dataclasses
import typing
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from examples import information
from examples.information import Figures
from pipelines import map, scored
from pipelines.map import MapConfig
from schemas import files
from schemas.scores import Score
from schemas.windows import Window
from transforms.functional import align, coverage, project, token_map, transfer
from transforms.functional import vocabulary as vocabularies
from transforms.functional.project import Projected
from transforms.functional.transfer import Partners
from transforms.functional.vocabulary import VocabularyMap
from transforms.tokenizer import Tokenizer

Strategy = Literal["spans", "exact", "mined", "statistics"]
STRATEGIES: tuple[Strategy, ...] = typing.get_args(Strategy)

MAPS: Mapping[Strategy, Literal["first", "mined", "statistics"]] = {
    "exact": "first",
    "mined": "mined",
    "statistics": "statistics",
}
"""The token map that each strategy trades by; `exact` takes the exact entries alone."""


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
        return window.ends_document and self.tokenizer.eos_id is not None

    def puts_space(self, score: Score) -> bool:
        """Says whether it put a space of its own in front of a window."""
        return self.onto_itself.puts_space(score.token_ids, score.byte_ends)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meeting:
    """A source and a target.

    Attributes:
      source: whose rows are used.
      target: whose tokens are trained.
      vocabulary: from the source's vocabulary to the target's.
      partners: one target token for each source token, by strategy; not for spans.
    """

    source: Participant
    target: Participant
    vocabulary: VocabularyMap
    partners: Mapping[Strategy, Partners]

    def rows(
        self, strategy: Strategy, window: Window, source: Score, target: Score
    ) -> tuple[Projected, np.ndarray]:
        """Says what a strategy makes of a source's rows.

        Returns:
          A row for each of t target positions; and (t,) whether it is of the source.
        """
        if strategy == "spans":
            found = self._project(window, source, target)
            return found, found.covered
        pairing = transfer.pair_tokens(
            window.text.encode(), source, target, strategy=strategy
        )
        partners = self.partners[strategy]
        chosen = transfer.find_rows(
            pairing, source, target, partners, strategy=strategy
        )
        k = source.top_ids.shape[1] + 1
        moved = transfer.transfer_rows(chosen, source, target, partners, k=k)
        return moved.projected, moved.used

    def alignment(
        self, window: Window, source: Score, target: Score
    ) -> align.Alignment:
        """Aligns a window by spans."""
        both = (self.source, self.target)
        eos = all(one.ends_with_eos(window) for one in both)
        return align.align_spans(target.byte_ends, source.byte_ends, eos=eos)

    def _project(self, window: Window, source: Score, target: Score) -> Projected:
        spaces = (self.source.puts_space(source), self.target.puts_space(target))
        return project.project_rows(
            self.alignment(window, source, target),
            source,
            self.vocabulary,
            target.token_ids,
            begins_alike=spaces[0] == spaces[1],
            k=source.top_ids.shape[1] + 1,
        )

    def classes(
        self, window: Window, source: Score, target: Score, covered: np.ndarray
    ) -> np.ndarray:
        """Says by spans what each position is, from `coverage`."""
        return coverage.classify_positions(
            self.alignment(window, source, target),
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
    partners: dict[Strategy, Partners] = {}
    for strategy in strategies:
        if strategy == "spans":
            continue
        kind = MAPS[strategy]
        file = files.join(folder, f"{source.name}-{target.name}.{kind}.parquet")
        made, _, _ = map.map_tokens(
            MapConfig(
                source=source.scores, target=target.scores, strategy=kind, output=file
            )
        )
        ids = made.target_ids
        if strategy == "exact":
            alike = np.isin(made.how, (token_map.BYTES, token_map.ROLE))
            ids = np.where(alike, ids, np.int32(-1))
        partners[strategy] = Partners(ids=ids, start_ids=_start_ids(mapping, ids))
    return Meeting(source=source, target=target, vocabulary=mapping, partners=partners)


def _start_ids(mapping: VocabularyMap, ids: np.ndarray) -> np.ndarray:
    """Takes the token of the same bytes at a window's beginning, where there is one."""
    offsets, flat, _ = mapping.start
    single = np.diff(offsets) == 1
    found = ids.copy()
    found[single] = flat[offsets[:-1][single]]
    return found


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
            rows, used = meeting.rows(strategy, window, theirs, mine)
            anywhere |= used
            parts[strategy].append(
                information.measure_window(
                    rows,
                    used,
                    source=theirs,
                    target=mine,
                    ends_with_eos=[o.ends_with_eos(window) for o in (source, target)],
                    shares=shares,
                )
            )
        covered = meeting.rows("spans", window, theirs, mine)[1]
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
