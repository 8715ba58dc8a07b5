import dataclasses
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.train import dense
from tests.train.dense import Case
from train import gradient, likelihoods, loss
from train import rows as batches
from train.gradient import Task
from train.objective import Objective
from train.rows import Chunks, Rows


def one(number: float) -> Tensor:
    return torch.tensor(float(number), dtype=torch.float64)


def counts(rows: Rows) -> dict[str, Tensor]:
    return {
        "clm_count": one(len(rows.targets)),
        "fusion_count": one(int(rows.fused.sum())),
    }


devices = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
)


@devices
@hypothesis.given(dense.cases(), dense.objectives())
def test_loss_and_gradients_equal_the_dense_ones(
    device: str, case: Case, objective: Objective
) -> None:
    if case.dead:  # smoothing would ask for what cannot be
        objective = dataclasses.replace(objective, label_smoothing=0.0)
    compare_with_dense(case, objective, device)


@devices
@pytest.mark.parametrize(
    "objective",
    [
        Objective(clm_weight=0.3),
        Objective(clm_weight=0.3, fusion_loss="kl", label_smoothing=0.1),
        Objective(clm_weight=0.0, tail="renormalise"),
        Objective(clm_weight=1.0),
        Objective(clm_weight=0.3, chunk_share=0.5),
        Objective(fusion_loss="chunks", chunk_temperature=1.0),
    ],
    ids=["mixed", "kl", "renormalised", "clm", "rows and chunks", "chunks"],
)
def test_gradients_of_several_chunks_equal_the_dense_ones(
    device: str, objective: Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(5)
    batch = dense.batch_of(rng, 3, 150, 11, 4, distinct=True)
    batch |= dense.chunks_of(rng, batch["loss_mask"])
    case = Case(batch=batch, vocabulary=11)
    monkeypatch.setitem(gradient._CHUNK_BYTES, device, 1)
    found = parts_of(batches.select_rows(**batch), objective)
    assert len(found) == 3
    assert found[-1].stop % 128  # the last is shorter
    compare_with_dense(case, objective, device)


@devices
@pytest.mark.parametrize(
    ("kind", "cap"),
    [
        *(("ce", None), ("kl", None), ("reverse_kl", None), ("jsd", None)),
        *(("tv", None), ("chunks", None), ("ce", 2.0), ("jsd", 2.0)),
    ],
)
def test_each_loss_of_a_small_batch_equals_the_dense_one(
    device: str, kind: Any, cap: float | None
) -> None:
    rng = np.random.default_rng(2)
    batch = dense.batch_of(rng, 1, 6, 7, 3, distinct=False)
    batch["loss_mask"][:, :-1] = True
    batch |= dense.chunks_of(rng, batch["loss_mask"])
    share = 0.0 if kind == "chunks" else 0.3
    objective = Objective(clm_weight=0.3, fusion_loss=kind, chunk_share=share)
    dead = 0 if cap else 2
    case = Case(batch=batch, vocabulary=7 + dead, dead=dead, scale=0.75, cap=cap)
    compare_with_dense(case, objective, device)


@devices
def test_a_small_batch_of_bfloat16_logits_has_the_float32_gradient_rounded(
    device: str,
) -> None:
    make = torch.Generator().manual_seed(3)
    logits = torch.randn(6, 300, generator=make).to(device, torch.bfloat16)
    teacher = torch.randn(6, 300, generator=make)
    rows = rows_of(teacher.to(device), 5, torch.arange(6, device=device) * 7)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        leaf = logits.to(dtype).requires_grad_()
        part = loss.logits_loss(leaf, rows, Objective(), **counts(rows))
        found.append((part.loss, torch.autograd.grad(part.loss, leaf)[0]))
    (wide, wide_gradient), (narrow, narrow_gradient) = found
    assert torch.allclose(wide, narrow, rtol=1e-6)
    assert torch.allclose(wide_gradient.to(torch.bfloat16), narrow_gradient, rtol=1e-2)


def parts_of(rows: Rows, objective: Objective) -> list[slice]:
    task = Task(rows=rows, objective=objective, scales=(one(1), one(1), one(1)))
    return gradient.parts(task, 11, torch.device("cpu"), torch.float64)


def test_no_chunk_of_text_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gradient._CHUNK_BYTES, "cpu", 1)
    rng = np.random.default_rng(5)
    batch = dense.batch_of(rng, 2, 700, 11, 4, distinct=True)
    batch["loss_mask"][:, :-1] = True
    batch |= dense.chunks_of(rng, batch["loss_mask"], longest=200)
    rows = batches.select_rows(**batch)
    assert rows.chunks is not None
    found = parts_of(rows, Objective(fusion_loss="chunks"))
    edges = [part.stop for part in found]
    assert edges == [*(part.start for part in found[1:]), len(rows.targets)]
    for stop in edges[:-1]:
        before, behind = rows.chunks.of[stop - 1], rows.chunks.of[stop]
        assert behind < 0 or before != behind


