import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.bench import held
from tests.train.test_loss import counts, rows_of
from train import gradient, loss
from train.objective import Objective

LIMIT_BYTES = 2e9
FULL = (8192, 4096, 131_072)
SMALL = (1024, 32, 2048)
"""Positions, width, vocabulary; of both, as many chunks where the share is `SHARE`."""

SHARE = SMALL[0] * SMALL[2] / (FULL[0] * FULL[2])


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> float:
    """Cuts the CPU's chunks as a GPU's are, at the small size; returns their bytes."""
    size = gradient._CHUNK_BYTES["cuda"] * SHARE
    monkeypatch.setitem(gradient._CHUNK_BYTES, "cpu", int(size))
    return size


def leaves_of(
    positions: int, width: int, vocabulary: int, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor]:
    make = torch.Generator().manual_seed(0)
    hidden = torch.randn(positions, width, generator=make)
    head = torch.randn(vocabulary, width, generator=make) * width**-0.5
    return hidden.to(dtype).requires_grad_(), head.to(dtype).requires_grad_()


def loss_of(hidden: Tensor, head: Tensor) -> Callable[[], Tensor]:
    vocabulary, positions = len(head), len(hidden)
    make = torch.Generator().manual_seed(1)
    teacher = torch.randn(positions, vocabulary, generator=make)
    rows = rows_of(teacher, 2, torch.arange(positions) % vocabulary)

    def call() -> Tensor:
        found = loss.head_loss(hidden, head, None, rows, Objective(), **counts(rows))
        return found.loss

    return call


def test_the_loss_of_a_large_head_holds_less_than_2_gb_of_its_own() -> None:
    assert held.loss_extra_bytes(*FULL) < LIMIT_BYTES


def test_what_the_loss_holds_is_one_chunk_of_logits_in_all_their_forms(
    small_chunks: float,
) -> None:
    leaves = leaves_of(*SMALL)
    extra = held.extra_bytes(loss_of(*leaves), sum(leaf.nbytes for leaf in leaves))
    assert 0.9 * small_chunks < extra < 1.05 * small_chunks
    assert extra / SHARE < LIMIT_BYTES


def test_what_is_counted_is_what_torchs_profiler_sees(small_chunks: float) -> None:
    leaves = leaves_of(*SMALL)
    call = loss_of(*leaves)
    with torch.profiler.profile(profile_memory=True) as profile:
        call()
    assert profile.profiler is not None
    found = profile.profiler.kineto_results.events()
    events = [event for event in found if event.name() == "[memory]"]
    changes = [e.nbytes() for e in sorted(events, key=lambda event: event.start_ns())]
    counted = held.extra_bytes(call, 0)
    # Operations make numbers of their own on the way, of some bytes each; how many of
    # them depends on the processor's instructions, so the upper bound is without them.
    large = [change for change in changes if abs(change) > 20]
    assert counted <= max(itertools.accumulate(changes))
    assert max(itertools.accumulate(large)) < counted + 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_more_positions_cost_at_most_a_sum_in_float32(dtype: torch.dtype) -> None:
    width, vocabulary = 512, 32_768
    few, many = (
        held.loss_extra_bytes(positions, width, vocabulary, dtype=dtype)
        for positions in (2**14, 2**16)
    )
    wide_sum = 0 if dtype == torch.float32 else 4 * vocabulary * width
    assert many < few + wide_sum + 0.05 * gradient._CHUNK_BYTES["cuda"]


@pytest.mark.parametrize("roundings", [loss._ROUNDINGS, 0])
def test_a_head_of_bfloat16_gets_a_gradient_off_by_twice_its_rounding(
    roundings: int, small_chunks: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, head = leaves_of(*SMALL)
    exact, terms = torch.zeros(head.shape, dtype=torch.float64), 0

    def adding(total: Tensor, left: Tensor, right: Tensor) -> None:
        nonlocal terms
        exact.add_(left.double() @ right.double())
        terms += 1
        add(total, left, right)

    add = loss._add_product
    monkeypatch.setattr(loss, "_add_product", adding)
    monkeypatch.setattr(loss, "_ROUNDINGS", roundings)
    loss_of(hidden, head)().backward()
    assert head.grad is not None
    off = (head.grad.double() - exact).norm()
    rounding = (exact.bfloat16().double() - exact).norm()
    assert terms == 7
    # 2 is the root of (terms + 1) / 2.
    assert rounding < off < (2.1 if roundings else 1.5) * rounding


def test_many_small_terms_are_not_lost_in_a_large_sum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 400 equal terms: a sum in bfloat16 stays at 256 of them.
    monkeypatch.setitem(gradient._CHUNK_BYTES, "cpu", 1)
    gradients = []
    for dtype in (torch.bfloat16, torch.float32):
        _, head = leaves_of(128, 2, 4, dtype)
        hidden = torch.ones(400 * 128, 2, dtype=dtype)
        loss_of(hidden, head)().backward()
        assert head.grad is not None
        gradients.append(head.grad.double())
    narrow, wide = gradients
    assert torch.allclose(narrow, wide, rtol=2**-6, atol=2**-8 * float(wide.max()))
