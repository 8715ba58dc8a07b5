"""Rows of fused shards as batches of tensors.

    mixture = Mixture([FusedFolder("runs/demo/fused")], seed=42)  # of train.mixture
    collate = Collator(keep_packed=True, vocabulary=32_000)
    batch = collate([mixture[0], mixture[1]])

A batch holds packed rows, documents one behind another::

    input_ids     <s> a b c </s>  <s> d e </s>
    position_ids    0 1 2 3    4    0 1 2    3     restart: segments do not attend
    loss_mask       1 1 1 1    0    1 1 1    0     position p predicts p + 1

or, where that pads little, a document a row, which needs no mask and no positions.
Asked for, there stand beside them what each position weighs, and its chunk.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int32, Int64
from torch import Tensor

from schemas.errors import SchemaError
from transforms.functional import codec
from transforms.functional.codec import Distributions
from transforms.functional.ranks import RankTable

_PADDED = 1.25
"""Area of unpacked segments against their tokens, up to which they are unpacked: a mask
that keeps segments apart makes attention take the square of the whole row's length."""
COLUMNS = (
    *("input_ids", "segment_lengths", "loss_mask", "distribution", "weights"),
    *("chunk_ends", "chunk_logprobs"),
)

Weighing = Literal["equal", "confidence", "kept", "fusellm", "fusechat"]
"""What the fusion loss of a position weighs. Of those that count and have a row: all 1;
the probability of the row's likeliest entry; the mass it keeps. As the authors' masks:
1 wherever there is a token; 1 wherever the position counts, with a row or without."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Example:
    """One packed row.

    Attributes:
      input_ids: tokens of its segments, end to end.
      segment_lengths: tokens of each segment; they sum to t.
      loss_mask: which positions count; never the last of a segment.
      rows: what fusion says of each position's next token.
      weights: share of each source in each segment's rows, in [0, 1].
      chunk_ends: last token of each chunk, as in `FusedRow`.
      chunk_logprobs: what its source gives each, nats; NaN where it says nothing.
      skipped: whether it stands for a row that cannot be read.
    """

    input_ids: Int32[np.ndarray, " t"]
    segment_lengths: Int32[np.ndarray, " s"]
    loss_mask: Bool[np.ndarray, " t"]
    rows: Distributions
    weights: Float32[np.ndarray, "s w"]
    chunk_ends: Int32[np.ndarray, " c"] = dataclasses.field(
        default_factory=lambda: np.zeros(0, np.int32)
    )
    chunk_logprobs: Float32[np.ndarray, " c"] = dataclasses.field(
        default_factory=lambda: np.zeros(0, np.float32)
    )
    skipped: bool = False


def blank() -> Example:
    """Makes what stands for a row that cannot be read: one token that counts nowhere.

    So a step has as many rows as without the fault, and the others keep their places.
    """
    return Example(
        input_ids=np.zeros(1, np.int32),
        segment_lengths=np.ones(1, np.int32),
        loss_mask=np.zeros(1, bool),
        rows=Distributions(
            counts=np.zeros(1, np.int32),
            ids=np.full((1, 1), -1, np.int32),
            probs=np.zeros((1, 1), np.float32),
            tail=np.zeros(1, np.float32),
        ),
        weights=np.zeros((1, 0), np.float32),
        skipped=True,
    )


def decode(row: Mapping[str, Any], table: RankTable) -> Example:
    """Decodes one row.

    Args:
      row: its value in each of `COLUMNS`: arrays, and the codec's bytes.
      table: that of the row's file.

    Raises:
      SchemaError: if it is corrupt. The caller knows which file and row it is.
    """
    _check(row, table)
    ids, lengths = row["input_ids"], row["segment_lengths"]
    mask = row["loss_mask"].copy()
    mask[np.cumsum(lengths) - 1] = False  # there is no next token
    return Example(
        input_ids=ids,
        segment_lengths=lengths,
        loss_mask=mask,
        rows=codec.decode_rows(row["distribution"], ids, table),
        weights=row["weights"].reshape(len(lengths), -1),
        chunk_ends=row["chunk_ends"],
        chunk_logprobs=row["chunk_logprobs"],
    )


def _check(row: Mapping[str, Any], table: RankTable) -> None:
    """Checks what the codec does not.

    Raises:
      SchemaError: if columns do not fit each other, or hold what cannot be.
    """
    ids, lengths, mask = (row[n] for n in ("input_ids", "segment_lengths", "loss_mask"))
    whole = len(lengths) and lengths.sum() == len(ids) == len(mask)
    if not whole or (lengths < 1).any():
        raise SchemaError(
            f"segments must sum to the row's {len(ids)} tokens, at least one, they sum"
            f" to {lengths.sum()}, and the loss mask holds {len(mask)}; run fuse again"
        )
    size = table.order.size
    if ids.min() < 0 or ids.max() >= size:
        raise SchemaError(
            f"input_ids must be in [0, {size}), the ids of the tokenizer that the row"
            f" was fused for, got {ids.min()} to {ids.max()}; run fuse again"
        )
    if len(row["weights"]) % len(lengths):
        raise SchemaError(
            f"weights must be of each source in each of the row's {len(lengths)}"
            f" segments, there are {len(row['weights'])} of them; run fuse again"
        )
    ends, logprobs = row["chunk_ends"], row["chunk_logprobs"]
    rising = (np.diff(ends, prepend=0, append=len(ids)) > 0).all()
    if len(ends) != len(logprobs) or not rising:
        raise SchemaError(
            f"chunk_ends must rise within the row's {len(ids)} tokens, one for each of"
            f" its {len(logprobs)} chunk_logprobs, got {len(ends)}; run fuse again"
        )
    if (logprobs > 0).any():
        raise SchemaError(
            f"chunk_logprobs must be at most 0, got {np.nanmax(logprobs)}; run fuse"
            " again"
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Collator:
    """Turns rows into one batch of tensors, padded to the longest.

    Segments of like lengths are unpacked, each a row of its own: the losses are the
    same, and plain causal attention over short rows is cheaper than a mask over long
    ones (1.6 times a step, at four windows a row on two CPU cores).

    Attributes:
      keep_packed: False for a model in which segments of a row would see each other:
        they are always unpacked.
      vocabulary: how many ids the model has.
      across: whether segments of a packed row see what stands before them, as in the
        authors' blocks: rows stay packed, and positions run on.
      weighing: what positions weigh; but for `equal` a batch has `weights`.
      chunks: whether a batch has `chunk_of` and `chunk_logprobs`.
    """

    keep_packed: bool
    vocabulary: int
    across: bool = False
    weighing: Weighing = "equal"
    chunks: bool = False

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Collates rows.

        Raises:
          SchemaError: if a token is beyond the model's vocabulary.
        """
        pieces = self._pieces(examples)
        t = max(len(p.input_ids) for p in pieces)
        k = max(p.rows.ids.shape[1] for p in pieces)
        batch = _blank(len(pieces), t, k)
        for row, piece in enumerate(pieces):
            self._check(piece)
            n, width = len(piece.input_ids), piece.rows.ids.shape[1]
            batch["input_ids"][row, :n] = piece.input_ids
            batch["position_ids"][row] = positions(piece.segment_lengths, t)
            batch["loss_mask"][row, :n] = piece.loss_mask
            batch["top_ids"][row, :n, :width] = piece.rows.ids
            batch["probs"][row, :n, :width] = piece.rows.probs
            batch["tail"][row, :n] = piece.rows.tail
        if self.weighing != "equal":
            batch["weights"] = self._weigh(pieces, t)
        if self.chunks:
            batch |= _mark_chunks(pieces, t)
        if self.across or all(len(piece.segment_lengths) == 1 for piece in pieces):
            del batch["position_ids"]  # nothing restarts: attention needs no mask
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        return {**tensors, **_sums(examples, across=self.across)}

    def _pieces(self, examples: Sequence[Example]) -> Sequence[Example]:
        """Returns the rows of a batch: the packed ones, or their segments."""
        if self.across:
            return examples
        lengths = np.concatenate([e.segment_lengths for e in examples])
        area = len(lengths) * int(lengths.max())
        if self.keep_packed and area > _PADDED * int(lengths.sum()):
            return examples
        return [piece for example in examples for piece in split(example)]

    def _weigh(self, pieces: Sequence[Example], t: int) -> Float32[np.ndarray, "b t"]:
        weights = np.zeros((len(pieces), t), np.float32)
        for row, piece in enumerate(pieces):
            if piece.skipped:
                continue
            n, rows, counted = len(piece.input_ids), piece.rows, piece.loss_mask
            covered = counted & (rows.counts > 0)
            weights[row, :n] = {
                "confidence": covered * rows.probs.max(-1, initial=0.0),
                "kept": covered * (1 - rows.tail),
                "fusellm": np.ones(n),
                "fusechat": counted,
            }[self.weighing]
        return weights

    def _check(self, piece: Example) -> None:
        top = max(piece.input_ids.max(), piece.rows.ids.max(initial=-1))
        if top >= self.vocabulary or piece.input_ids.min() < 0:
            raise SchemaError(
                f"ids must be in [0, {self.vocabulary}), the model's vocabulary, got"
                f" {top}; fuse for the tokenizer of this model"
            )


