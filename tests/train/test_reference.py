from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import reference as fixtures
from tests.train import loss_oracle
from train import loss, reference
from train.objective import Objective
from train.rows import Rows
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


def trained_on(case: dict[str, Any], fusion: str) -> Tensor:
    """The same cross-entropy through the loss that the trainer minimizes."""
    logits, labels, mask = parts_of(case)
    teacher = teacher_of(case, fusion).float()
    spoken = torch.nn.functional.pad(labels[1:] != reference.IGNORED, (0, 1))
    share = case.get("lambda_clm", 0.9)
    found = []
    for weight, places in ((1.0, spoken), (0.0, mask)):
        counted = places.nonzero().squeeze(-1)
        count = torch.tensor(float(len(counted)))
        ids = torch.arange(logits.shape[1]).expand(len(counted), -1)
        rows = Rows(
            places=counted,
            targets=labels.roll(-1)[counted].clamp_min(0),
            ids=ids,
            probs=teacher[counted],
            kept=torch.ones_like(ids).bool(),
            tail=torch.zeros(len(counted)),
            fused=torch.ones(len(counted)).bool(),
        )
        part = Objective(clm_weight=weight)
        found.append(
            loss.logits_loss(
                logits[counted], rows, part, clm_count=count, fusion_count=count
            ).loss
        )
    return share * found[0] + (1 - share) * found[1]


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
        for fusion in {way.split("_")[0] for way in case["loss"]}:
            found = trained_on(case, fusion).item()
            wanted = case["loss"][f"{fusion}_ce"]
            assert found == pytest.approx(wanted, rel=1e-5), (name, fusion)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("sources", [1, 2, 5])
def test_random_cases_come_out_as_a_plain_sum_does(chat: bool, sources: int) -> None:
    for seed in range(40):
        case = loss_oracle.random_case(seed, chat=chat, sources=sources)
        for fusion, kind in WAYS:
            wanted = loss_oracle.loss(case, fusion, kind)
            found = total_of(case, fusion, kind)
            assert found == pytest.approx(wanted, rel=1e-5), (seed, fusion, kind)


@pytest.mark.reference
def test_the_plain_sum_agrees_with_the_authors_code() -> None:
    for name, case in stored():
        for way, wanted in case["loss"].items():
            found = loss_oracle.loss(case, *way.split("_"))
            assert found == pytest.approx(wanted, rel=1e-5), (name, way)


def test_a_row_that_keeps_nothing_needs_the_targets_own() -> None:
    with pytest.raises(ValueError, match="row 1 must keep an entry"):
        reference.teacher_rows([[0], []], [[1.0], []], vocabulary=3)
