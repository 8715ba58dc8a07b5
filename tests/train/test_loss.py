import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from train import loss
from train.loss import Objective, Rows


def one(number: float) -> Tensor:
    return torch.tensor(float(number), dtype=torch.float64)


def dense_loss(
    logits: Tensor, batch: dict[str, Tensor], objective: Objective
) -> tuple[Tensor, Tensor]:
    """The two sums, written out position by position over the whole vocabulary."""
    clm = fusion = torch.zeros((), dtype=logits.dtype)
    smooth = objective.label_smoothing
    for row, position in batch["loss_mask"].nonzero().tolist():
        q = torch.softmax(logits[row, position], -1)
        gold = batch["input_ids"][row, position + 1]
        clm = clm - (1 - smooth) * q[gold].log() - smooth * q.log().mean()
        ids = batch["top_ids"][row, position]
        if (ids < 0).all():
            continue
        p = torch.zeros_like(q)
        for i, mass in zip(ids, batch["probs"][row, position], strict=True):
            if i >= 0:
                p[i] += mass
        kept = torch.zeros_like(q, dtype=torch.bool)
        kept[ids[ids >= 0]] = True
        tail = batch["tail"][row, position]
        if objective.tail == "renormalise":
            p, tail = p / p.sum(), torch.zeros_like(tail)
        rest = q[~kept].sum().clamp_min(1e-30)
        fusion = fusion - (p * q.log()).sum() - tail * rest.log()
        if objective.fusion_loss == "kl":
            fusion = fusion + torch.xlogy(p, p).sum() + torch.xlogy(tail, tail)
    return clm, fusion


def batch_of(
    rng: np.random.Generator, b: int, t: int, v: int, k: int, *, distinct: bool
) -> dict[str, Tensor]:
    """Packed rows; duplicates, empty fused rows, tails of 0, k = v among them."""
    ids = rng.integers(0, v, (b, t, k))
    if distinct:
        ids = np.argsort(rng.random((b, t, v)), -1)[..., :k]
    counts = rng.integers(0, k + 1, (b, t))
    ids[np.arange(k) >= counts[..., None]] = -1
    mass = rng.random((b, t, k + 1)) ** 3
    mass[..., :k] *= ids >= 0
    mass[..., k] *= rng.random((b, t)) < 0.7
    mass[..., k] += mass.sum(-1) == 0
    mass /= mass.sum(-1, keepdims=True)
    every_id = (np.sort(ids, -1) == np.arange(v)).all(-1) if k == v else False
    mask = rng.random((b, t)) < 0.8
    mask[:, -1] = False
    tail = np.where(every_id, 0, mass[..., k])
    return {
        "input_ids": torch.from_numpy(rng.integers(0, v, (b, t))),
        "loss_mask": torch.from_numpy(mask),
        "top_ids": torch.from_numpy(ids),
        "probs": torch.from_numpy(mass[..., :k].copy()),
        "tail": torch.from_numpy(tail),
    }


@st.composite
def batches(draw: st.DrawFn) -> tuple[dict[str, Tensor], int]:
    b, t = draw(st.integers(1, 3)), draw(st.integers(2, 6))
    v = draw(st.integers(2, 9))
    k = draw(st.integers(1, v))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return batch_of(rng, b, t, v, k, distinct=draw(st.booleans())), v


objectives = st.builds(
    Objective,
    clm_weight=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    fusion_loss=st.sampled_from(["ce", "kl"]),
    tail=st.sampled_from(["bucket", "renormalise"]),
    label_smoothing=st.sampled_from([0.0, 0.1]),
)


def counts(rows: Rows) -> dict[str, Tensor]:
    return {
        "clm_count": one(len(rows.targets)),
        "fusion_count": one(int(rows.fused.sum())),
    }


def head_of(batch: dict[str, Tensor], v: int) -> tuple[Tensor, Tensor, Tensor]:
    b, t = batch["input_ids"].shape
    make = torch.Generator().manual_seed(b * 100 + t)
    shapes = [(b, t, 4), (v, 4), (v,)]
    return tuple(
        torch.randn(shape, generator=make, dtype=torch.float64).requires_grad_()
        for shape in shapes
    )  # type: ignore[return-value]