def compare_with_dense(case: Case, objective: Objective, device: str) -> None:
    head = dense.head_of(case)
    wanted, sums, gradients = dense.mean_and_gradients(case, objective, head)
    batch = {name: value.to(device) for name, value in case.batch.items()}
    rows = batches.select_rows(**batch)
    names = ("clm_count", "fusion_count", "chunk_count")
    means: Any = dict(zip(names, batches.count(batch).double(), strict=True))
    shape: Any = {"scale": case.scale, "cap": case.cap}
    leaves = [leaf.detach().to(device).requires_grad_() for leaf in head]
    states = leaves[0].flatten(0, 1)[rows.places]
    weight, bias = leaves[1], leaves[2]
    module = torch.nn.Linear(4, case.vocabulary, dtype=torch.float64, device=device)
    module.weight.data, module.bias.data = weight.data, bias.data
    logits = dense.warped(states @ weight.T + bias, case)
    found = [
        loss.head_loss(states, weight, bias, rows, objective, **means, **shape),
        loss.module_loss(states, module, rows, objective, **means, **shape),
        loss.logits_loss(logits, rows, objective, **means),
    ]
    targets = [leaves, [leaves[0], module.weight, module.bias], leaves]
    for one_found, by in zip(found, targets, strict=True):
        assert torch.allclose(one_found.loss.cpu(), wanted, atol=1e-10)
        ours = (one_found.clm_sum, one_found.fusion_sum, one_found.chunk_sum)
        for one_sum, one_wanted in zip(ours, sums, strict=True):
            assert torch.allclose(one_sum.cpu(), one_wanted, atol=1e-10)
        got = torch.autograd.grad(one_found.loss, by, retain_graph=True)
        for one_got, one_wanted in zip(got, gradients, strict=True):
            assert torch.allclose(one_got.cpu(), one_wanted, atol=1e-10)


def test_size_of_chunks_changes_nothing_but_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make = torch.Generator().manual_seed(3)
    hidden = torch.randn(300, 8, generator=make)
    weight = torch.randn(50, 8, generator=make)
    rows = rows_of(torch.randn(300, 50, generator=make), 5, torch.zeros(300).long())
    losses = []
    for elements in (1, 1 << 30):
        monkeypatch.setitem(gradient._CHUNK_BYTES, "cpu", elements)
        losses.append(
            loss.head_loss(hidden, weight, None, rows, Objective(), **counts(rows)).loss
        )
    assert torch.allclose(*losses, rtol=1e-6)


@pytest.mark.parametrize("states", [torch.float32, torch.bfloat16])
def test_loss_under_autocast_is_the_float32_one_within_bfloat16s_rounding(
    states: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gradient._CHUNK_BYTES, "cpu", 1)
    make = torch.Generator().manual_seed(3)
    head = [
        torch.randn(shape, generator=make) for shape in [(300, 64), (50, 64), (50,)]
    ]
    head[1] /= 8  # logits of size 1
    rows = rows_of(torch.randn(300, 50, generator=make), 5, torch.arange(300) % 50)
    found = []
    for narrow in (False, True):
        leaves = [part.clone().requires_grad_() for part in head]
        hidden = leaves[0].to(states) if narrow else leaves[0]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
            one_found = loss.head_loss(
                hidden, leaves[1], leaves[2], rows, Objective(), **counts(rows)
            )
        gradients = torch.autograd.grad(one_found.loss, leaves)
        assert {g.dtype for g in gradients} == {torch.float32}
        found.append((one_found.loss, *gradients))
    for wide, rounded in zip(*found, strict=True):
        off = (rounded - wide).norm() / wide.norm()
        assert 0 < off < 2**-7  # bfloat16 rounds by up to 2**-9 of a number


