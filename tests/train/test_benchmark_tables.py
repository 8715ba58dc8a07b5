import json
from pathlib import Path
from typing import Any

import pytest

from schemas import files
from schemas.errors import SchemaError
from train import benchmarks
from train.evaluate import EvaluateConfig


def test_no_result_is_called_as_the_table() -> None:
    taken = Path(benchmarks.TABLE).stem
    told: dict[str, Any] = {"model": "m", "output": "o", "tasks": ("t",)}
    with pytest.raises(ValueError, match=r"not that of the table.*; choose another"):
        EvaluateConfig(name=taken, **told)
    assert EvaluateConfig(name=f"{taken}2", **told)


def write_result(out: Path, task: str, name: str, **changes: Any) -> str:
    """Writes what a table needs of a result."""
    told = {"harness": "1", "task_limit": None, "chat_prompts": False, "items": "a"}
    told |= changes
    result = {"inputs": {"task": told.pop("items")}, "settings": told}
    path = str(out / "tasks" / task / f"{name}.json")
    files.write_json(path, {**result, "results": {"t": {"acc": 0.5, "items": 9}}})
    return path


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"harness": "2"}, "harness"),
        ({"task_limit": 2}, "task_limit"),
        ({"chat_prompts": True}, "chat_prompts"),
        ({"items": "b"}, "task"),
    ],
)
def test_results_that_were_measured_otherwise_stand_in_no_table(
    tmp_path: Path, changes: dict[str, Any], key: str
) -> None:
    first = write_result(tmp_path, "t", "a")
    write_result(tmp_path, "t", "b")
    assert {*benchmarks.publish(str(tmp_path))["t"]} == {"a", "b"}
    second = write_result(tmp_path, "t", "c", **changes)
    with pytest.raises(SchemaError, match=f"results of t must .*same {key} ") as caught:
        benchmarks.publish(str(tmp_path))
    assert first in str(caught.value)
    assert second in str(caught.value)


def test_a_task_of_two_benchmarks_is_measured_alike_in_both(tmp_path: Path) -> None:
    write_result(tmp_path, "t", "a")
    write_result(tmp_path, "whole", "b", items="b")
    assert {*benchmarks.publish(str(tmp_path))["t"]} == {"a", "b"}
    write_result(tmp_path, "whole", "b", items="b", task_limit=2)
    with pytest.raises(SchemaError, match="results of t must be of the same task_lim"):
        benchmarks.publish(str(tmp_path))


def test_a_table_has_a_line_a_metric_and_a_column_a_model() -> None:
    found = {
        "a": {"t": {"acc": 0.5, "acc_stderr": 0.125, "items": 9, "cut_prompts": 0}},
        "b": {"t": {"acc": 0.25, "items": 1234}, "u": {"em,strict": 1.0}},
    }
    tasks = benchmarks.side_by_side(found)
    assert json.loads(json.dumps(tasks)) == tasks
    lines = benchmarks.table(tasks).splitlines()
    assert [line.split() for line in lines] == [
        ["a", "b"],
        ["t", "acc", "0.5000", "±", "0.1250", "0.2500"],
        ["t", "items", "9", "1,234"],
        ["u", "em,strict", "-", "1.0000"],
    ]
    assert len({len(line) for line in lines}) == 1
