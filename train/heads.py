"""The loss inside the output head's own forward pass.

What wraps a module (sharded data parallel, ZeRO) gathers its weights when the module is
called. The loss reads the head's weight and never calls the head. So it lends the head
another forward pass for one call, in which the weight is whole and has its values.
"""

import dataclasses
from collections.abc import Callable

from torch import Tensor, nn

from train.loss import Losses
from train.tensors import Hidden


def inside(head: nn.Module, hidden: Hidden, work: Callable[[Hidden], Losses]) -> Losses:
    """Calls `work(hidden)` as the forward pass of `head`, hooks and all.

    Args:
      head: the output head, whose weights `work` may read.
      hidden: what the head would be applied to, (n, d).
      work: forms the losses.
    """

    def forward(states: Hidden) -> dict[str, Tensor]:
        found = work(states)
        # Hooks look for tensors in plain containers: a dataclass hides its own.
        return {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}

    had = head.__dict__.get("forward")
    head.forward = forward
    try:
        return Losses(**head(hidden))
    finally:
        if had is None:
            del head.forward
        else:
            head.forward = had