def rows_of(logits: Tensor, k: int, targets: Tensor) -> Rows:
    """Rows whose fused distributions are the top k of a model's own."""
    q = torch.softmax(logits, -1)
    probs, ids = q.topk(k, dim=-1)
    tail = (1 - probs.sum(-1)).clamp_min(0)
    n = len(targets)
    return batches.select_rows(
        torch.cat([targets[:1], targets])[None],
        torch.arange(n + 1, device=targets.device)[None] < n,
        F.pad(ids, (0, 0, 0, 1))[None],
        F.pad(probs, (0, 0, 0, 1))[None],
        F.pad(tail, (0, 1))[None],
    )


def test_divergence_from_the_students_own_distribution_is_zero_and_flat() -> None:
    logits = torch.randn(20, 30, dtype=torch.float64, requires_grad=True)
    rows = rows_of(logits.detach(), 4, torch.arange(20))
    objective = Objective(clm_weight=0.0, fusion_loss="kl")
    found = loss.logits_loss(logits, rows, objective, **counts(rows))
    (gradient,) = torch.autograd.grad(found.loss, logits)
    assert abs(found.loss.item()) < 1e-12
    assert gradient.abs().max() < 1e-12


def test_keeping_every_entry_equals_dense_cross_entropy() -> None:
    logits = torch.randn(20, 30, dtype=torch.float64)
    teacher = torch.randn(20, 30, dtype=torch.float64)
    rows = rows_of(teacher, 30, torch.arange(20))
    objective = Objective(clm_weight=0.0)
    found = loss.logits_loss(logits, rows, objective, **counts(rows))
    wanted = F.cross_entropy(logits, torch.softmax(teacher, -1))
    assert torch.allclose(found.loss, wanted, atol=1e-12)


def test_tail_below_rounding_of_the_kept_mass_keeps_its_logarithm() -> None:
    logits = torch.zeros(1, 4)
    logits[0, 0] = 40.0  # the tail is 3 exp(-40) = 1.3e-17, far under float32's eps
    rows = rows_of(torch.tensor([[9.0, 0.0, 0.0, 0.0]]), 1, torch.zeros(1).long())
    found = loss.logits_loss(
        logits, rows, Objective(clm_weight=0.0), clm_count=one(1), fusion_count=one(1)
    )
    wanted = rows.tail[0] * (40.0 - np.log(3.0))
    assert torch.allclose(found.loss, wanted, rtol=1e-5)


def test_gradient_is_finite_where_the_student_leaves_no_tail() -> None:
    logits = torch.tensor([[500.0, 0.0, 0.0]], requires_grad=True)
    rows = rows_of(torch.zeros(1, 3), 1, torch.zeros(1).long())
    found = loss.logits_loss(
        logits, rows, Objective(), clm_count=one(1), fusion_count=one(1)
    )
    (gradient,) = torch.autograd.grad(found.loss, logits)
    assert torch.isfinite(found.loss)
    assert torch.isfinite(gradient).all()


def test_batch_without_counted_positions_costs_nothing() -> None:
    logits = torch.zeros(0, 5, requires_grad=True)
    rows = batches.select_rows(
        torch.zeros(1, 3).long(),
        torch.zeros(1, 3).bool(),
        torch.zeros(1, 3, 2).long(),
        torch.zeros(1, 3, 2),
        torch.ones(1, 3),
    )
    found = loss.logits_loss(
        logits, rows, Objective(), clm_count=one(0), fusion_count=one(0)
    )
    assert found.loss.item() == 0.0


def test_loss_is_differentiated_once() -> None:
    logits = torch.randn(3, 5, requires_grad=True)
    rows = rows_of(torch.zeros(3, 5), 2, torch.zeros(3).long())
    found = loss.logits_loss(logits, rows, Objective(), **counts(rows))
    found.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        found.loss.backward()


