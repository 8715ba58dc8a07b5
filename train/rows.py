"""The positions of a batch that count, and what each is compared with.

found = rows.select_rows(input_ids, loss_mask, top_ids, probs, tail)
taught = rows.temper(found, "renormalise", 2.0)
"""

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from train.tensors import (
    ChunkLogprobRows,
    ChunkLogprobs,
    ChunkOf,
    ChunkRows,
    Counted,
    Factors,
    Kept,
    MaskRows,
    Nats,
    ProbRows,
    Probs,
    Scalar,
    Tail,
    TailRows,
    Targets,
    TokenRows,
    TopIdRows,
    TopIds,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chunks:
    """Stretches of tokens, and how likely the source finds each.

    Attributes:
      of: the chunk that the token a position predicts is of, -1 if of none that
        counts. All positions of a chunk stand side by side.
      logprobs: what the source gives each chunk, nats; NaN at chunks that `of` never
        names.
    """

    of: ChunkOf
    logprobs: ChunkLogprobs


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """The positions of a batch that count, one row each.

    Attributes:
      places: index of each in the batch, flattened.
      targets: the token that comes next.
      ids: kept ids, each once in a row; padding repeats an id.
      probs: their probabilities; 0 at padding.
      kept: which entries are no padding. A position without a fused row keeps its
        gold id, with probability 0, and has no tail: its fusion loss is 0.
      tail: probability of all ids that are not kept.
      fused: whether the position has a fused row at all.
      weights: what each position's fusion loss weighs; None: 1.
      clm_weights: the same for its CLM loss.
      negentropies: sum of p log p over kept entries and tail, which `kl` adds; None:
        it is computed.
      chunks: the chunks of the batch; None: there are none.
    """

    places: Targets
    targets: Targets
    ids: TopIds
    probs: Probs
    kept: Kept
    tail: Tail
    fused: Counted
    weights: Factors | None = None
    clm_weights: Factors | None = None
    negentropies: Nats | None = None
    chunks: Chunks | None = None

    @property
    def covered(self) -> Counted:
        """Whether a position counts in the CLM loss and has a fused row."""
        if self.clm_weights is None:
            return self.fused
        return self.fused & (self.clm_weights > 0)


def select_rows(
    input_ids: TokenRows,
    loss_mask: MaskRows,
    top_ids: TopIdRows,
    probs: ProbRows,
    tail: TailRows,
    *,
    weights: TailRows | None = None,
    chunk_of: ChunkRows | None = None,
    chunk_logprobs: ChunkLogprobRows | None = None,
) -> Rows:
    """Takes the positions that count, and merges ids that a fused row holds twice.

    Position t of a row predicts token t + 1, so `loss_mask` must be false at the last
    position of every segment. A position whose ids are all -1 has no fused row.

    Args:
      input_ids: tokens.
      loss_mask: which positions count in the CLM loss.
      top_ids: kept ids.
      probs: their probabilities.
      tail: probability of what is not kept.
      weights: what each position's fusion loss weighs, at least 0; it may be above 0
        where `loss_mask` is false. None: 1 where `loss_mask` is true.
      chunk_of: chunks, as the collator marks them.
      chunk_logprobs: how likely the source finds them; goes with `chunk_of`.
    """
    counted = loss_mask if weights is None else loss_mask | (weights > 0)
    places = counted.flatten().nonzero().squeeze(-1)  # (n,)
    targets = input_ids.roll(-1, dims=1).flatten()[places].long()
    top_ids = top_ids.flatten(0, 1)[places].long()  # (n, k)
    mass = probs.flatten(0, 1)[places] * (top_ids >= 0)
    ids, mass, kept = _merge_duplicates(top_ids, mass)
    fused = kept.any(-1)
    kept[:, 0] = True
    found = Rows(
        places=places,
        targets=targets,
        ids=torch.where(fused[:, None], ids, targets[:, None]),
        probs=mass,
        kept=kept,
        tail=torch.where(fused, tail.flatten()[places], 0.0),
        fused=fused,
    )
    if weights is not None:
        taught = loss_mask.flatten()[places].to(mass)
        heard = weights.flatten()[places].to(mass)
        found = dataclasses.replace(found, weights=heard, clm_weights=taught)
    if chunk_of is None or chunk_logprobs is None:
        return found
    chunks = _select_chunks(chunk_of, chunk_logprobs, places)
    return dataclasses.replace(found, chunks=chunks)


def _select_chunks(
    chunk_of: ChunkRows, logprobs: ChunkLogprobRows, places: Targets
) -> Chunks:
    """Numbers the chunks of all rows of a batch from 0."""
    first = torch.arange(len(chunk_of), device=chunk_of.device) * logprobs.shape[1]
    of = torch.where(chunk_of >= 0, chunk_of + first[:, None], -1)  # (b, t)
    return Chunks(of=of.flatten()[places], logprobs=logprobs.flatten())


def _merge_duplicates(ids: TopIds, probs: Probs) -> tuple[TopIds, Probs, Kept]:
    """Adds the masses of equal ids; -1 and repetitions become padding at the end."""
    if ids.shape[1] == 0:
        ids, probs = ids.new_full((len(ids), 1), -1), probs.new_zeros(len(ids), 1)
    ids, order = torch.sort(ids, dim=-1, descending=True)  # -1 comes last
    first = torch.ones_like(ids, dtype=torch.bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    kept = first & (ids >= 0)
    run = first.cumsum(-1) - 1  # (n, k): which distinct id an entry belongs to
    merged = torch.zeros_like(probs).scatter_add_(1, run, probs.gather(1, order))
    distinct = ids[:, :1].expand_as(ids).scatter(1, run, ids)
    counts = kept.sum(-1, keepdim=True)
    kept = torch.arange(ids.shape[1], device=ids.device) < counts
    distinct = torch.where(kept, distinct, ids[:, :1]).clamp_min(0)
    return distinct, merged * kept, kept


def count(batch: dict[str, Tensor]) -> Tensor:
    """Counts what the three means of a batch are over: (3,), float32.

    Returns:
      Positions of the CLM loss; of the fusion loss, or the sum of what they weigh;
      chunks.
    """
    counted = batch["loss_mask"]
    if "weights" in batch:
        fused = batch["weights"].sum()
    else:
        fused = (counted & (batch["top_ids"] >= 0).any(-1)).sum()
    chunks: Scalar | int = 0
    if "chunk_logprobs" in batch:
        chunks = (~batch["chunk_logprobs"].isnan()).sum()
    parts = [counted.sum(), fused, torch.as_tensor(chunks, device=counted.device)]
    return torch.stack([part.float() for part in parts])


def temper(
    rows: Rows, tail: Literal["bucket", "renormalise"], temperature: float
) -> Rows:
    """Makes of each fused row what the target is taught.

    `renormalise` spreads a row over the entries it keeps. There a temperature T is
    exact, as what is not kept plays no part::

        p_j = p_j^(1/T) / sum_i p_i^(1/T)        i over the kept entries

    In the tail, the sum over its ids of p^(1/T) is unknown: a fused row has neither
    these probabilities nor a log-sum-exp of logits that would tell it.

    Raises:
      ValueError: if the tail is to be a bucket and T is not 1.
    """
    if tail == "bucket":
        if temperature != 1:
            raise ValueError(
                "the teacher's temperature must be 1 where tail is bucket, got"
                f" {temperature}: what a row does not keep cannot be tempered; take"
                " --tail=renormalise"
            )
        return rows
    probs = rows.probs
    if temperature != 1:
        cooled = torch.where(rows.kept, probs.log() / temperature, -torch.inf)
        best = cooled.amax(-1, keepdim=True)
        probs = torch.where(best > -torch.inf, (cooled - best).exp(), probs)
    total = probs.sum(-1, keepdim=True)
    probs = torch.where(total > 0, probs / total, probs)
    return dataclasses.replace(rows, probs=probs, tail=torch.zeros_like(rows.tail))


def round_rows(rows: Rows, temperature: float) -> Rows:
    """Makes of each fused row the authors' teacher: renormalized, in bfloat16.

    A row is divided by 1 - tail, the mass it keeps, so that one without a tail stays
    what it is; sum_v p log p is, as in their code, of products in bfloat16. Their
    temperature divides the logits of each source, ours those of their mixture: the
    same where one source is chosen (MinCE).
    """
    kept = 1 - rows.tail[:, None]
    probs = torch.where(kept > 0, rows.probs / kept, rows.probs)
    if temperature != 1:
        probs = temper(rows, "renormalise", temperature).probs
    narrow = probs.to(torch.bfloat16)
    products = torch.where(narrow > 0, narrow * narrow.log(), 0.0)
    return dataclasses.replace(
        rows,
        probs=narrow.to(probs.dtype),
        tail=torch.zeros_like(rows.tail),
        negentropies=products.to(probs.dtype).sum(-1),
    )
