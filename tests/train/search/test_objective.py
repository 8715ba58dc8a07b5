import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers

from schemas.errors import SchemaError
from tests.train import held_out
from train import evaluate
from train.search import objective
from train.search.objective import Objective, Split
from transforms import scorer, tokenizer
from transforms.scorer import ScorerSettings

BITS = {"code": 1.0, "prose": 3.0}


def split(folder: str | None = None, **files: str) -> Split:
    return Split(windows=folder, tasks=files)


def items(path: Path, *prompts: str) -> str:
    lines = [json.dumps({"prompt": prompt, "answer": "1"}) for prompt in prompts]
    path.write_text("\n\n".join(lines))
    return str(path)


@pytest.mark.parametrize(
    ("domains", "weights", "wanted"),
    [
        ({}, {}, 2.0),
        ({"code": 3.0, "prose": 1.0}, {}, 1.5),
        ({"code": 1.0, "prose": 0.0}, {}, 1.0),
        ({}, {"sums": 2.0}, 2.0 - 2.0 * 0.25),
    ],
)
def test_the_objective_is_bits_less_what_is_answered(
    domains: Mapping[str, float], weights: Mapping[str, float], wanted: float
) -> None:
    given = Objective(domains=domains, tasks=weights)
    answered = dict.fromkeys(weights, 0.25)
    assert given.of(BITS, answered) == pytest.approx(wanted)


def test_an_objective_may_be_of_tasks_alone() -> None:
    assert Objective(domains={}, tasks={"sums": 1.0}).of({}, {"sums": 0.5}) == -0.5


def test_a_domain_that_is_weighed_must_be_there() -> None:
    weights = {"code": 1.0, "prose": 1.0}
    given = Objective(domains={**weights, "law": 1.0}, tasks={})
    with pytest.raises(
        SchemaError, match=r"\['law'\] have none; there are code, prose"
    ):
        given.of(BITS, {})
    assert Objective(domains={**weights, "law": 0.0}, tasks={}).of(BITS, {}) == 2.0


def test_a_domain_that_is_there_must_be_weighed_where_any_is() -> None:
    given = Objective(domains={"code": 1.0}, tasks={})
    with pytest.raises(SchemaError, match=r"\['prose'\] have none; write 0"):
        given.of(BITS, {})


@pytest.mark.parametrize(
    "given",
    [
        {"domains": {"code": -1.0}},
        {"domains": {"code": float("nan")}},
        {"domains": {"code": 0.0}},
        {"tasks": {"sums": -0.5}},
    ],
)
def test_weights_that_make_no_mean_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        Objective(**{"domains": {}, "tasks": {}, **given})


def test_a_split_that_shares_nothing_is_taken(tmp_path: Path) -> None:
    made = [held_out.window(n, "code") for n in range(6)]
    mine = held_out.write(tmp_path / "a", made[:3])
    theirs = held_out.write(tmp_path / "b", made[3:])
    one, two = items(tmp_path / "c", "1+1=", "1+2="), items(tmp_path / "d", "1+3=")
    objective.refuse_overlap(split(mine, sums=one), split(theirs, sums=two))


@pytest.mark.parametrize("shared", ["document", "text"])
def test_a_window_in_both_splits_is_an_error(shared: str, tmp_path: Path) -> None:
    made = [held_out.window(n, "code") for n in range(4)]
    change = {"text": "else"} if shared == "document" else {"doc_id": "else"}
    copy = dataclasses.replace(made[0], **change)  # type: ignore[arg-type]
    mine = held_out.write(tmp_path / "a", made[:2])
    theirs = held_out.write(tmp_path / "b", [*made[2:], copy])
    with pytest.raises(SchemaError, match=f"but the {shared} of window 0{{32}} of"):
        objective.refuse_overlap(split(mine), split(theirs))


def test_a_prompt_in_both_splits_is_an_error(tmp_path: Path) -> None:
    mine = split(sums=items(tmp_path / "a", "1+1=", "1+2="))
    theirs = split(other=items(tmp_path / "b", "1+3=", " 1+2= "))
    with pytest.raises(
        SchemaError, match=r"1 of 2 prompts of .*b are in .*a, too.* 2;"
    ):
        objective.refuse_overlap(mine, theirs)


@pytest.fixture(scope="module")
def llama(models: dict[str, str]) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(models["llama"])


def test_bits_per_byte_are_those_of_an_evaluation(
    models: dict[str, str], llama: Any, tmp_path: Path
) -> None:
    made = [held_out.window(n, ("code", "prose")[n % 2]) for n in range(5)]
    folder = held_out.write(tmp_path / "a", made)
    found = objective.measure(
        llama,
        tokenizer.load(models["llama"]),
        split(folder),
        {},
        Objective(domains={"code": 3.0, "prose": 1.0}, tasks={}),
        batch_tokens=512,
        max_new_tokens=1,
    )
    asked = ScorerSettings(
        model=models["llama"], top_k=0, device="cpu", batch_tokens=512
    )
    sums = evaluate.measure(scorer.load(asked), folder, lambda _: None)
    bits = evaluate.bits_per_byte(sums)
    assert found.bits == {name: bits[name] for name in ("code", "prose")}
    assert found.objective == (3 * bits["code"] + bits["prose"]) / 4
