import dataclasses
from typing import Any

import numpy as np
import pytest

from tests.bench import equality
from tests.transforms import scoring


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_a_line_tells_how_windows_lie_and_that_scores_are_the_models(name: str) -> None:
    model, ready = scoring.make(name)
    line = dict(
        zip(
            equality.HEADS,
            equality.line(name, model, ready, scoring.WINDOWS),
            strict=True,
        )
    )
    assert line["windows lie"].startswith("packed") == (name == "llama")
    assert ("not AttentionInterface's" in line["windows lie"]) == (name == "mamba")
    assert line["met"] == "yes"


@pytest.mark.parametrize("part", ["gold", "logsumexp", "kept"])
def test_a_gap_anywhere_is_found(part: str) -> None:
    model, ready = scoring.make()
    found = ready.score(scoring.WINDOWS).scores
    assert equality.gaps(model, found).worst < 1e-5
    field = {"gold": "gold_logprob", "logsumexp": "logsumexp", "kept": "top_logprobs"}
    spoilt = np.array(getattr(found[2], field[part]))
    spoilt[-1] += 1e-3
    changed: dict[str, Any] = {field[part]: spoilt}
    found[2] = dataclasses.replace(found[2], **changed)
    apart = equality.gaps(model, found)
    assert getattr(apart, part) == apart.worst == pytest.approx(1e-3, rel=0.01)


def test_a_wrong_id_is_found() -> None:
    model, ready = scoring.make()
    found = ready.score(scoring.WINDOWS).scores
    ids = found[2].top_ids.copy()
    ids[-1, :2] = ids[-1, 1::-1]
    found[2] = dataclasses.replace(found[2], top_ids=ids)
    assert equality.gaps(model, found).kept > 1e-3
