"""What tensors hold at once, counted by their storages, on any device or on none.

`loss_extra_bytes` is what the loss alone holds above its inputs and the gradients that
it returns, `score_extra_bytes` what a scorer holds above features. Their tensors are
fake: they have a shape, a type and a device, and no memory, so the figure of a GPU is
had without one. A GPU's own products may take some MB more.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from train import loss
from train.objective import Objective
from train.rows import Rows
from transforms import logits


class Held(TorchDispatchMode):  # type: ignore[no-untyped-call]  # as below
    """Counts the bytes of storages that operations made and that something holds."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.now_bytes = self.peak_bytes = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = {t.untyped_storage()._cdata for t in _tensors((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        for tensor in _tensors(made):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._seen | given:
                self._count(storage)
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._seen.add(key)
        self.now_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.now_bytes)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now_bytes -= size


def extra_bytes(call: Callable[[], Any], returned: int) -> int:
    """Returns the peak of what a call makes and holds, less what it returns.

    Args:
      call: what is looked at.
      returned: bytes of what it makes for its caller.
    """
    with Held() as held:
        call()
    return held.peak_bytes - returned


def loss_extra_bytes(
    positions: int,
    width: int,
    vocabulary: int,
    *,
    k: int = 10,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cuda",
) -> int:
    """Returns what the loss and its gradients hold above inputs and gradients."""
    with FakeTensorMode():
        on = torch.device(device)
        hidden = torch.empty(positions, width, dtype=dtype, device=on)
        head = torch.empty(vocabulary, width, dtype=dtype, device=on)
        hidden.requires_grad_()
        head.requires_grad_()
        rows = _rows(positions, k, on)
        count = torch.empty((), device=on)

        def call() -> Tensor:
            found = loss.head_loss(
                hidden,
                head,
                None,
                rows,
                Objective(clm_weight=0.9),
                clm_count=count,
                fusion_count=count,
                kernels=False,
            )
            return found.loss

        return extra_bytes(call, hidden.nbytes + head.nbytes)


def score_extra_bytes(
    positions: int,
    width: int,
    vocabulary: int,
    *,
    k: int = 10,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cuda",
) -> int:
    """Returns what scoring's head and reduction hold above features and weights.

    Of plain torch, with what is kept of all positions.
    """
    with FakeTensorMode():
        on = torch.device(device)
        features = torch.empty(positions, width, dtype=dtype, device=on)
        head = torch.empty(vocabulary, width, dtype=dtype, device=on)
        gold = torch.empty(positions, dtype=torch.long, device=on)
        none = torch.empty(positions, 0, dtype=torch.float64, device=on)
        chunk = logits.positions_at_once(vocabulary, k, on)

        def call() -> list[logits.Reduced]:
            fields = (torch.split(field, chunk) for field in (features, gold, none))
            return [
                logits.reduce_logits(part @ head.T, next_ids, chances, vocabulary, k)
                for part, next_ids, chances in zip(*fields, strict=True)
            ]

        return extra_bytes(call, 0)


def _rows(positions: int, k: int, on: torch.device) -> Rows:
    """Makes rows of which only shapes and types are told."""
    whole = torch.empty(positions, dtype=torch.long, device=on)
    ids = torch.empty(positions, k, dtype=torch.long, device=on)
    return Rows(
        places=whole,
        targets=whole,
        ids=ids,
        probs=torch.empty(positions, k, device=on),
        kept=torch.empty(positions, k, dtype=torch.bool, device=on),
        tail=torch.empty(positions, device=on),
        fused=torch.empty(positions, dtype=torch.bool, device=on),
    )


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
