"""Training rows: fused windows put end to end, encoded, with what is known of them."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from schemas import windows
from schemas.fused import FusedRow
from schemas.scores import Score
from schemas.windows import Window
from transforms.functional import chunks, codec, counted, ranks
from transforms.functional.chunks import Chunks
from transforms.functional.codec import Distributions
from transforms.functional.fuse import Fused
from transforms.sources import Source

_TAUGHT = "taught:"
"""How keys of counts begin that say who taught what."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FusedWindow:
    """A window's target tokens with what s sources say of them, not yet packed.

    Attributes:
      window: the window.
      score: the target's.
      rows: the fused distributions.
      weights: (s,) float32 share of each source.
      logprobs: (s,) what each gives the bytes that count, nats; NaN where it failed.
      coverage: (s,) share of the positions that each speaks about.
      chunks: what the source that weighs most gives each chunk.
    """

    window: Window
    score: Score
    rows: Fused
    weights: np.ndarray
    logprobs: np.ndarray
    coverage: np.ndarray
    chunks: Chunks

    @property
    def has_row(self) -> np.ndarray:
        """Which positions keep any entry: without one there is nothing to learn."""
        return self.rows.ids[:, 0] >= 0


def loss_positions(window: Window, score: Score) -> np.ndarray:
    """Says which positions of a window count: those whose token has bytes that do.

    With no loss spans all count, the EOS too. With such, the EOS counts behind an
    answer that ends the text, as then nothing else tells the model to stop.

    Returns:
      (t,) truth values, t = tokens - 1.
    """
    if window.loss_spans is None:
        return np.ones(len(score.token_ids) - 1, np.bool_)
    counts = counted.counted_tokens(score.byte_ends, window.loss_spans)[1:]
    if window.eos_follows and window.loss_spans[-1:] == (int(score.byte_ends[-1]),):
        counts[-1] = True
    return counts


def cut_chosen(
    window: Window,
    score: Score,
    pairs: Sequence[tuple[Source, Score]],
    weights: np.ndarray,
    target: Source,
) -> Chunks:
    """Cuts a window by the source that weighs most, the first among equals.

    Args:
      window: the window.
      score: the target's score of it.
      pairs: the sources, and what each says of the window.
      weights: (s,) of each, as stored.
      target: the target.
    """
    if not weights.any():
        return chunks.cut_nothing(len(score.token_ids))
    source, chosen = pairs[int(weights.argmax())]
    if chosen.error is not None:  # only the authors' rules choose such a source
        return chunks.cut_nothing(len(score.token_ids))
    return chunks.cut_chunks(
        score.byte_ends,
        chosen.byte_ends,
        chosen.gold_logprob,
        target_eos=target.ends_with_eos(window),
        source_eos=source.ends_with_eos(window),
    )


def pack_row(made: Sequence[FusedWindow], table: ranks.RankTable) -> FusedRow:
    """Puts windows one behind the other into one training row.

    Position p of the row predicts token p + 1 where both are of one window; the last
    token of a window predicts nothing.
    """
    token_ids = np.concatenate([one.score.token_ids for one in made])
    lengths = np.array([len(one.score.token_ids) for one in made], np.int32)
    starts = np.cumsum(lengths, dtype=np.int32) - lengths
    rows = Distributions(
        counts=_behind([(one.rows.ids >= 0).sum(axis=1) for one in made], 0, np.int32),
        ids=_behind([one.rows.ids for one in made], -1, np.int32),
        probs=_behind([one.rows.probs for one in made], 0, np.float32),
        tail=_behind([one.rows.tail for one in made], 0, np.float32),
    )
    masks = [loss_positions(one.window, one.score) for one in made]
    covered = [m & one.has_row for m, one in zip(masks, made, strict=True)]
    ends = [one.chunks.ends + at for one, at in zip(made, starts, strict=True)]
    logprobs = np.concatenate([one.chunks.logprobs for one in made])
    return FusedRow(
        input_ids=token_ids,
        segment_lengths=lengths,
        loss_mask=_behind(masks, False, np.bool_),
        distribution=codec.encode_rows(rows, token_ids, table),
        window_ids=tuple(one.window.window_id for one in made),
        domains=tuple(one.window.domain for one in made),
        weights=np.stack([one.weights for one in made]),
        source_logprobs=np.stack([one.logprobs for one in made]),
        source_coverage=np.stack([one.coverage for one in made]).astype(np.float32),
        n_bytes=np.array([one.score.n_bytes for one in made], np.int32),
        chunk_ends=np.concatenate(ends),
        chunk_logprobs=chunks.round_logprobs(logprobs),
        counted=int(sum(mask.sum() for mask in masks)),
        covered=int(sum(mask.sum() for mask in covered)),
    )


def _behind(parts: Sequence[np.ndarray], fill: Any, dtype: Any) -> np.ndarray:
    """Concatenates the windows' positions, an empty one behind each window."""
    gap = np.full((1, *parts[0].shape[1:]), fill, dtype)
    return np.concatenate([a for part in parts for a in (part, gap)]).astype(dtype)


def frequencies(made: Sequence[FusedWindow], size: int) -> np.ndarray:
    """Counts how often each id below `size` is kept in a slice."""
    counts = np.zeros(size, np.int64)
    for one in made:
        kept = one.rows.ids[one.rows.ids >= 0]
        counts += np.bincount(kept, minlength=size)
    return counts


def provenance(made: Sequence[FusedWindow], names: Sequence[str]) -> dict[str, Any]:
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
        "covered": sum(int(one.has_row.sum()) for one in made),
        "taught": taught,
    }


def taught_by(footers: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Sums over files how many windows of a domain each source taught.

    Returns:
      Counts by "taught:<domain>:<source>".
    """
    total: dict[str, int] = {}
    for footer in footers:
        for domain, row in footer["taught"].items():
            for name, count in row.items():
                key = f"{_TAUGHT}{domain}:{name}"
                total[key] = total.get(key, 0) + count
    return total


def taught(counts: Mapping[str, int]) -> Iterator[tuple[str, str, int]]:
    """Yields domain, source and windows of the counts that `taught_by` made.

    A domain may be called anything; a source's name has no colon.
    """
    for key, count in counts.items():
        if key.startswith(_TAUGHT):
            domain, _, name = key.removeprefix(_TAUGHT).rpartition(":")
            yield domain, name, count
