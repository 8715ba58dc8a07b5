"""What the objective must know of a chunk of logits, and how it is overwritten.

The exponentials of a row are summed apart for the ids that its fused row keeps and for
all others: the tail is a sum of its own, not 1 - kept, which would cancel. They are
left in place of the logits, 0 at the kept ids, and become the gradient by one factor a
row.
`kernels` does the same on a GPU, in two reads and one write.
"""

import dataclasses

import torch

from train.tensors import Kept, KeptNumbers, Logits, Nats, Targets, TopIds


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """The softmax of a chunk's rows, apart from its denominators.

    Attributes:
      at_gold: logit of the token that comes next.
      at_kept: logits of the kept ids.
      gold: exp(at_gold - top), where gold is not kept.
      kept: exp(at_kept - top), 0 at padding.
      rest: sum of exp(logit - top) over the ids that are not kept.
      whole: the same over all ids.
      norm: log-sum-exp of the logits.
      top: greatest logit.
    """

    at_gold: Nats
    at_kept: KeptNumbers
    gold: Nats
    kept: KeptNumbers
    rest: Nats
    whole: Nats
    norm: Nats
    top: Nats


def warp(logits: Logits, scale: float, cap: float | None) -> Logits | None:
    """Scales and caps what a head puts out, in place: z = cap tanh(scale x / cap).

    Returns:
      The derivative without the scale, dz/dx / scale = 1 - (z / cap)^2, or None where
      nothing is capped.
    """
    if scale != 1:
        logits.mul_(scale)
    if cap is None:
        return None
    logits.div_(cap).tanh_()
    steepness = torch.addcmul(logits.new_ones(()), logits, logits, value=-1)
    logits.mul_(cap)
    return steepness


def unwarp(gradient: Logits, steepness: Logits | None, scale: float) -> None:
    """Makes of dL/dz, in place, dL/dx: the chain rule of `warp`."""
    if steepness is not None:
        gradient.mul_(steepness)
    if scale != 1:
        gradient.mul_(scale)


def measure(logits: Logits, gold: Targets, ids: TopIds, kept: Kept) -> Measured:
    """Measures rows of logits, and overwrites them by their exponentials.

    Args:
      logits: rows; afterwards exp(logit - top), and 0 at the kept ids.
      gold: the tokens that come next.
      ids: kept ids.
      kept: which of them are no padding.
    """
    at_gold = logits.gather(1, gold[:, None]).squeeze(1)  # (n,)
    at_kept = logits.gather(1, ids)  # (n, k)
    top = logits.amax(-1, keepdim=True)  # (n, 1)
    logits.sub_(top).exp_()
    mass = logits.gather(1, ids) * kept  # (n, k)
    rest = logits.scatter_(1, ids, 0.0).sum(-1)  # (n,)
    whole = rest + mass.sum(-1)
    return Measured(
        at_gold=at_gold,
        at_kept=at_kept,
        gold=logits.gather(1, gold[:, None]).squeeze(1),
        kept=mass,
        rest=rest,
        whole=whole,
        norm=top.squeeze(1) + whole.log(),
        top=top.squeeze(1),
    )
