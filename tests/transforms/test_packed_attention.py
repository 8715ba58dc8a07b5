"""Kernels that only a GPU has are asked for what attention window by window does."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import Library

from transforms import causal, packed_attention
from transforms.packed_attention import How, Layout

LENGTHS = (5, 1, 5, 9)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    *_: Any,
    scale: float,
    window_size_left: int,
    window_size_right: int,
    **__: Any,
) -> tuple[Tensor, ...]:
    """Does as torch's kernel, by products that exist."""
    made = torch.empty_like(query)
    for start, stop in itertools.pairwise(starts):
        q, k, v = (part[start:stop].transpose(0, 1) for part in (query, key, value))
        k, v = (part.repeat_interleave(len(q) // len(k), 0) for part in (k, v))
        behind = torch.arange(q.shape[1])[:, None] - torch.arange(q.shape[1])
        seen = behind >= -window_size_right
        if window_size_left >= 0:
            seen &= behind <= window_size_left
        products = (q @ k.transpose(1, 2) * scale).masked_fill(~seen, -torch.inf)
        made[start:stop] = (products.softmax(2) @ v).transpose(0, 1)
    nothing = query.new_empty(0)
    return made, *(nothing,) * 4


@pytest.fixture
def kernel_on_a_cpu() -> Iterator[None]:
    library: Any = Library("aten", "IMPL")  # type: ignore[no-untyped-call]  # torch leaves it untyped
    library.impl("_flash_attention_forward", attend, "CPU")
    yield
    library._destroy()


@pytest.mark.usefixtures("kernel_on_a_cpu")
@pytest.mark.parametrize("sliding", [None, 1, 3])
@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("scale", [0.5, 0.1])
def test_torchs_kernel_is_told_of_windows_heads_and_scale(
    sliding: int | None, kv_heads: int, scale: float
) -> None:
    make = torch.Generator().manual_seed(0)
    draw = functools.partial(torch.randn, generator=make)
    q, k, v = (draw(1, heads, 20, 8) for heads in (4, kv_heads, kv_heads))
    how = How(scale=scale, sliding=sliding)
    made = [
        kernel(q, k, v, Layout(LENGTHS, kernel), how)
        for kernel in (packed_attention.varlen, packed_attention.by_window)
    ]
    torch.testing.assert_close(*made)


def test_attention_in_half_precision_on_a_gpu_is_torchs_own_at_worst() -> None:
    found = packed_attention.kernels(torch.device("cuda"), torch.bfloat16)
    assert [*found][-2:] == ["torch's flash attention", "attention window by window"]


def test_cudnn_is_kept_off_attention_and_let_in_again() -> None:
    enabled: Callable[[], bool] = torch.backends.cuda.cudnn_sdp_enabled
    before = enabled()
    with causal.without_plans():
        assert not enabled()
    assert enabled() == before
