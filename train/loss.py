"""The training objective, without ever holding [positions, vocabulary] whole.

FuseLLM's objective (Wan et al. 2024, arXiv 2401.10491; clm_weight is its lambda)::

    L        = clm_weight * L_CLM + (1 - clm_weight) * L_Fusion
    L_Fusion = (1 - chunk_share) * L_Rows + chunk_share * L_Chunks

    L_CLM    = mean over counted positions of  -log q(gold)
    L_Rows   = mean over counted positions that have a fused row of D(p, q)
    L_Chunks = mean over chunks of how far target and source differ: `likelihoods`

where q is the target's softmax over the full vocabulary, p the fused row over the k
entries that it keeps and the tail, one bucket for all other ids, and D is one of
`divergences`; by default the cross-entropy. Where we differ from the paper: its rows
are renormalized over k and have no tail (`renormalise`), which teaches the target that
nothing outside the top k can happen.

All parts share one softmax. With z the logits of a position, the gradient is one
multiple of the softmax, mended at the kept ids and the gold id::

    dL/dz_v = a (q_v - [v = gold]) + b q_v (g_v - G)        v is kept
    dL/dz_v = a (q_v - [v = gold]) + b q_v (g_tail - G)     v is not

(g and G as in `divergences`; a and b what the position weighs in the means, its chunk's
part within a), so it is formed in the forward pass, chunk by chunk of positions, and
multiplied into the gradients of hidden states and head at once. A target temperature T
takes a second softmax, of z / T, whose gradient counts 1 / T.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from train import gradient
from train import objective as objectives
from train.gradient import Task
from train.objective import Objective as Objective
from train.rows import Rows as Rows
from train.tensors import HeadBias, HeadWeight, Hidden, Logits, Scalar

_ROUNDINGS = 8
"""Terms of a head's gradient that are summed in the head's own type."""

_PRODUCT_ELEMENTS = 1 << 26
"""Numbers of a product that is held before it is added to a sum of another type."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Losses:
    """The loss of a batch and its parts.

    Attributes:
      loss: what to differentiate.
      clm_sum: sum of the CLM loss over counted positions, nats; no gradient.
      fusion_sum: sum of the fusion loss over its positions, times what they weigh,
        nats; no gradient.
      chunk_sum: sum of the chunks' loss, nats; no gradient.
      agree_sum: positions with a fused row whose likeliest id is the target's, too.
      kept_sum: sum of the target's probability of the kept ids over such positions.
    """

    loss: Scalar
    clm_sum: Scalar
    fusion_sum: Scalar
    chunk_sum: Scalar
    agree_sum: Scalar
    kept_sum: Scalar


def head_loss(
    hidden: Hidden,
    weight: HeadWeight,
    bias: HeadBias | None,
    rows: Rows,
    objective: Objective,
    *,
    clm_count: Scalar,
    fusion_count: Scalar,
    chunk_count: Scalar | None = None,
    scale: float = 1.0,
    cap: float | None = None,
    kernels: bool = True,
) -> Losses:
    """Applies the output head and the objective in chunks of positions.

    Logits are z = cap tanh(scale x / cap), x being the head's outputs; without a cap,
    scale x.

    Args:
      hidden: what the head is applied to, at the positions of `rows`.
      weight: the head's weight; frozen, it gets no gradient and costs none.
      bias: the head's bias, or None.
      rows: what each position is compared with.
      objective: what is minimized.
      clm_count: positions that L_CLM is the mean over; those of the whole optimizer
        step where gradients are accumulated or averaged over processes.
      fusion_count: the same for L_Rows, or the sum of what its positions weigh.
      chunk_count: the same for L_Chunks; needed where it is part of the objective.
      scale: what the head's outputs are multiplied by.
      cap: bound of the logits' magnitude, above 0; None: there is none.
      kernels: whether Triton's kernels may be used, where they can.
    """
    counts = (clm_count, fusion_count, chunk_count)
    task = _task(rows, objective, counts, scale=scale, cap=cap, kernels=kernels)
    dtype = _matmul_dtype(hidden, weight)
    return _losses(_HeadLoss.apply(hidden, weight, bias, task, dtype))


