"""How far a target's distribution is from a fused row, and which way it should go.

Both are distributions over k + 1 outcomes: the kept ids j of the row, and the tail, all
other ids in one bucket. With z the logits, q = softmax(z) over the whole vocabulary and
q_i the target's probability of an outcome, q_tail being the sum over its ids, ::

    dq_i / dz_v = q_v ([v is of i] - q_i)

so that, whatever the divergence D(p, q), with g_i = dD / dq_i::

    dD / dz_v = q_v (g_i - G)        v is of outcome i,  G = sum_i g_i q_i

A divergence therefore tells four things: its value, the `pulls` g_j q_j at the kept
ids, the `slope` g_tail, and the `total` G. A constant that is added to every g_i falls
out, as the q_i sum to 1.
"""

import dataclasses
from collections.abc import Callable

import torch

from train.softmax import Measured
from train.tensors import KeptNumbers, Nats, Probs, Tail

TINY = 1e-30
"""Least probability of the tail: below it the logarithm is cut off."""

FLOOR = 1e-6
"""Least probability of an outcome of a fused row, where its logarithm is taken."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Divergence:
    """A divergence at each position, and what its gradient is made of.

    Attributes:
      value: nats (total variation: a probability).
      pulls: g_j q_j of the kept ids.
      slope: g of the tail.
      total: sum of g_i q_i over kept ids and tail.
    """

    value: Nats
    pulls: KeptNumbers
    slope: Nats
    total: Nats


def cross_entropy(target: Measured, probs: Probs, tail: Tail) -> Divergence:
    """Measures the cross-entropy of the target under the fused row.

    ::

        D = - sum_j p_j log q_j - p_tail log q_tail
        g_i = - p_i / q_i,   g_j q_j = - p_j,   G = - sum_j p_j - p_tail

    Where q_tail falls below `TINY` the loss is cut off, and g_tail is 0.
    """
    tail_prob = (target.rest / target.whole).clamp_min(TINY)
    alive = target.rest > TINY * target.whole
    # 0 log 0 = 0: an id that the target rules out and the row gives no mass.
    costs = torch.where(probs > 0, target.norm[:, None] - target.at_kept, 0.0)
    return Divergence(
        value=(probs * costs).sum(-1) - tail * tail_prob.log(),
        pulls=-probs,
        slope=-(tail * alive / tail_prob),
        total=-(probs.sum(-1) + tail * alive),
    )


def reverse_kl(target: Measured, probs: Probs, tail: Tail) -> Divergence:
    """Measures the divergence of the fused row from the target.

    ::

        D = sum_i q_i (log q_i - log p_i)
        g_i = log q_i - log p_i   (and 1, which falls out),   G = D

    Where p_i is below `FLOOR`, as p_tail = 0 of a renormalized row, it is taken for
    that, since D would be infinite.

    References:
      Gu et al., "MiniLLM", 2023, arXiv 2306.08543, equation 1, there over sequences.
    """
    q, q_tail = _probs(target)
    gaps = torch.where(q > 0, target.at_kept - target.norm[:, None], 0.0)
    gaps = gaps - probs.clamp_min(FLOOR).log()
    slope = q_tail.clamp_min(TINY).log() - tail.clamp_min(FLOOR).log()
    pulls = q * gaps
    value = pulls.sum(-1) + q_tail * slope
    return Divergence(value=value, pulls=pulls, slope=slope, total=value)


def jensen_shannon(target: Measured, probs: Probs, tail: Tail) -> Divergence:
    """Measures the mean divergence of row and target from their mean.

    ::

        D = 1/2 sum_i (p_i log (p_i / m_i) + q_i log (q_i / m_i)),   m = (p + q) / 2
        g_i = 1/2 log (q_i / m_i)

    The derivatives by m_i, - (p_i + q_i) / (4 m_i), and by the factor q_i, 1/2, cancel.
    D is at most log 2.

    References:
      Lin, "Divergence measures based on the Shannon entropy", 1991, equation 4.1, with
      equal weights; Agarwal et al., "On-policy distillation", 2023, arXiv 2306.13649.
    """
    q, q_tail = _probs(target)
    middle = ((probs + q) / 2).clamp_min(TINY)
    middle_tail = ((tail + q_tail) / 2).clamp_min(TINY)
    pulls = torch.xlogy(q, q / middle) / 2
    slope = (q_tail.clamp_min(TINY) / middle_tail).log() / 2
    total = pulls.sum(-1) + q_tail * slope
    taught = torch.xlogy(probs, probs / middle).sum(-1)
    taught = taught + torch.xlogy(tail, tail / middle_tail)
    return Divergence(value=taught / 2 + total, pulls=pulls, slope=slope, total=total)


def total_variation(target: Measured, probs: Probs, tail: Tail) -> Divergence:
    """Measures the mass that would have to move: a probability, not nats.

    ::

        D = 1/2 sum_i |q_i - p_i|,   g_i = 1/2 sign(q_i - p_i)

    References:
      Wen et al., "f-Divergence minimization for sequence-level knowledge distillation",
      2023, arXiv 2307.15190.
    """
    q, q_tail = _probs(target)
    gaps, gap = q - probs, q_tail - tail
    pulls, slope = q * gaps.sign() / 2, gap.sign() / 2
    return Divergence(
        value=(gaps.abs().sum(-1) + gap.abs()) / 2,
        pulls=pulls,
        slope=slope,
        total=pulls.sum(-1) + q_tail * slope,
    )


def negentropy(probs: Probs, tail: Tail) -> Nats:
    """Returns sum_i p_i log p_i: what `kl` adds to the cross-entropy, a constant."""
    return torch.xlogy(probs, probs).sum(-1) + torch.xlogy(tail, tail)


def _probs(target: Measured) -> tuple[Probs, Tail]:
    """Returns the target's probabilities of the kept ids and of the tail."""
    return target.kept / target.whole[:, None], target.rest / target.whole


OF: dict[str, Callable[[Measured, Probs, Tail], Divergence]] = {
    "ce": cross_entropy,
    "kl": cross_entropy,
    "reverse_kl": reverse_kl,
    "jsd": jensen_shannon,
    "tv": total_variation,
}
"""The divergence of each fusion loss over rows; `kl` is `ce` and a constant."""
