"""Fuses the scores of a slice: zip the sources, align, project, mix, pack, encode.

Nothing is shuffled: all sources hold the same windows in the same order, so a slice's
files are read side by side, and window ids are compared row by row.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from schemas import files, fused, parquet, scores, windows
from schemas.errors import SchemaError
from schemas.fused import FusedRow
from schemas.plan import Slice
from schemas.scores import Score
from schemas.windows import Window
from transforms.functional import (
    align,
    chances,
    codec,
    counted,
    fuse,
    pack,
    project,
    ranks,
    tail,
    vocabulary,
)
from transforms.functional.codec import Distributions
from transforms.functional.fuse import Fused
from transforms.functional.project import Projected
from transforms.functional.vocabulary import VocabularyMap

MAPS = "maps"
"""Folder, within a fused folder, of the vocabulary map of each source."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """One scored model.

    Attributes:
      name: what provenance calls it.
      scores: its scores folder.
      tokenizer: fingerprint of its tokenizer.
      eos_id: its EOS, or None.
    """

    name: str
    scores: str
    tokenizer: str
    eos_id: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixing:
    """How the aligned rows of several sources become one.

    Attributes:
      fusion: "mince", all weight to the cheapest source, or "avgce",
        softmax(-cost / temperature).
      granularity: what a cost is measured over: "window" or "position".
      temperature: of avgce, in bits per byte.
      top_k: entries kept for each position.
      tail_samples: entries drawn for each position from what else the sources say;
        0 = none, all that is not kept is tail.
    """

    fusion: Literal["mince", "avgce"]
    granularity: Literal["window", "position"]
    temperature: float
    top_k: int
    tail_samples: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FusedWindow:
    """A window's target tokens with what the sources say of them, not yet packed."""

    window: Window
    score: Score
    rows: Fused
    weights: np.ndarray