def module_loss(
    hidden: Hidden,
    head: nn.Module,
    rows: Rows,
    objective: Objective,
    *,
    clm_count: Scalar,
    fusion_count: Scalar,
    chunk_count: Scalar | None = None,
    scale: float = 1.0,
    cap: float | None = None,
    kernels: bool = True,
) -> Losses:
    """Does as `head_loss` does with a head that is more than a weight.

    The module is run, and differentiated, chunk by chunk: one with LoRA beside a frozen
    or quantized weight, say. The arguments are those of `head_loss`, but `head`: what
    makes logits of hidden states.
    """
    counts = (clm_count, fusion_count, chunk_count)
    task = _task(rows, objective, counts, scale=scale, cap=cap, kernels=kernels)
    named = {n: p for n, p in head.named_parameters() if p.requires_grad}
    return _losses(_ModuleLoss.apply(hidden, head, task, *named, *named.values()))


def logits_loss(
    logits: Logits,
    rows: Rows,
    objective: Objective,
    *,
    clm_count: Scalar,
    fusion_count: Scalar,
    chunk_count: Scalar | None = None,
    kernels: bool = True,
) -> Losses:
    """Applies the objective to logits, where a model does more to them than its head.

    The arguments are those of `head_loss`.
    """
    counts = (clm_count, fusion_count, chunk_count)
    task = _task(rows, objective, counts, kernels=kernels)
    return _losses(_LogitsLoss.apply(logits, task))


def _task(
    rows: Rows,
    objective: Objective,
    counts: tuple[Scalar, Scalar, Scalar | None],
    *,
    scale: float = 1.0,
    cap: float | None = None,
    kernels: bool,
) -> Task:
    return Task(
        rows=objectives.teach(rows, objective),
        objective=objective,
        scales=objectives.scales(objective, *counts),
        scale=scale,
        cap=cap,
        kernels=kernels,
    )


def _losses(found: tuple[Tensor, ...]) -> Losses:
    loss, clm_sum, fusion_sum, chunk_sum, agree_sum, kept_sum = found
    return Losses(
        loss=loss,
        clm_sum=clm_sum,
        fusion_sum=fusion_sum,
        chunk_sum=chunk_sum,
        agree_sum=agree_sum,
        kept_sum=kept_sum,
    )


def _matmul_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Returns the type of the head's products: autocast's, where it is on."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return torch.promote_types(hidden.dtype, weight.dtype)