@pytest.mark.parametrize("kind", ["kl", "reverse_kl", "jsd", "tv"])
def test_no_divergence_is_left_where_the_target_says_what_the_row_says(
    kind: Any,
) -> None:
    logits = torch.randn(20, 30, dtype=torch.float64, requires_grad=True)
    rows = rows_of(logits.detach(), 4, torch.arange(20))
    objective = Objective(clm_weight=0.0, fusion_loss=kind)
    found = loss.logits_loss(logits, rows, objective, **counts(rows))
    (gradient,) = torch.autograd.grad(found.loss, logits)
    assert abs(found.loss.item()) < 1e-12
    least = 1e-12 if kind != "tv" else 1.0  # |x| has no derivative at 0
    assert gradient.abs().max() < least


def test_a_frozen_head_costs_no_gradient_and_changes_no_other() -> None:
    make = torch.Generator().manual_seed(3)
    hidden, weight = (
        torch.randn(9, 4, generator=make),
        torch.randn(7, 4, generator=make),
    )
    rows = rows_of(torch.randn(9, 7, generator=make), 2, torch.arange(9) % 7)
    found = []
    for trained in (True, False):
        states = hidden.clone().requires_grad_()
        head = weight.clone().requires_grad_(trained)
        part = loss.head_loss(states, head, None, rows, Objective(), **counts(rows))
        part.loss.backward()
        assert (head.grad is not None) == trained
        found.append(states.grad)
    assert torch.equal(*found)


def test_a_head_with_a_frozen_weight_and_a_low_rank_part_trains_that_part() -> None:
    class LowRank(torch.nn.Module):
        """A linear layer with LoRA, as peft has it."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(4, 7, bias=False).requires_grad_(False)
            self.down = torch.nn.Linear(4, 2, bias=False)
            self.up = torch.nn.Linear(2, 7, bias=False)

        def forward(self, states: Tensor) -> Tensor:
            return self.inner(states) + 2 * self.up(self.down(states))

    torch.manual_seed(0)
    head, hidden = LowRank().double(), torch.randn(9, 4, dtype=torch.float64)
    rows = rows_of(torch.randn(9, 7).double(), 2, torch.arange(9) % 7)
    found = []
    for whole in (False, True):
        states = hidden.clone().requires_grad_()
        leaves = [states, head.down.weight, head.up.weight]
        if whole:
            part = loss.logits_loss(head(states), rows, Objective(), **counts(rows))
        else:
            part = loss.module_loss(states, head, rows, Objective(), **counts(rows))
        found.append((part.loss, *torch.autograd.grad(part.loss, leaves)))
    for one_found, one_wanted in zip(*found, strict=True):
        assert torch.allclose(one_found, one_wanted, atol=1e-12)


def test_a_bucket_cannot_be_tempered() -> None:
    rows = rows_of(torch.zeros(3, 5), 2, torch.zeros(3).long())
    with pytest.raises(ValueError, match="take --tail=renormalise"):
        batches.temper(rows, "bucket", 2.0)


def test_chunks_that_nobody_counted_are_refused() -> None:
    rows = rows_of(torch.zeros(3, 5), 2, torch.zeros(3).long())
    objective = Objective(fusion_loss="chunks")
    with pytest.raises(ValueError, match="chunk_count must be given"):
        loss.logits_loss(torch.zeros(3, 5), rows, objective, **counts(rows))


def test_as_tau_grows_chunks_differ_by_the_divergence_of_their_costs() -> None:
    ours, theirs = torch.tensor([-3.0, -2.0, -0.5]).double(), torch.tensor([-2.0, -0.1])
    found, slopes = likelihoods.match_chunks(
        ours, torch.tensor([0, 0, 1]), Chunks(of=torch.arange(3), logprobs=theirs), 1e6
    )
    s, t = torch.tensor([5.0, 0.5]).double(), -theirs.double()
    assert torch.allclose(found, (t * (t / s).log() - t + s).sum(), rtol=1e-4)
    assert torch.allclose(slopes, ((t - s) / s)[[0, 0, 1]], rtol=1e-4)
