"""Fuses the scores of a slice: zip the sources, align, project, mix, pack, encode."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from schemas import files, fused, parquet
from schemas.fused import FusedRow
from schemas.plan import Slice
from schemas.scores import Score
from schemas.windows import Window
from transforms import joined, rows, sources
from transforms.functional import (
    chances,
    fuse,
    pack,
    ranks,
    tail,
    weigh,
)
from transforms.functional.fuse import Fused
from transforms.functional.project import Projected
from transforms.mixing import Mixing
from transforms.rows import FusedWindow
from transforms.sources import Source
from transforms.strategies import Aligner, Strategy

MAPS = "maps"
"""Folder, within a fused folder, of what is known of each source's vocabulary."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FuseSlices:
    """Writes the training rows of a slice.

    Attributes:
      windows: the windows folder.
      target: the target's scores; its tokens are those that are trained.
      sources: the candidates. Their order decides nothing but the order of columns,
        except under `mixing.reference`, where ties go by it.
      output: the fused folder.
      strategy: how tokens are aligned.
      mixing: how the candidates become one.
      seq_length: tokens of a training row at most.
      vocabulary_size: ids of the target's tokenizer.
      identity: digest of the settings and of all inputs.
      overwrite: whether files of other settings are written anew.
    """

    windows: str
    target: Source
    sources: tuple[Source, ...]
    output: str
    strategy: Strategy
    mixing: Mixing
    seq_length: int
    vocabulary_size: int
    identity: str
    overwrite: bool = False

    @property
    def schema(self) -> pa.Schema:
        """Columns of the files."""
        return fused.SCHEMA

    @property
    def options(self) -> dict[str, Any]:
        """Options of the writer."""
        return fused.WRITER_OPTIONS

    @property
    def aligner(self) -> Aligner:
        """What brings the sources' rows to the target's positions."""
        return Aligner(
            folder=files.join(self.output, MAPS),
            target=self.target,
            strategy=self.strategy,
            reference=self.mixing.reference,
        )

    def fingerprint(self, piece: Slice) -> str:
        """Digests all that shapes the file of a slice."""
        return files.digest([fused.STAGE, self.identity, piece.digest])

    def fill(self, piece: Slice, tables: parquet.TableWriter) -> None:
        """Fuses a slice and writes its rows, packed."""
        made, failed = [], 0
        for (window, target, candidates), costs in zip(
            self._read(piece), self._wider_costs(piece), strict=True
        ):
            if target.error is not None:
                failed += 1
            else:
                made.append(self._fuse(window, target, candidates, costs))
        self._write(tables, made, failed)

    def give_up(self, piece: Slice, tables: parquet.TableWriter, reason: str) -> None:
        """Writes no row, and counts every window as failed; the footer says why."""
        self._write(tables, [], piece.windows)

    def load(self) -> None:
        """There is nothing to load that would take long."""

    def release(self) -> None:
        """There is nothing to let go of: maps are small."""

    def _write(
        self, tables: parquet.TableWriter, made: Sequence[FusedWindow], failed: int
    ) -> None:
        """Packs the windows of a slice and writes them."""
        table = ranks.rank_by_frequency(rows.frequencies(made, self.vocabulary_size))
        packed = self._pack(made, table)
        for start in range(0, len(packed), fused.ROW_GROUP_ROWS):
            tables.write(fused.to_table(packed[start : start + fused.ROW_GROUP_ROWS]))
        names = [source.name for source in self.sources]
        tables.footer.update(
            sources=names,
            eos_ids={one.name: one.eos_id for one in (self.target, *self.sources)},
            ranks=ranks.dump_ranks(table),
            windows=len(made),
            failed=failed,
            tokens=sum(len(one.score.token_ids) for one in made),
            **rows.provenance(made, names),
        )

    def _pack(
        self, made: Sequence[FusedWindow], table: ranks.RankTable
    ) -> list[FusedRow]:
        lengths = [len(one.score.token_ids) for one in made]
        return [
            rows.pack_row([made[place] for place in places], table)
            for places in pack.pack_windows(lengths, self.seq_length)
        ]

    def _read(self, piece: Slice) -> Iterable[tuple[Window, Score, list[Score]]]:
        """Yields each window with what the target and the candidates say of it."""
        folders = [one.scores for one in (self.target, *self.sources)]
        for window, (target, *said) in joined.read(self.windows, piece, folders):
            yield window, target, [tail.join_draws(one) for one in said]

    def _wider_costs(self, piece: Slice) -> Iterable[np.ndarray | None]:
        """Yields for each window what the stretch around it costs the candidates.

        None for all where nothing beyond the window counts.
        """
        if self.mixing.granularity == "document":
            return sources.document_costs(
                self.windows, self.sources, piece, self.identity
            )
        if self.mixing.granularity == "packed_row":
            return self._packed_metrics(piece)
        return itertools.repeat(None, piece.windows)

    def _packed_metrics(self, piece: Slice) -> np.ndarray:
        """Reads the scores once more than the others do: a row's windows come apart."""
        metrics, lengths, counted = [], [], []
        for window, target, candidates in self._read(piece):
            metrics.append([_metric(window, score) for score in candidates])
            lengths.append(len(target.token_ids))
            counted.append(lengths[-1] * (window.loss_spans != ()))
        scored = np.flatnonzero(lengths)
        packed = pack.pack_windows([lengths[w] for w in scored], self.seq_length)
        places = [scored[row].tolist() for row in packed]
        return weigh.packed_metrics(np.array(metrics), np.array(counted), places)

    def _fuse(
        self,
        window: Window,
        target: Score,
        candidates: Sequence[Score],
        costs: np.ndarray | None,
    ) -> FusedWindow:
        """Aligns, projects and mixes what the candidates say of one window.

        Args:
          window: the window.
          target: the target's score of it.
          candidates: the sources' scores.
          costs: (s,) what they are weighed by; None where it is of this window alone.
        """
        pairs = list(zip(self.sources, candidates, strict=True))
        k, align = self.mixing.top_k, self.aligner
        moved = [align.transfer(window, target, *pair, least=k) for pair in pairs]
        projected = [one.projected for one in moved]
        used = np.stack([one.used for one in moved], axis=-1)
        if costs is None:
            costs = self._own_costs(window, target, candidates, used)
        weights = self.mixing.weigh(costs, window.domain)
        mixture = self._mix(window, projected, weights)
        if weights.ndim == 2:
            each = weights[mixture.covered & rows.loss_positions(window, target)]
            weights = each.mean(axis=0) if len(each) else np.zeros(len(pairs))
        weights = weights.astype(np.float32)  # as stored: readers see the same maximum
        return FusedWindow(
            window=window,
            score=target,
            rows=mixture,
            weights=weights,
            logprobs=-np.array([_nats(score) for score in candidates]),
            coverage=used.mean(axis=0),
            chunks=rows.cut_chosen(window, target, pairs, weights, self.target),
        )

    def _mix(
        self, window: Window, projected: Sequence[Projected], weights: np.ndarray
    ) -> Fused:
        """Mixes rows, and cuts them down to what is kept."""
        k, draws = self.mixing.top_k, self.mixing.tail_samples
        if not draws:
            mixture = fuse.fuse_rows(projected, weights, k=k)
            chosen = self.mixing.chosen
            return mixture if chosen is None else fuse.keep_nucleus(mixture, chosen)
        every = sum(source.ids.shape[1] for source in projected)
        rows = fuse.fuse_rows(projected, weights, k=every)
        decide = chances.derive("fuse", window.window_id, len(rows.covered), draws)
        return tail.thin_rows(rows, k=k, chances=decide)

    def _own_costs(
        self,
        window: Window,
        target: Score,
        candidates: Sequence[Score],
        used: np.ndarray,
    ) -> np.ndarray:
        """Says what a window (s,), or each of its positions (t, s), costs."""
        if self.mixing.fusion == "static":  # all that counts is who has scored it
            return np.array([0.0 if s.error is None else np.nan for s in candidates])
        if self.mixing.reference:
            return np.array([_metric(window, score) for score in candidates])
        if self.mixing.granularity == "window":
            return np.array([score.bits_per_byte for score in candidates])
        costs = np.full(used.shape, np.nan)
        for s, (source, score) in enumerate(zip(self.sources, candidates, strict=True)):
            if score.error is None:
                costs[:, s] = weigh.position_costs(
                    target.byte_ends,
                    score.byte_ends,
                    score.gold_logprob,
                    eos=self.aligner.eos(window, source),
                )
        # A source that is silent at a position is out there, not the position.
        costs[~used] = np.nan
        return costs


def _nats(score: Score) -> float:
    return float("nan") if score.nll_nats is None else score.nll_nats


def _metric(window: Window, score: Score) -> float:
    """Returns a window's cost in the authors' unit, over the tokens that count."""
    if score.error is not None:
        return float("nan")
    counts = rows.loss_positions(window, score)
    return weigh.reference_metric(score.gold_logprob[counts])