class _HeadLoss(torch.autograd.Function):
    """Loss of hidden states and head, its gradients formed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        task: Task,
        dtype: torch.dtype,
    ) -> tuple[Tensor, ...]:
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        exact = torch.promote_types(torch.float32, dtype)
        # The kernels leave the products as they are; a bias is added in `exact`.
        given = dtype if bias is None and task.fast(hidden.device) else exact
        product = [] if given == dtype else [dtype]
        parts = gradient.parts(task, len(weight), hidden.device, given, *product)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = _sum_like(weight, exact, len(parts)) if wants_weight else None
        grad_bias = hidden.new_zeros(len(weight), dtype=exact) if wants_bias else None
        sums = hidden.new_zeros(5, dtype=exact)
        with torch.autocast(hidden.device.type, enabled=False):
            head = weight.to(dtype)
            for part in parts:
                states = hidden[part].to(dtype)
                outputs = (states @ head.T).to(given)  # (c, v)
                if bias is not None:
                    outputs += bias
                sums += gradient.loss_and_gradient(outputs, task, part)
                if grad_bias is not None:  # the outputs are their gradient now
                    grad_bias += outputs.sum(0)
                outputs = outputs.to(dtype)
                if grad_hidden is not None:
                    grad_hidden[part] = (outputs @ head).to(hidden.dtype)
                if grad_weight is not None:
                    _add_product(grad_weight, outputs.T, states)
                del outputs  # before the next ones are made
        ctx.gradients = (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
        )
        return _finish(ctx, sums, task)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return (*_released(ctx, outer[0]), None, None)


class _ModuleLoss(torch.autograd.Function):
    """Loss of hidden states and a module: names of its parameters, then these."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: nn.Module, task: Task, *named: Any
    ) -> tuple[Tensor, ...]:
        ctx.others = 2 + len(named) // 2
        names, values = named[: len(named) // 2], named[len(named) // 2 :]
        leaves = [value.detach().requires_grad_() for value in values]
        like = _outputs_of_nothing(head, hidden)
        width, made = like.shape[-1], like.dtype
        exact = torch.promote_types(torch.float32, made)
        product = [made] if made == exact else [made, made]
        parts = gradient.parts(task, width, hidden.device, exact, *product)
        grads = [_sum_like(value, torch.float32, len(parts)) for value in values]
        grad_hidden = torch.empty_like(hidden)
        sums = hidden.new_zeros(
            5, dtype=torch.promote_types(torch.float32, hidden.dtype)
        )
        for part in parts:
            states = hidden[part].detach().requires_grad_()
            with torch.enable_grad():
                outputs = torch.func.functional_call(
                    head, dict(zip(names, leaves, strict=True)), (states,)
                )
            chunk = outputs.detach().to(exact, copy=True)
            with torch.autocast(hidden.device.type, enabled=False):
                sums += gradient.loss_and_gradient(chunk, task, part)
            found = torch.autograd.grad(
                outputs, [states, *leaves], chunk.to(made), allow_unused=True
            )
            del outputs, chunk  # before the next ones are made
            grad_hidden[part] = found[0]
            for total, more in zip(grads, found[1:], strict=True):
                if more is not None:
                    total += more
        grads = [g.to(v.dtype) for g, v in zip(grads, values, strict=True)]
        ctx.gradients = (grad_hidden, *grads)
        return _finish(ctx, sums, task)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        hidden, *parameters = _released(ctx, outer[0])
        return (hidden, *[None] * ctx.others, *parameters)


class _LogitsLoss(torch.autograd.Function):
    """Loss of logits, its gradient formed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, task: Task) -> tuple[Tensor, ...]:
        exact = torch.promote_types(torch.float32, logits.dtype)
        sums = logits.new_zeros(5, dtype=exact)
        grad = torch.empty_like(logits)
        given = logits.dtype if task.fast(logits.device) else exact
        for part in gradient.parts(task, logits.shape[1], logits.device, given):
            chunk = logits[part].to(given, copy=True)
            sums += gradient.loss_and_gradient(chunk, task, part)
            grad[part] = chunk
        ctx.gradients = (grad,)
        return _finish(ctx, sums, task)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return (*_released(ctx, outer[0]), None)


def _outputs_of_nothing(head: nn.Module, hidden: Tensor) -> Tensor:
    """Runs a head on no position, to see how wide and of what type its logits are."""
    with torch.no_grad():
        return head(hidden[:0])


def _finish(ctx: Any, sums: Tensor, task: Task) -> tuple[Tensor, ...]:
    """Returns L and the sums, of which L alone is differentiated."""
    clm, fusion, chunks = (scale.to(sums) for scale in task.scales)
    loss = sums[0] * clm + sums[1] * fusion
    if task.objective.matches_chunks:
        loss = loss + sums[2] * chunks
    parts = tuple(one.clone() for one in sums)
    ctx.mark_non_differentiable(*parts)
    return loss, *parts


def _released(ctx: Any, outer: Tensor) -> list[Tensor | None]:
    """Returns the gradients times the outer one, in place: they are used once."""
    if ctx.gradients is None:
        raise RuntimeError("the loss can be differentiated once; compute it again")
    gradients, ctx.gradients = ctx.gradients, None
    return [None if g is None else g.mul_(outer.to(g.dtype)) for g in gradients]


def _sum_like(parameter: Tensor, exact: torch.dtype, terms: int) -> Tensor:
    """Returns zeros for a sum of gradients: in the parameter's own type, if it can be.

    Each term rounds the sum once. `_ROUNDINGS` of them at random are off by twice what
    the gradient is rounded by in any case; a sum of more is kept in `exact`.
    """
    own = parameter.dtype
    wide = own if terms <= _ROUNDINGS else torch.promote_types(own, exact)
    return torch.zeros_like(parameter, dtype=wide)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds left @ right to `total`, in place; some rows at a time, if types differ."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
        return
    size = max(1, _PRODUCT_ELEMENTS // max(1, total.shape[1]))
    for at in range(0, len(total), size):
        total[at : at + size] += left[at : at + size] @ right
