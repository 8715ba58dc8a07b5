"""The training objective, without ever holding [positions, vocabulary] whole.

FuseLLM's objective (Wan et al. 2024, arXiv 2401.10491; clm_weight is its lambda)::

    L = clm_weight * L_CLM + (1 - clm_weight) * L_Fusion

    L_CLM    = mean over counted positions of  -log q(gold)
    L_Fusion = mean over counted positions that have a fused row of
        ce:  -sum_j p_j log q_j - p_tail log q_tail
        kl:  the same, plus sum_j p_j log p_j + p_tail log p_tail

where q is the target's softmax over the full vocabulary, j runs over the k kept entries
of the fused row p, and the tail is one bucket: q_tail is the sum of q over all ids that
the row does not keep. Where we differ from the paper: its rows are renormalized over k
and have no tail (`renormalise`), which teaches the target that nothing outside the top
k can happen.

The two parts share one softmax. With z the logits of a position, the gradient is one
multiple of the softmax, mended at the kept ids and the gold id::

    dL/dz_v = a (q_v - [v = gold]) + b (p_all q_v - p_v)           v is kept
    dL/dz_v = a  q_v               + b (p_all - p_tail/q_tail) q_v  v is not

(p_all = sum_j p_j + p_tail; a, b the weights of the two means), so it is formed in the
forward pass, chunk by chunk of positions, and multiplied into the gradients of hidden
states and head at once.
"""

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor

