import dataclasses
from typing import Any

import pytest

from schemas import settings
from train import objective
from train.config import TrainConfig

RUN = TrainConfig(data="d", model="m", output="o")
ROWS = {
    "fusion loss": "cross-entropy to the fused distribution",
    "tail of the fused distribution": "one outcome",
}
ALONE = {"fusion_loss": "chunks", "chunk_temperature": 10.0, "clm_schedule": "linear"}
HEATED = {"tail": "renormalise", "teacher_temperature": 2.0, "target_temperature": 1.5}
AUTHORS = {"tail": "renormalise", "reference": "fusechat", "attend_across": True}
SHARE = "share of the text's own loss"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {SHARE: "0.9", **ROWS}),
        ({"clm_weight": 1.0, "clm_schedule": "linear"}, {SHARE: "1"}),
        (
            {"clm_weight": 1.0, "label_smoothing": 0.1},
            {SHARE: "1", "label smoothing": "0.1"},
        ),
        (
            ALONE,
            {
                SHARE: "0.9, rising evenly towards 1",
                "likelihood of chunks": "1 of the fusion loss, at temperature 10",
            },
        ),
        (
            {"position_weights": "kept", **HEATED},
            {
                SHARE: "0.9",
                **ROWS,
                "tail of the fused distribution": "none: renormalized over its kept"
                " entries",
                "teacher temperature": "2.0",
                "target temperature": "1.5",
                "position weights": "kept",
            },
        ),
        (
            AUTHORS,
            {
                SHARE: "0.9",
                "documents of a packed row": "attend to those before them",
                **ROWS,
                "tail of the fused distribution": "none: renormalized over its kept"
                " entries",
                "rounding and masks": "those of fusechat's code",
            },
        ),
    ],
)
def test_an_objective_is_told_by_all_of_it_that_is_not_as_by_default(
    given: dict[str, Any], wanted: dict[str, str]
) -> None:
    run = dataclasses.replace(RUN, **given)
    assert objective.spoken(settings.shaping(run)) == wanted


@pytest.mark.parametrize("kind", ["ce", "kl", "reverse_kl", "jsd", "tv"])
def test_every_loss_over_rows_has_words(kind: Any) -> None:
    run = dataclasses.replace(RUN, fusion_loss=kind)
    assert "fusion loss" in objective.spoken(settings.shaping(run))