@functools.lru_cache(maxsize=16)
def _map(path: str, source: str, target: str) -> VocabularyMap:
    with files.open_input(path) as file:
        return vocabulary.load_map(
            file, source_fingerprint=source, target_fingerprint=target
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FuseSlices:
    """Writes the training rows of a slice.

    Attributes:
      windows: the windows folder.
      target: the target's scores; its tokens are those that are trained.
      sources: the candidates, in the order that breaks ties.
      output: the fused folder.
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

    def fingerprint(self, piece: Slice) -> str:
        """Digests all that shapes the file of a slice."""
        return files.digest([fused.STAGE, self.identity, piece.digest])

    def fill(self, piece: Slice, tables: parquet.TableWriter) -> None:
        """Fuses a slice and writes its rows, packed."""
        made, failed = [], 0
        for window, target, candidates in self._zip(piece):
            if target.error is not None:
                failed += 1
            else:
                made.append(self._fuse(window, target, candidates))
        lengths = [len(one.score.token_ids) for one in made]
        table = ranks.rank_by_frequency(_frequencies(made, self.vocabulary_size))
        rows = [
            pack_row([made[place] for place in places], table)
            for places in pack.pack_windows(lengths, self.seq_length)
        ]
        for start in range(0, len(rows), fused.ROW_GROUP_ROWS):
            tables.write(fused.to_table(rows[start : start + fused.ROW_GROUP_ROWS]))
        names = [source.name for source in self.sources]
        tables.footer.update(
            sources=names,
            ranks=ranks.dump_ranks(table),
            windows=len(made),
            failed=failed,
            tokens=sum(lengths),
            **_provenance(made, names),
        )

    def _zip(self, piece: Slice) -> Iterator[tuple[Window, Score, list[Score]]]:
        """Yields each window with what the target and the candidates say of it.

        Raises:
          SchemaError: if a file holds other windows than the plan, or in other order.
        """
        paths = [
            files.join(source.scores, piece.output)
            for source in (self.target, *self.sources)
        ]
        for path in paths:
            if (digest := parquet.footer(path).get("digest")) != piece.digest:
                raise SchemaError(
                    f"{path} must hold the windows of slice {piece.index} of"
                    f" {self.windows} (digest {piece.digest}), but was made of others"
                    f" (digest {digest}); score these windows again"
                )
        readers = [windows.read_slice(self.windows, piece), *map(scores.read, paths)]
        for groups in zip(*readers, strict=True):
            for window, target, *candidates in zip(*groups, strict=True):
                for path, score in zip(paths, (target, *candidates), strict=True):
                    if score.window_id != window.window_id:
                        raise SchemaError(
                            f"{path} must hold window {window.window_id} where the"
                            f" plan does, but holds {score.window_id}; score these"
                            " windows again"
                        )
                yield window, target, [tail.join_draws(one) for one in candidates]

    def _fuse(
        self, window: Window, target: Score, candidates: Sequence[Score]
    ) -> FusedWindow:
        """Aligns, projects and mixes what the candidates say of one window."""
        pairs = list(zip(self.sources, candidates, strict=True))
        projected = [self._project(window, target, *pair) for pair in pairs]
        if self.mixing.granularity == "window":
            costs = np.array([score.bits_per_byte for score in candidates])
        else:
            each = [self._position_costs(window, target, *pair) for pair in pairs]
            costs = np.stack(each, axis=-1)
            # A source that is silent at a position is out there, not the position.
            costs[~np.stack([p.covered for p in projected], axis=-1)] = np.nan
        if self.mixing.fusion == "mince":
            weights = fuse.min_ce_weights(costs)
        else:
            weights = fuse.avg_ce_weights(costs, temperature=self.mixing.temperature)
        rows = self._mix(window, projected, weights)
        if weights.ndim == 2:
            each = weights[rows.covered]
            weights = each.mean(axis=0) if len(each) else np.zeros(len(pairs))
        return FusedWindow(window=window, score=target, rows=rows, weights=weights)

    def _mix(
        self, window: Window, projected: Sequence[Projected], weights: np.ndarray
    ) -> Fused:
        """Mixes rows, and cuts them down to what is kept."""
        k, draws = self.mixing.top_k, self.mixing.tail_samples
        if not draws:
            return fuse.fuse_rows(projected, weights, k=k)
        every = sum(source.ids.shape[1] for source in projected)
        rows = fuse.fuse_rows(projected, weights, k=every)
        decide = chances.derive("fuse", window.window_id, len(rows.covered), draws)
        return tail.thin_rows(rows, k=k, chances=decide)

    def _eos(self, window: Window, source: Source) -> bool:
        """Says whether both tokenizations of a window end with their EOS."""
        both = self.target.eos_id is not None and source.eos_id is not None
        return window.ends_document and both

    def _project(
        self, window: Window, target: Score, source: Source, score: Score
    ) -> Projected:
        positions = len(target.token_ids) - 1
        k = max(self.mixing.top_k, score.top_ids.shape[1])
        if score.error is not None:
            return project.project_nothing(positions, k=self._width(k))
        alignment = align.align_spans(
            target.byte_ends, score.byte_ends, eos=self._eos(window, source)
        )
        mapping, own = self._map_of(source), self._map_of(self.target)
        begins_alike = mapping.puts_space(
            score.token_ids, score.byte_ends
        ) == own.puts_space(target.token_ids, target.byte_ends)
        return project.project_rows(
            alignment,
            score,
            mapping,
            target.token_ids,
            begins_alike=begins_alike,
            k=self._width(k),
        )

    def _map_of(self, source: Source) -> VocabularyMap:
        """Loads the map of a source, or the target's onto itself."""
        path = files.join(self.output, MAPS, f"{source.name}.parquet")
        return _map(path, source.tokenizer, self.target.tokenizer)

    def _width(self, k: int) -> int:
        """Entries kept of one source before mixing: all of them and the gold."""
        return k + 1

    def _position_costs(
        self, window: Window, target: Score, source: Source, score: Score
    ) -> np.ndarray:
        if score.error is not None:
            return np.full(len(target.token_ids) - 1, np.nan)
        return fuse.position_costs(
            target.byte_ends,
            score.byte_ends,
            score.gold_logprob,
            eos=self._eos(window, source),
        )


def _frequencies(made: Sequence[FusedWindow], size: int) -> np.ndarray:
    """Counts how often each id is kept in a slice."""
    counts = np.zeros(size, np.int64)
    for one in made:
        kept = one.rows.ids[one.rows.ids >= 0]
        counts += np.bincount(kept, minlength=size)
    return counts


def _provenance(made: Sequence[FusedWindow], names: Sequence[str]) -> dict[str, Any]:
    """Counts positions, and windows by the source that weighs most and by domain."""
    taught: dict[str, dict[str, int]] = {}
    for one in made:
        if one.weights.any():
            name = names[int(one.weights.argmax())]
            domain = one.window.domain or windows.DEFAULT_DOMAIN
            row = taught.setdefault(domain, dict.fromkeys(names, 0))
            row[name] += 1
    return {
        "positions": sum(len(one.rows.covered) for one in made),
        "covered": sum(int(has_row(one).sum()) for one in made),
        "taught": taught,
    }


def has_row(made: FusedWindow) -> np.ndarray:
    """Says which positions keep any entry: without one there is nothing to learn."""
    return made.rows.ids[:, 0] >= 0


def loss_positions(window: Window, score: Score) -> np.ndarray:
    """Says which positions of a window count: those whose token has bytes that do.

    With no loss spans all count, the EOS too.

    Returns:
      (t,) truth values, t = tokens - 1.
    """
    if window.loss_spans is None:
        return np.ones(len(score.token_ids) - 1, np.bool_)
    return counted.counted_tokens(score.byte_ends, window.loss_spans)[1:]


def pack_row(made: Sequence[FusedWindow], table: ranks.RankTable) -> FusedRow:
    """Puts windows one behind the other into one training row.

    Position p of the row predicts token p + 1 where both are of one window; the last
    token of a window predicts nothing.
    """
    token_ids = np.concatenate([one.score.token_ids for one in made])
    rows = Distributions(
        counts=_behind([(one.rows.ids >= 0).sum(axis=1) for one in made], 0, np.int32),
        ids=_behind([one.rows.ids for one in made], -1, np.int32),
        probs=_behind([one.rows.probs for one in made], 0, np.float32),
        tail=_behind([one.rows.tail for one in made], 0, np.float32),
    )
    masks = [loss_positions(one.window, one.score) for one in made]
    covered = [m & has_row(one) for m, one in zip(masks, made, strict=True)]
    return FusedRow(
        input_ids=token_ids,
        segment_lengths=np.array([len(w.score.token_ids) for w in made], np.int32),
        loss_mask=_behind(masks, False, np.bool_),
        distribution=codec.encode_rows(rows, token_ids, table),
        window_ids=tuple(one.window.window_id for one in made),
        domains=tuple(one.window.domain for one in made),
        weights=np.stack([one.weights for one in made]).astype(np.float32),
        counted=int(sum(mask.sum() for mask in masks)),
        covered=int(sum(mask.sum() for mask in covered)),
    )


def _behind(parts: Sequence[np.ndarray], fill: Any, dtype: Any) -> np.ndarray:
    """Concatenates the windows' positions, an empty one behind each window."""
    gap = np.full((1, *parts[0].shape[1:]), fill, dtype)
    return np.concatenate([a for part in parts for a in (part, gap)]).astype(dtype)


def taught_by(footers: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Sums over files how many windows of a domain each source taught.

    Returns:
      Counts by "taught:<domain>:<source>".
    """
    total: dict[str, int] = {}
    for footer in footers:
        for domain, row in footer["taught"].items():
            for name, count in row.items():
                key = f"taught:{domain}:{name}"
                total[key] = total.get(key, 0) + count
    return total
