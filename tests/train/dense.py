"""The objective written out over the whole vocabulary, and random batches for it.

Position by position, in float64, differentiated by torch: nothing is fused, chunked or
derived by hand.
"""

import dataclasses

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from train import rows
from train.objective import Objective

FLOOR, TINY, CERTAIN = 1e-6, 1e-30, 1e-6


@dataclasses.dataclass(frozen=True)
class Case:
    """A batch, what the head does to its outputs, and how many ids it has.

    The last `dead` ids are padding of the vocabulary, with logits of minus infinity.
    """

    batch: dict[str, Tensor]
    vocabulary: int
    dead: int = 0
    scale: float = 1.0
    cap: float | None = None


def losses(
    logits: Tensor, batch: dict[str, Tensor], objective: Objective
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums of the CLM loss, of the rows' and of the chunks'."""
    clm = fusion = chunks = torch.zeros((), dtype=logits.dtype)
    smooth = objective.label_smoothing
    for row, position in batch["loss_mask"].nonzero().tolist():
        logprobs = torch.log_softmax(logits[row, position], -1)
        gold = batch["input_ids"][row, position + 1]
        clm = clm - (1 - smooth) * logprobs[gold]
        if smooth:
            clm = clm - smooth * logprobs.mean()
    heard = batch.get("weights", batch["loss_mask"].to(logits.dtype))
    if objective.fusion_loss != "chunks":
        for row, position in heard.nonzero().tolist():
            if (batch["top_ids"][row, position] >= 0).any():
                one = row_loss(logits[row, position], batch, row, position, objective)
                fusion = fusion + heard[row, position] * one
    if objective.matches_chunks:
        for row, chunk in (~batch["chunk_logprobs"].isnan()).nonzero().tolist():
            chunks = chunks + chunk_loss(logits, batch, row, chunk, objective)
    return clm, fusion, chunks


def row_loss(
    logits: Tensor, batch: dict[str, Tensor], row: int, position: int, how: Objective
) -> Tensor:
    ids, tail = batch["top_ids"][row, position], batch["tail"][row, position]
    size = len(logits)
    p = torch.zeros(size, dtype=logits.dtype)
    for i, mass in zip(ids, batch["probs"][row, position], strict=True):
        if i >= 0:
            p[i] += mass
    kept = torch.zeros(size, dtype=torch.bool)
    kept[ids[ids >= 0]] = True
    if how.tail == "renormalise":
        p, tail = p ** (1 / how.teacher_temperature), torch.zeros_like(tail)
        p = p / p.sum() if p.sum() > 0 else p
    logq = torch.log_softmax(logits / how.target_temperature, -1)
    rest = logq.exp()[~kept].sum()
    ours = torch.cat([logq[kept], rest.clamp_min(TINY).log()[None]])
    theirs = torch.cat([p[kept], tail[None]])
    return divergence(ours, torch.cat([logq[kept].exp(), rest[None]]), theirs, how)


def divergence(logq: Tensor, q: Tensor, p: Tensor, how: Objective) -> Tensor:
    """D over the k + 1 outcomes; 0 log 0 = 0."""
    taught, alive = p > 0, q > 0
    entropy = torch.xlogy(p, p).sum()
    if how.fusion_loss in ("ce", "kl"):
        cross = -(p[taught] * logq[taught]).sum()
        return cross + entropy if how.fusion_loss == "kl" else cross
    if how.fusion_loss == "reverse_kl":
        return (q[alive] * (logq[alive] - p[alive].clamp_min(FLOOR).log())).sum()
    if how.fusion_loss == "tv":
        return (q - p).abs().sum() / 2
    m = (p + q) / 2
    forth = (p[taught] * (p[taught] / m[taught]).log()).sum()
    return (forth + (q[alive] * (q[alive] / m[alive]).log()).sum()) / 2


def chunk_loss(
    logits: Tensor, batch: dict[str, Tensor], row: int, chunk: int, how: Objective
) -> Tensor:
    tau, theirs = how.chunk_temperature, batch["chunk_logprobs"][row, chunk]
    places = (batch["chunk_of"][row] == chunk).nonzero().squeeze(-1)
    gold = batch["input_ids"][row, places + 1]
    spent = torch.log_softmax(logits[row, places], -1)[torch.arange(len(gold)), gold]
    p = (theirs / tau).exp()
    q = (spent.sum().clamp_max(-CERTAIN) / tau).exp()
    entropy = torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)  # 0 log 0 = 0
    return tau * (entropy - p * q.log() - (1 - p) * (1 - q).log())


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


def chunks_of(
    rng: np.random.Generator, mask: Tensor, longest: int = 3
) -> dict[str, Tensor]:
    """Cuts rows into chunks; those that the mask cuts, and some others, are none.

    Some chunks the source rules out, and of some it is certain.
    """
    b, t = mask.shape
    of, logprobs = np.full((b, t), -1), np.full((b, t), np.nan)
    for row in range(b):
        ends = np.cumsum(rng.integers(1, longest + 1, t))
        place = np.searchsorted(ends, np.arange(t), side="right")
        for chunk in range(place.max() + 1):
            inside = place == chunk
            if mask[row].numpy()[inside].all() and rng.random() < 0.8:
                of[row, inside] = chunk
                logprobs[row, chunk] = rng.choice([0, -np.inf, -rng.exponential(3)])
    return {
        "chunk_of": torch.from_numpy(of),
        "chunk_logprobs": torch.from_numpy(logprobs),
    }


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Batches with and without weights, dead ids, and logits scaled and capped."""
    b, t = draw(st.integers(1, 3)), draw(st.integers(2, 6))
    v = draw(st.integers(2, 9))
    k = draw(st.integers(1, v))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch = batch_of(rng, b, t, v, k, distinct=draw(st.booleans()))
    batch |= chunks_of(rng, batch["loss_mask"])
    if draw(st.booleans()):
        weights = torch.from_numpy(rng.random((b, t)))
        batch["weights"] = weights * torch.from_numpy(rng.random((b, t)) < 0.7)
    scale, cap = draw(
        st.sampled_from([(1.0, None), (1 / 3, None), (1.0, 2.0), (3.0, 5.0)])
    )
    dead = draw(st.sampled_from([0, 2])) if cap is None else 0
    if dead:  # rows may keep such an id, without a probability
        places = torch.from_numpy(rng.random((b, t)) < 0.3)
        places &= batch["top_ids"][..., 0] >= 0
        batch["top_ids"][..., 0] = torch.where(places, v, batch["top_ids"][..., 0])
        batch["probs"][..., 0] *= ~places
    return Case(batch=batch, vocabulary=v + dead, dead=dead, scale=scale, cap=cap)


@st.composite
def objectives(draw: st.DrawFn) -> Objective:
    tail = draw(st.sampled_from(["bucket", "renormalise"]))
    heat = draw(st.sampled_from([1.0, 2.0])) if tail == "renormalise" else 1.0
    kinds = ["ce", "kl", "reverse_kl", "jsd", "tv", "chunks"]
    return Objective(
        clm_weight=draw(st.sampled_from([0.0, 0.3, 0.9, 1.0])),
        fusion_loss=draw(st.sampled_from(kinds)),
        tail=tail,
        label_smoothing=draw(st.sampled_from([0.0, 0.0, 0.1])),
        teacher_temperature=heat,
        target_temperature=draw(st.sampled_from([1.0, 1.0, 3.0])),
        chunk_share=draw(st.sampled_from([0.0, 0.4])),
        chunk_temperature=draw(st.sampled_from([1.0, 100.0])),
    )


def warped(outputs: Tensor, case: Case) -> Tensor:
    """What a model makes of its head's outputs."""
    z = outputs * case.scale
    return z if case.cap is None else case.cap * torch.tanh(z / case.cap)


def head_of(case: Case, width: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight and bias, which makes the last `dead` ids impossible."""
    b, t = case.batch["input_ids"].shape
    make = torch.Generator().manual_seed(b * 100 + t)
    shapes = [(b, t, width), (case.vocabulary, width), (case.vocabulary,)]
    hidden, weight, bias = (
        torch.randn(shape, generator=make, dtype=torch.float64) for shape in shapes
    )
    bias[case.vocabulary - case.dead :] = -torch.inf
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


def mean_and_gradients(
    case: Case, objective: Objective, head: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
    """L, its three sums, and the gradients at hidden states, weight and bias."""
    hidden, weight, bias = head
    logits = warped(hidden @ weight.T + bias, case)
    sums = losses(logits, case.batch, objective)
    share, chunks = objective.clm_weight, objective.chunk_share
    if objective.fusion_loss == "chunks":
        chunks = 1.0
    shares = (share, (1 - share) * (1 - chunks), (1 - share) * chunks)
    counts = rows.count(case.batch).double()
    counts = torch.where(counts > 0, counts, 1.0)
    parts = zip(sums, shares, counts, strict=True)
    whole = sum((s * w / n for s, w, n in parts), 0 * hidden.sum() + 0 * weight.sum())
    found = torch.autograd.grad(whole, head, allow_unused=True)
    none = [torch.zeros_like(leaf) for leaf in head]
    gradients = [n if g is None else g for g, n in zip(found, none, strict=True)]
    return whole, sums, tuple(gradients)