from train.tensors import (
    Counted,
    HeadBias,
    HeadWeight,
    Hidden,
    Kept,
    Logits,
    MaskRows,
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

_TINY = 1e-30
"""Least probability of the tail: below it the logarithm is cut off."""

_CHUNK_ELEMENTS = {"cpu": 1 << 21, "cuda": 1 << 27}
"""Logits held at once: what fits a CPU's cache; on a GPU, 512 MiB in float32."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What is minimized.

    Attributes:
      clm_weight: share of the causal language modeling loss, in [0, 1].
      fusion_loss: cross-entropy or Kullback-Leibler divergence to the fused rows; they
        differ by a constant, so the gradients are equal.
      tail: one bucket for what a fused row does not keep, or rows renormalized over
        what they keep.
      label_smoothing: share of the CLM target that is spread evenly over the
        vocabulary, in [0, 1): a control for what fusion does beyond smoothing.
    """

    clm_weight: float = 0.9
    fusion_loss: Literal["ce", "kl"] = "ce"
    tail: Literal["bucket", "renormalise"] = "bucket"
    label_smoothing: float = 0.0


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
    """

    places: Targets
    targets: Targets
    ids: TopIds
    probs: Probs
    kept: Kept
    tail: Tail
    fused: Counted


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Losses:
    """The loss of a batch and its parts.

    Attributes:
      loss: what to differentiate.
      clm_sum: sum of the CLM loss over counted positions, nats; no gradient.
      fusion_sum: sum of the fusion loss over its positions, nats; no gradient.
      agree_sum: positions with a fused row whose likeliest id is the target's, too.
      kept_sum: sum of the target's probability of the kept ids over such positions.
    """

    loss: Scalar
    clm_sum: Scalar
    fusion_sum: Scalar
    agree_sum: Scalar
    kept_sum: Scalar


def select_rows(
    input_ids: TokenRows,
    loss_mask: MaskRows,
    top_ids: TopIdRows,
    probs: ProbRows,
    tail: TailRows,
) -> Rows:
    """Takes the positions that count, and merges ids that a fused row holds twice.

    Position t of a row predicts token t + 1, so `loss_mask` must be false at the last
    position of every segment. A position whose ids are all -1 has no fused row.
    """
    places = loss_mask.flatten().nonzero().squeeze(-1)  # (n,)
    targets = input_ids.roll(-1, dims=1).flatten()[places].long()
    top_ids = top_ids.flatten(0, 1)[places].long()  # (n, k)
    mass = probs.flatten(0, 1)[places] * (top_ids >= 0)
    ids, mass, kept = _merge_duplicates(top_ids, mass)
    fused = kept.any(-1)
    kept[:, 0] = True
    return Rows(
        places=places,
        targets=targets,
        ids=torch.where(fused[:, None], ids, targets[:, None]),
        probs=mass,
        kept=kept,
        tail=torch.where(fused, tail.flatten()[places], 0.0),
        fused=fused,
    )


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


def head_loss(
    hidden: Hidden,
    weight: HeadWeight,
    bias: HeadBias | None,
    rows: Rows,
    objective: Objective,
    *,
    clm_count: Scalar,
    fusion_count: Scalar,
) -> Losses:
    """Applies the output head and the objective in chunks of positions.

    Args:
      hidden: what the head is applied to, at the positions of `rows`.
      weight: the head's weight.
      bias: the head's bias, or None.
      rows: what each position is compared with.
      objective: what is minimized.
      clm_count: positions that L_CLM is the mean over; those of the whole optimizer
        step where gradients are accumulated or averaged over processes.
      fusion_count: the same for L_Fusion.
    """
    scales = _scales(objective, clm_count, fusion_count)
    dtype = _matmul_dtype(hidden, weight)
    return _losses(
        *_HeadLoss.apply(
            hidden, weight, bias, _teach(rows, objective), objective, scales, dtype
        )
    )


def logits_loss(
    logits: Logits,
    rows: Rows,
    objective: Objective,
    *,
    clm_count: Scalar,
    fusion_count: Scalar,
) -> Losses:
    """Applies the objective to logits, where a model does more to them than its head.

    The arguments are those of `head_loss`.
    """
    scales = _scales(objective, clm_count, fusion_count)
    return _losses(
        *_LogitsLoss.apply(logits, _teach(rows, objective), objective, scales)
    )


def _losses(loss: Tensor, sums: Tensor) -> Losses:
    clm_sum, fusion_sum, agree_sum, kept_sum = sums.unbind()
    return Losses(
        loss=loss,
        clm_sum=clm_sum,
        fusion_sum=fusion_sum,
        agree_sum=agree_sum,
        kept_sum=kept_sum,
    )


def _scales(objective: Objective, clm: Scalar, fusion: Scalar) -> tuple[Tensor, Tensor]:
    """Returns what one position's CLM and fusion losses weigh in L."""
    share = objective.clm_weight
    return share / clm.clamp_min(1), (1 - share) / fusion.clamp_min(1)


def _matmul_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Returns the type of the head's products: autocast's, where it is on."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return torch.promote_types(hidden.dtype, weight.dtype)


def _teach(rows: Rows, objective: Objective) -> Rows:
    """Spreads each fused row over what it keeps, where the objective says so."""
    if objective.tail == "bucket":
        return rows
    total = rows.probs.sum(-1, keepdim=True)
    probs = torch.where(total > 0, rows.probs / total, rows.probs)
    return dataclasses.replace(rows, probs=probs, tail=torch.zeros_like(rows.tail))


def _chunks(count: int, width: int, device: torch.device) -> list[slice]:
    limit = _CHUNK_ELEMENTS.get(device.type, _CHUNK_ELEMENTS["cuda"])
    # A product of a few rows with the whole head would be bound by reading the head.
    size = min(max(count, 1), max(128, limit // width))
    return [slice(at, min(at + size, count)) for at in range(0, count, size)]


class _HeadLoss(torch.autograd.Function):
    """Loss of hidden states and head, its gradients formed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Rows,
        objective: Objective,
        scales: tuple[Tensor, Tensor],
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        exact = torch.promote_types(torch.float32, dtype)
        grad_weight = torch.zeros_like(weight, dtype=exact) if wants_weight else None
        grad_bias = hidden.new_zeros(len(weight), dtype=exact) if wants_bias else None
        sums = hidden.new_zeros(4, dtype=exact)
        with torch.autocast(hidden.device.type, enabled=False):
            head = weight.to(dtype)
            for part in _chunks(len(hidden), len(weight), hidden.device):
                states = hidden[part].to(dtype)
                logits = (states @ head.T).to(exact)  # (c, v)
                if bias is not None:
                    logits += bias
                sums += _loss_and_gradient(logits, rows, part, objective, scales)
                gradient = logits.to(dtype)  # (c, v): overwritten by the call above
                if grad_hidden is not None:
                    grad_hidden[part] = (gradient @ head).to(hidden.dtype)
                if grad_weight is not None:
                    _add_product(grad_weight, gradient.T, states)
                if grad_bias is not None:
                    grad_bias += logits.sum(0)
        ctx.gradients = (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
        )
        return _outputs(ctx, sums, scales)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return (*_released(ctx, outer[0]), None, None, None, None)


class _LogitsLoss(torch.autograd.Function):
    """Loss of logits, its gradient formed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        rows: Rows,
        objective: Objective,
        scales: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(torch.float32, logits.dtype)
        sums = logits.new_zeros(4, dtype=exact)
        gradient = torch.empty_like(logits)
        for part in _chunks(len(logits), logits.shape[1], logits.device):
            chunk = logits[part].to(exact, copy=True)
            sums += _loss_and_gradient(chunk, rows, part, objective, scales)
            gradient[part] = chunk
        ctx.gradients = (gradient,)
        return _outputs(ctx, sums, scales)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return (*_released(ctx, outer[0]), None, None, None)


def _outputs(
    ctx: Any, sums: Tensor, scales: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    loss = sums[0] * scales[0].to(sums) + sums[1] * scales[1].to(sums)
    ctx.mark_non_differentiable(sums)
    return loss, sums


def _released(ctx: Any, outer: Tensor) -> list[Tensor | None]:
    """Returns the gradients times the outer one, in place: they are used once."""
    if ctx.gradients is None:
        raise RuntimeError("the loss can be differentiated once; compute it again")
    gradients, ctx.gradients = ctx.gradients, None
    return [None if g is None else g.mul_(outer.to(g.dtype)) for g in gradients]


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds left @ right to `total`, in place where the types allow."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _loss_and_gradient(
    logits: Tensor,
    rows: Rows,
    part: slice,
    objective: Objective,
    scales: tuple[Tensor, Tensor],
) -> Tensor:
    """Sums the two losses of a chunk and overwrites its logits with dL/dlogits.

    Returns:
      The sums of the CLM and of the fusion loss, in nats, and over positions with a
      fused row: how many agree with it on the likeliest id, and the probability of the
      kept ids.
    """
    gold, ids = rows.targets[part, None], rows.ids[part]  # (c, 1), (c, k)
    probs, tail = rows.probs[part].to(logits), rows.tail[part].to(logits)
    weigh_clm, weigh_fusion = scales[0].to(logits), scales[1].to(logits)
    smooth, width = objective.label_smoothing, logits.shape[1]

    at_gold = logits.gather(1, gold).squeeze(1)  # (c,)
    at_kept = logits.gather(1, ids)  # (c, k)
    mean = logits.mean(-1) if smooth else at_gold
    top = logits.amax(-1, keepdim=True)  # (c, 1)
    likeliest = at_kept.gather(1, probs.argmax(-1, keepdim=True))  # (c, 1)
    agree = (likeliest >= top).squeeze(1)  # (c,)
    logits.sub_(top).exp_()
    kept = logits.gather(1, ids) * rows.kept[part]  # (c, k)
    # The tail is summed on its own, not as 1 - kept, which would cancel.
    rest = logits.scatter_(1, ids, 0.0).sum(-1)  # (c,)
    whole = rest + kept.sum(-1)
    norm = top.squeeze(1) + whole.log()  # (c,): log-sum-exp of the logits
    tail_prob = (rest / whole).clamp_min(_TINY)
    clm = norm - (1 - smooth) * at_gold - smooth * mean
    fusion = (probs * (norm[:, None] - at_kept)).sum(-1) - tail * tail_prob.log()
    if objective.fusion_loss == "kl":
        fusion += torch.xlogy(probs, probs).sum(-1) + torch.xlogy(tail, tail)

    alive = rest > _TINY * whole  # below it the loss is cut off, so is the gradient
    mass = probs.sum(-1) + tail * alive  # (c,)
    factor = weigh_clm + weigh_fusion * (mass - tail * alive / tail_prob)
    logits.mul_((factor / whole)[:, None])
    factor = (weigh_clm + weigh_fusion * mass) / whole
    logits.scatter_add_(1, ids, kept * factor[:, None] - weigh_fusion * probs)
    logits.scatter_add_(1, gold, (-weigh_clm * (1 - smooth)).expand_as(gold))
    if smooth:
        logits.sub_(weigh_clm * (smooth / width))
    fused = rows.fused[part]
    seen = (fused & agree).sum(), (kept.sum(-1) / whole * fused).sum()
    return torch.stack([clm.sum(), fusion.sum(), *seen])