def _sums(examples: Sequence[Example], *, across: bool) -> dict[str, Tensor]:
    """Sums what the metrics of a step are made of, over a batch's segments.

    Returns:
      tokens: how many there are.
      attended: sum of squared lengths: pairs of positions that full attention compares;
        of whole rows where segments see each other.
      skipped: examples that stand for rows that cannot be read; they have no tokens.
      sources: (w,) positions that count and have a fused row, by the source that they
        are of, in shares.
    """
    sources = np.zeros(examples[0].weights.shape[1], np.float64)
    for example in examples:
        covered = example.loss_mask & (example.rows.counts > 0)
        starts = np.cumsum(example.segment_lengths) - example.segment_lengths
        sources += np.add.reduceat(covered, starts, dtype=np.float64) @ example.weights
    read = [e.segment_lengths for e in examples if not e.skipped]
    if across:
        read = [lengths.sum(keepdims=True) for lengths in read]
    lengths = np.concatenate([np.zeros(0, np.int64), *read]).astype(np.int64)
    return {
        "tokens": torch.tensor(int(lengths.sum())),
        "attended": torch.tensor(int((lengths**2).sum())),
        "skipped": torch.tensor(len(examples) - len(read)),
        "sources": torch.from_numpy(sources),
    }


def _blank(b: int, t: int, k: int) -> dict[str, np.ndarray]:
    return {
        "input_ids": np.zeros((b, t), np.int64),
        "position_ids": np.zeros((b, t), np.int64),
        "loss_mask": np.zeros((b, t), bool),
        "top_ids": np.full((b, t, k), -1, np.int64),
        "probs": np.zeros((b, t, k), np.float32),
        "tail": np.zeros((b, t), np.float32),
    }