def dense_mean_and_gradients(
    batch: dict[str, Tensor], objective: Objective, head: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
    """L, its two sums, and the gradients at hidden states, weight and bias."""
    hidden, weight, bias = head
    clm, fusion = dense_loss(hidden @ weight.T + bias, batch, objective)
    rows, share = loss.select_rows(**batch), objective.clm_weight
    n, m = max(1, len(rows.targets)), max(1, int(rows.fused.sum()))
    whole = share * clm / n + (1 - share) * fusion / m
    gradients = torch.autograd.grad(
        whole + 0 * (hidden.sum() + weight.sum() + bias.sum()), head
    )
    return whole, clm, fusion, gradients


@hypothesis.given(batches(), objectives)
@hypothesis.settings(deadline=None, max_examples=150)
def test_loss_and_gradients_equal_the_dense_ones(
    drawn: tuple[dict[str, Tensor], int], objective: Objective
) -> None:
    batch, v = drawn
    rows, head = loss.select_rows(**batch), head_of(batch, v)
    compare_with_dense(batch, rows, head, objective)


@pytest.mark.parametrize(
    "objective",
    [
        Objective(clm_weight=0.3),
        Objective(clm_weight=0.3, fusion_loss="kl", label_smoothing=0.1),
        Objective(clm_weight=0.0, tail="renormalise"),
        Objective(clm_weight=1.0),
    ],
    ids=["mixed", "kl", "renormalised", "clm"],
)
def test_gradients_of_several_chunks_equal_the_dense_ones(
    objective: Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(np.random.default_rng(5), 3, 150, 11, 4, distinct=True)
    rows, head = loss.select_rows(**batch), head_of(batch, 11)
    monkeypatch.setitem(loss._CHUNK_ELEMENTS, "cpu", 1)
    chunks = loss._chunks(len(rows.targets), 11, torch.device("cpu"))
    assert len(chunks) == 3
    assert len(rows.targets) % 128  # the last is shorter
    compare_with_dense(batch, rows, head, objective)


def compare_with_dense(
    batch: dict[str, Tensor],
    rows: Rows,
    head: tuple[Tensor, Tensor, Tensor],
    objective: Objective,
) -> None:
    hidden, weight, bias = head
    wanted, clm, fusion, gradients = dense_mean_and_gradients(batch, objective, head)
    states = hidden.flatten(0, 1)[rows.places]
    through = loss.head_loss(states, weight, bias, rows, objective, **counts(rows))
    logits = states @ weight.T + bias
    direct = loss.logits_loss(logits, rows, objective, **counts(rows))
    for found in (through, direct):
        assert torch.allclose(found.loss, wanted, atol=1e-10)
        assert torch.allclose(found.clm_sum, clm, atol=1e-10)
        assert torch.allclose(found.fusion_sum, fusion, atol=1e-10)
        got = torch.autograd.grad(found.loss, head, retain_graph=True)
        for one_got, one_wanted in zip(got, gradients, strict=True):
            assert torch.allclose(one_got, one_wanted, atol=1e-10)


def test_size_of_chunks_changes_nothing_but_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make = torch.Generator().manual_seed(3)
    hidden = torch.randn(300, 8, generator=make)
    weight = torch.randn(50, 8, generator=make)
    rows = rows_of(torch.randn(300, 50, generator=make), 5, torch.zeros(300).long())
    losses = []
    for elements in (1, 1 << 30):
        monkeypatch.setitem(loss._CHUNK_ELEMENTS, "cpu", elements)
        losses.append(
            loss.head_loss(hidden, weight, None, rows, Objective(), **counts(rows)).loss
        )
    assert torch.allclose(*losses, rtol=1e-6)


@pytest.mark.parametrize("states", [torch.float32, torch.bfloat16])
def test_loss_under_autocast_is_the_float32_one_within_bfloat16s_rounding(
    states: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loss._CHUNK_ELEMENTS, "cpu", 1)
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
    return loss.select_rows(
        torch.cat([targets[:1], targets])[None],
        torch.arange(n + 1)[None] < n,
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
    rows = loss.select_rows(
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
