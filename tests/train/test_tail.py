"""What drawing the tail is for: the gradient that a dense teacher would give."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.scores import Score
from tests.transforms.functional import toys
from train import loss
from train import rows as batches
from train.objective import Objective
from transforms.functional import align, fuse, project, tail, vocabulary
from transforms.functional.fuse import Fused
from transforms.functional.project import Projected

TOY = toys.toy("a", "b", "aa", "ab", "ba", "bb", "aab")
V = TOY.size
GOLD = 4
WEIGHTS = np.array([0.6, 0.4])
TEACHERS = np.random.default_rng(11).dirichlet(np.full(V, 0.8), len(WEIGHTS))
LOGITS = torch.from_numpy(np.random.default_rng(12).normal(0, 2, (1, V)))


def score_of(probs: np.ndarray, k: int, drawn: list[int] | None = None) -> Score:
    """Scores the one token of a window by a distribution over the vocabulary."""
    ids, ends = toys.frame(TOY, [GOLD], eos=False)
    order = np.argsort(-probs)[None, :k].astype(np.int32)
    return Score(
        window_id="w",
        token_ids=ids,
        byte_ends=ends,
        top_ids=order,
        top_logprobs=np.log(probs[order]).astype(np.float32),
        logsumexp=np.zeros(1, np.float32),
        gold_logprob=np.log(probs[[GOLD]]).astype(np.float32),
        nll_nats=1.0,
        n_bytes=1,
        sampled_ids=None if drawn is None else np.array([drawn], np.int32),
    )


def projected(score: Score) -> Projected:
    return project.project_rows(
        align.align_spans(score.byte_ends, score.byte_ends, eos=False),
        tail.join_draws(score),
        vocabulary.build_map(TOY, TOY),
        score.token_ids,
        begins_alike=True,
        k=V,
    )


def gradient(rows: Fused, kind: str) -> Tensor:
    """Returns dL/dlogits of the fusion loss at the one position."""
    made = batches.select_rows(
        torch.tensor([[0, GOLD]]),
        torch.tensor([[True, False]]),
        torch.from_numpy(np.stack([rows.ids, rows.ids], 1)).long(),
        torch.from_numpy(np.stack([rows.probs, rows.probs], 1)).double(),
        torch.from_numpy(np.stack([rows.tail, rows.tail], 1)).double(),
    )
    logits = LOGITS.clone().requires_grad_()
    one = torch.ones((), dtype=torch.float64)
    found = loss.logits_loss(
        logits,
        made,
        Objective(clm_weight=0.0, fusion_loss=kind),
        clm_count=one,
        fusion_count=one,
    )
    return torch.autograd.grad(found.loss, logits)[0]


def dense_gradient() -> Tensor:
    """Returns softmax(z) - p, p being the mixture of the whole teachers."""
    return torch.softmax(LOGITS, -1) - torch.from_numpy(WEIGHTS @ TEACHERS)


def outcomes(rest: dict[int, float]) -> Iterator[tuple[float, int]]:
    total = sum(rest.values())
    return ((mass / total, v) for v, mass in rest.items())


def rest_of(probs: np.ndarray, k: int) -> dict[int, float]:
    known = {GOLD, *np.argsort(-probs)[:k].tolist()}
    return {v: probs[v] for v in range(V) if v not in known}


def thinned(rows: Fused, k: int) -> Iterator[tuple[float, Fused]]:
    """Yields the rows of each outcome of one draw from what is not kept."""
    rest = rows.probs[0, k:][rows.ids[0, k:] >= 0].astype(np.float64)
    ends = np.cumsum([0.0, *rest]) / rest.sum()
    for low, high in itertools.pairwise(ends):
        chances = np.array([[(low + high) / 2]])
        yield high - low, tail.thin_rows(rows, k=k, chances=chances)


@pytest.mark.parametrize("kind", ["ce", "kl"])
def test_the_expected_gradient_over_all_draws_is_the_dense_one(kind: str) -> None:
    k, mean, total = 2, torch.zeros(1, V, dtype=torch.float64), 0.0
    rests = [rest_of(probs, k) for probs in TEACHERS]
    for drawn in itertools.product(*map(outcomes, rests)):
        said = [
            projected(score_of(probs, k, [v]))
            for probs, (_, v) in zip(TEACHERS, drawn, strict=True)
        ]
        rows = fuse.fuse_rows(said, WEIGHTS, k=2 * V)
        for share, thin in thinned(rows, k):
            weight = share * float(np.prod([w for w, _ in drawn]))
            mean += weight * gradient(thin, kind)
            total += weight
    assert total == pytest.approx(1)
    assert (mean - dense_gradient()).abs().max() < 1e-6


def test_the_gradient_of_top_k_and_a_bucket_is_another() -> None:
    said = [projected(score_of(probs, 2)) for probs in TEACHERS]
    rows = fuse.fuse_rows(said, WEIGHTS, k=2)
    off = (gradient(rows, "ce") - dense_gradient()).abs()
    assert off.max() > 0.05
    every = [projected(score_of(probs, V)) for probs in TEACHERS]
    whole = gradient(fuse.fuse_rows(every, WEIGHTS, k=V), "ce")
    assert (whole - dense_gradient()).abs().max() < 1e-6