def _mark_chunks(pieces: Sequence[Example], t: int) -> dict[str, np.ndarray]:
    """Marks each position with the chunk that the token it predicts is of.

    A chunk whose source says nothing, or that holds a token which does not count, is
    none: its logprob is NaN, and no position is marked with it.
    """
    most = max(1, *(len(piece.chunk_ends) for piece in pieces))
    of = np.full((len(pieces), t), -1, np.int64)
    logprobs = np.full((len(pieces), most), np.nan, np.float32)
    for row, piece in enumerate(pieces):
        n, ends = len(piece.input_ids), piece.chunk_ends
        chunk = np.searchsorted(ends, np.arange(1, n + 1))  # of token p + 1
        inside = chunk < len(ends)
        inside[np.cumsum(piece.segment_lengths) - 1] = False  # a segment's first token
        wanted = np.bincount(chunk[inside], minlength=len(ends))
        counted = np.bincount(chunk[inside & piece.loss_mask], minlength=len(ends))
        whole = (wanted == counted) & (wanted > 0) & ~np.isnan(piece.chunk_logprobs)
        inside[inside] = whole[chunk[inside]]
        of[row, :n] = np.where(inside, chunk, -1)
        logprobs[row, : len(ends)] = np.where(whole, piece.chunk_logprobs, np.nan)
    return {"chunk_of": of, "chunk_logprobs": logprobs}


def positions(
    lengths: Int32[np.ndarray, " s"], size: int
) -> Int64[np.ndarray, " size"]:
    """Counts from 0 in every segment, padding being one more.

    Example:
      >>> positions(np.array([3, 2], np.int32), 7)
      array([0, 1, 2, 0, 1, 0, 1])
    """
    spans = [*lengths.tolist(), size - int(lengths.sum())]
    return np.concatenate([np.arange(n, dtype=np.int64) for n in spans])


def split(example: Example) -> list[Example]:
    """Cuts a packed row into its segments."""
    ends = np.cumsum(example.segment_lengths)
    pieces = []
    spans = zip(ends - example.segment_lengths, ends, strict=True)
    for segment, (start, stop) in enumerate(spans):
        part, rows = slice(start, stop), example.rows
        first, last = np.searchsorted(example.chunk_ends, (start, stop))
        pieces.append(
            Example(
                input_ids=example.input_ids[part],
                segment_lengths=np.array([stop - start], np.int32),
                loss_mask=example.loss_mask[part],
                rows=Distributions(
                    counts=rows.counts[part],
                    ids=rows.ids[part],
                    probs=rows.probs[part],
                    tail=rows.tail[part],
                ),
                weights=example.weights[segment : segment + 1],
                skipped=example.skipped,
                chunk_ends=example.chunk_ends[first:last] - np.int32(start),
                chunk_logprobs=example.chunk_logprobs[first:last],
            )
        )
    return pieces
