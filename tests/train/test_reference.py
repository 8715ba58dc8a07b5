from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import reference as fixtures
from tests.train import loss_oracle
from train import loss, reference, rows
from train.objective import Objective
from transforms.functional import weigh

WAYS = [(fusion, kind) for fusion in ("mince", "avgce") for kind in ("ce", "kl")]


def teacher_of(case: dict[str, Any], fusion: str) -> Tensor:
    """The fused rows of a case, its weights from `weigh`."""
    size, costs = case["vocab_size"], np.array(case["ce"])
    pivot = reference.teacher_rows(**case["pivot"], vocabulary=size)
    aligned = case["aligned"]
    rows = [pivot] + [
        reference.teacher_rows(**one, vocabulary=size, fallback=pivot)
        for one in (aligned if isinstance(aligned, list) else [aligned])
    ]
    weights = {
        "mince": weigh.reference_min_ce_weights,
        "avgce": weigh.reference_avg_ce_weights,
    }[fusion](costs)
    return reference.mix_rows(rows, weights.tolist())


def parts_of(case: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Student logits, labels and mask of the positions that hold a token."""
    labels = torch.tensor(case.get("labels", case["input_ids"]))
    logits = torch.tensor(case["student_logits"])[: len(labels)]
    chat = "labels" in case
    mask = reference.shifted(labels) if chat else torch.ones_like(labels).bool()
    return logits, labels, mask


def total_of(case: dict[str, Any], fusion: str, kind: str) -> float:
    logits, labels, mask = parts_of(case)
    teacher = teacher_of(case, fusion)
    share = case.get("lambda_clm", 0.9)
    return reference.objective(
        logits, labels, teacher, mask, clm_weight=share, fusion_loss=kind
    ).item()


def trained_on(case: dict[str, Any], fusion: str, kind: Any) -> float:
    """The same objective through the loss that `fusebeam train` minimizes."""
    logits, labels, mask = parts_of(case)
    teacher = teacher_of(case, fusion).float()
    most = int((teacher > 0).sum(-1).max())
    probs, ids = teacher.topk(most, dim=-1)
    batch = {
        "input_ids": labels.clamp_min(0)[None],
        "loss_mask": reference.shifted(labels)[None],
        "top_ids": torch.where(probs > 0, ids, -1)[None],
        "probs": probs[None],
        "tail": torch.zeros(1, len(labels)),
        "weights": mask[None].float(),
    }
    objective = Objective(
        clm_weight=case.get("lambda_clm", 0.9),
        fusion_loss=kind,
        tail="renormalise",
        authors=True,
    )
    chosen = rows.select_rows(**batch)
    clm, fusions, _ = rows.count(batch)
    found = loss.head_loss(
        logits[chosen.places],
        torch.eye(logits.shape[1]),
        None,
        chosen,
        objective,
        clm_count=clm,
        fusion_count=fusions,
    )
    return found.loss.item()


def stored() -> Iterator[tuple[str, dict[str, Any]]]:
    for family in ("fusellm", "fusechat"):
        for number, case in enumerate(fixtures.cases("loss", family)):
            yield f"{family} {number}", case


@pytest.mark.reference
def test_the_losses_of_the_authors_code_come_out() -> None:
    for name, case in stored():
        for way, wanted in case["loss"].items():
            found = total_of(case, *way.split("_"))
            assert found == pytest.approx(wanted, rel=1e-5), (name, way)


@pytest.mark.reference
def test_the_trainers_loss_of_the_authors_rows_is_theirs() -> None:
    for name, case in stored():
        for way, wanted in case["loss"].items():
            found = trained_on(case, *way.split("_"))
            assert found == pytest.approx(wanted, rel=1e-5), (name, way)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("sources", [1, 2, 5])
def test_random_cases_come_out_as_a_plain_sum_does(chat: bool, sources: int) -> None:
    for seed in range(40):
        case = loss_oracle.random_case(seed, chat=chat, sources=sources)
        for fusion, kind in WAYS:
            wanted = loss_oracle.loss(case, fusion, kind)
            found = total_of(case, fusion, kind)
            assert found == pytest.approx(wanted, rel=1e-5), (seed, fusion, kind)
            if seed < 10:
                ours = trained_on(case, fusion, kind)
                assert ours == pytest.approx(wanted, rel=1e-5), (seed, fusion, kind)


@pytest.mark.reference
def test_the_plain_sum_agrees_with_the_authors_code() -> None:
    for name, case in stored():
        for way, wanted in case["loss"].items():
            found = loss_oracle.loss(case, *way.split("_"))
            assert found == pytest.approx(wanted, rel=1e-5), (name, way)


def test_a_row_that_keeps_nothing_needs_the_targets_own() -> None:
    with pytest.raises(ValueError, match="row 1 must keep an entry"):
        reference.teacher_rows([[0], []], [[1.0], []], vocabulary=3)


def test_rows_with_a_tail_are_divided_by_what_they_keep_and_rounded() -> None:
    found = rows.select_rows(
        torch.tensor([[0, 1]]),
        torch.tensor([[True, False]]),
        torch.tensor([[[3, 4], [-1, -1]]]),
        torch.tensor([[[0.2, 0.6], [0.0, 0.0]]]),
        torch.tensor([[0.2, 0.0]]),
    )
    taught = rows.round_rows(found, 1.0)
    wanted = torch.tensor([[0.75, 0.25]])
    assert torch.equal(taught.probs, wanted)
    assert taught.tail.item() == 0
    hot = rows.round_rows(found, 2.0).probs
    tempered = torch.softmax(wanted.log() / 2, -1).bfloat16().float()
    assert torch.equal(hot, tempered)
