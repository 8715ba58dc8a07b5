import dataclasses
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from lm_eval import tasks
from lm_eval.models import huggingface

from pipelines import cli
from schemas import files
from schemas.errors import SchemaError
from tests import twins
from tests.train import bench_tasks
from train import benchmarks, harness, task_folders
from train.evaluate import EvaluateConfig

COUNT = 10


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keeps the hub away, as on a machine without network, and its cache apart."""
    for place in (datasets.config, datasets.config.constants):
        monkeypatch.setattr(place, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    items = bench_tasks.questions(COUNT)
    return bench_tasks.write_choices(tmp_path / "mine", items)


@pytest.fixture
def config(models: dict[str, str], folder: Path, tmp_path: Path) -> EvaluateConfig:
    return EvaluateConfig(
        name="llama",
        model=models["llama"],
        output=str(tmp_path / "out"),
        tasks=("colors",),
        task_folders=(str(folder),),
        task_batch=4,
        device="cpu",
        threads=1,
    )


def silent(_: str) -> None:
    pass


def chosen(costs: list[float], lengths: list[int]) -> tuple[int, int]:
    """Returns the likeliest of several answers, and the likeliest by letter."""
    by_letter = [cost / n for cost, n in zip(costs, lengths, strict=True)]
    return costs.index(max(costs)), by_letter.index(max(by_letter))


def test_accuracy_is_that_of_the_models_own_forward_pass(
    config: EvaluateConfig,
) -> None:
    model = bench_tasks.Model(config.model)
    right = {"acc": 0, "acc_norm": 0}
    for item in bench_tasks.questions(COUNT):
        prompt = f"Question: {item['question']}\nAnswer:"
        costs = [model.cost(prompt, f" {word}") for word in item["choices"]]
        plain, by_letter = chosen(costs, [*map(len, item["choices"])])
        right["acc"] += plain == item["label"]
        right["acc_norm"] += by_letter == item["label"]
    assert 0 < right["acc"] < COUNT
    assert right["acc"] != right["acc_norm"]
    found = benchmarks.evaluate_tasks(config, silent)["colors"]
    for metric, count in right.items():
        share = count / COUNT
        assert found[metric] == pytest.approx(share)
        error = (share * (1 - share) / (COUNT - 1)) ** 0.5
        assert found[f"{metric}_stderr"] == pytest.approx(error)
    assert found["items"] == COUNT


def test_an_answer_is_the_likeliest_tokens_up_to_a_stop(
    config: EvaluateConfig, folder: Path
) -> None:
    model = bench_tasks.Model(config.model)
    items: list[dict[str, Any]] = []
    for n in range(6):
        question = f"{n} and " * n + "one"
        answer = model.answer(f"{question} =", "e", 6)
        items.append({"question": question, "answer": answer + "?" * (n % 3 == 0)})
    assert len({item["answer"] for item in items}) > 2
    bench_tasks.write_answers(folder, items)
    asked = dataclasses.replace(config, tasks=("sums",))
    found = benchmarks.evaluate_tasks(asked, silent)["sums"]
    assert found["exact_match"] == pytest.approx(4 / 6)


def test_results_stand_in_the_table_beside_what_else_it_holds(
    config: EvaluateConfig, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = f"{config.output}/evaluation.json"
    files.write_json(path, {"models": {"fused": {"all": 1.5}}})
    flags = ["--name=llama", f"--model={config.model}", f"--output={config.output}"]
    flags += ["--tasks", "colors", "--task_folders", str(folder), "--device=cpu"]
    assert cli.main(["evaluate", *flags]) == 0
    written = files.read_json(path)
    assert written["models"] == {"fused": {"all": 1.5}}
    row = written["tasks"]["colors"]["llama"]
    own = files.read_json(f"{config.output}/tasks/colors/llama.json")
    assert row == own["results"]["colors"]
    shown = capfd.readouterr()
    assert f"{row['acc']:.4f} ± {row['acc_stderr']:.4f}" in shown.out
    assert "marker number" not in shown.out + shown.err


def test_what_tasks_say_is_in_no_log(
    config: EvaluateConfig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    benchmarks.evaluate_tasks(config, silent)
    assert "marker number" not in caplog.text


def test_a_result_is_kept_until_settings_or_data_change(
    config: EvaluateConfig, folder: Path
) -> None:
    first = benchmarks.evaluate_tasks(config, silent)
    path = Path(config.output, "tasks/colors/llama.json")
    stamp = path.stat().st_mtime_ns
    assert benchmarks.evaluate_tasks(config, silent) == first
    assert benchmarks.measured_tasks(config, benchmarks.load(config)) == first
    assert path.stat().st_mtime_ns == stamp
    few = dataclasses.replace(config, task_limit=2)
    with pytest.raises(SchemaError, match="was measured with task_limit = None"):
        benchmarks.evaluate_tasks(few, silent)
    items = bench_tasks.questions(COUNT + 1)[1:]
    bench_tasks.write_choices(folder, items)
    with pytest.raises(SchemaError, match="was measured with task = "):
        benchmarks.evaluate_tasks(config, silent)
    assert benchmarks.measured_tasks(config, benchmarks.load(config)) == {}
    anew = dataclasses.replace(few, overwrite=True)
    assert benchmarks.evaluate_tasks(anew, silent)["colors"]["items"] == 2


@pytest.mark.parametrize("place", ["mine/own.py", "mine/below/other.py", "its.py"])
def test_a_result_is_of_all_python_that_its_folder_may_run(
    config: EvaluateConfig, folder: Path, place: str
) -> None:
    add_line(folder, "include: ../shared\n")
    (folder.parent / "shared").write_text("process_results: !function its.result\n")
    text = "def result(doc, found):\n    return {'acc': 1, 'acc_norm': 1}\n"
    (folder.parent / "its.py").write_text(text)
    allowed = dataclasses.replace(config, run_code=True)
    assert benchmarks.evaluate_tasks(allowed, silent)["colors"]["acc"] == 1
    changed = folder.parent / place
    changed.parent.mkdir(exist_ok=True)
    changed.write_text(text.replace("1", "0"))
    with pytest.raises(SchemaError, match="was measured with task = "):
        benchmarks.evaluate_tasks(allowed, silent)


def test_prompts_of_a_chat_model_are_dialogues_by_its_template(
    config: EvaluateConfig, folder: Path, tmp_path: Path
) -> None:
    chat = twins.chatty(twins.make(tmp_path / "chat", "llama", 7, twins.byte_level()))
    model = bench_tasks.Model(chat)
    question, head = "one and two", "<|im_start|>assistant\n"
    prompt = f"<|im_start|>user\n{question} =<|im_end|>\n{head}"
    answers = [model.answer(p, "e", 6) for p in (prompt, f"{question} =")]
    assert answers[0] != answers[1]
    bench_tasks.write_answers(folder, [{"question": question, "answer": answers[0]}])
    asked = dataclasses.replace(config, model=chat, tasks=("sums",), chat_prompts=True)
    assert benchmarks.evaluate_tasks(asked, silent)["sums"]["exact_match"] == 1
    plain = dataclasses.replace(asked, name="plain", chat_prompts=False)
    assert benchmarks.evaluate_tasks(plain, silent)["sums"]["exact_match"] == 0


def test_a_folder_of_tasks_may_be_moved(
    config: EvaluateConfig, folder: Path, tmp_path: Path
) -> None:
    moved = bench_tasks.write_choices(tmp_path / "b", bench_tasks.questions(COUNT))
    other = dataclasses.replace(config, task_folders=(str(moved),))
    (before,), (after,) = benchmarks.load(config), benchmarks.load(other)
    assert before.digest == after.digest


def test_prompts_that_are_too_long_are_counted(
    config: EvaluateConfig, folder: Path
) -> None:
    items = bench_tasks.questions(3)
    items[1]["question"] *= 60
    bench_tasks.write_choices(folder, items)
    said: list[str] = []
    found = benchmarks.evaluate_tasks(config, said.append)["colors"]
    assert found["cut_prompts"] == 3  # one for each choice
    assert said == [
        "task colors: 3 items, 3 prompts lost their beginning, as they were too long"
    ]


@pytest.mark.parametrize("name", harness.PRESETS)
def test_a_preset_without_its_data_says_how_to_come_by_it(
    config: EvaluateConfig, name: str
) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        benchmarks.load(dataclasses.replace(config, tasks=(name,)))
    told = str(caught.value)
    assert told.startswith(f"task {name} must have its data")
    assert "HF_HOME" in told
    assert "--task_limit=1" in told


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("bbh", {"exact_match,get-answer"}),
        ("arc", {"acc", "acc_norm"}),
        ("boolq", {"acc"}),
        ("hellaswag", {"acc", "acc_norm"}),
        ("openbookqa", {"acc", "acc_norm"}),
        ("gsm8k", {"exact_match,strict-match", "exact_match,flexible-extract"}),
    ],
)
def test_a_preset_asks_the_items_of_its_data_set(
    config: EvaluateConfig,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    figures: set[str],
) -> None:
    rows = datasets.Dataset.from_list([bench_tasks.PUBLIC[name]] * 8)
    parts = dict.fromkeys(("train", "validation", "test"), rows)
    monkeypatch.setattr(
        datasets, "load_dataset", lambda **_: datasets.DatasetDict(parts)
    )
    monkeypatch.setattr(huggingface.HFLM, "max_length", 2048)
    monkeypatch.setattr(huggingface.HFLM, "generate_until", answered)
    asked = dataclasses.replace(config, tasks=(name,), task_limit=2)
    found = benchmarks.evaluate_tasks(asked, silent)
    assert {*harness.PRESETS[name][1]} <= found.keys()
    assert len(found) == {"bbh": 28, "arc": 2}.get(name, 1)
    for row in found.values():
        measured = {key for key in row if "_stderr" not in key}
        assert measured - {"items", "cut_prompts"} == figures
    if name in ("bbh", "gsm8k"):
        assert {row[figure] for row in found.values() for figure in figures} == {1.0}


def answered(_: Any, requests: list[Any]) -> list[str]:
    """Answers what is asked in a way that both kinds of items take for right."""
    return [
        "So the answer is True." if "False" in r.args[0] else "#### 4" for r in requests
    ]


def test_a_part_of_a_data_set_that_was_not_kept_is_told_alike(
    config: EvaluateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise ValueError("Couldn't find cache for ai2_arc for config 'ARC-Challenge'")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(FileNotFoundError, match=r"task arc must have .*'ARC-Chall"):
        benchmarks.load(dataclasses.replace(config, tasks=("arc",)))


def test_broken_data_of_a_local_task_are_named_and_not_quoted(
    config: EvaluateConfig, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "colors.jsonl"
    path.write_text(path.read_text().replace('"choices"', "marker number", 1))
    with pytest.raises(FileNotFoundError, match="task colors must have its data"):
        benchmarks.load(config)
    assert "marker number" not in caplog.text


def test_a_local_task_whose_files_are_gone_is_named(
    config: EvaluateConfig, folder: Path
) -> None:
    (folder / "colors.jsonl").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"task colors must have.*colors\.jsonl"
    ):
        benchmarks.load(config)


def test_an_unknown_task_is_refused_with_the_nearest_name(
    config: EvaluateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All of the harness's tasks take ten seconds to read.
    few = Path(tasks.__file__).parent / "hellaswag/manager.py"
    monkeypatch.setattr(tasks.manager, "__file__", str(few))
    with pytest.raises(ValueError, match=r"got 'hella_swag'; did you mean hellaswag"):
        benchmarks.load(dataclasses.replace(config, tasks=("hella_swag",)))


def test_a_program_that_a_model_writes_runs_only_where_allowed(
    config: EvaluateConfig, folder: Path
) -> None:
    add_line(folder, "unsafe_code: true\n")
    with pytest.raises(ValueError, match=r"task colors runs what the model has wri"):
        benchmarks.load(config)
    assert benchmarks.load(dataclasses.replace(config, run_code=True))


def test_a_task_of_programs_is_refused_before_the_hub_is_asked(
    config: EvaluateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = Path(tasks.__file__).parent / "humaneval/manager.py"
    monkeypatch.setattr(tasks.manager, "__file__", str(alone))
    with pytest.raises(ValueError, match=r"humaneval: code_eval is a program of the h"):
        benchmarks.load(dataclasses.replace(config, tasks=("humaneval",)))


def test_a_metric_that_is_a_program_of_the_hub_is_not_fetched_unasked(
    config: EvaluateConfig, folder: Path
) -> None:
    path = folder / "colors.yaml"
    path.write_text(path.read_text().replace("metric: acc\n", "metric: meteor\n"))
    with pytest.raises(
        ValueError, match=r"task colors: meteor is a program of the hub"
    ):
        benchmarks.load(config)


MARK = "def touch(doc):\n    raise AssertionError('it ran')\n"


NAMED = "process_docs: !function own.touch\n"


def write_included(folder: Path) -> None:
    add_line(folder, "include: shared\n")
    (folder / "shared").write_text(NAMED)


def write_linked(folder: Path) -> None:
    """Makes the task a link to a file elsewhere, which includes what lies there."""
    write_included(folder)
    there = folder / "there"
    there.mkdir()
    for name in ("colors.yaml", "shared", "own.py"):
        (folder / name).rename(there / name.replace(".yaml", ".txt"))
    (folder / "shared").write_text("{}\n")
    (folder / "colors.yaml").symlink_to(there / "colors.txt")


def add_line(folder: Path, line: str) -> None:
    path = folder / "colors.yaml"
    path.write_text(path.read_text() + line)


@pytest.mark.parametrize(
    "write",
    [
        functools.partial(add_line, line=NAMED),
        functools.partial(add_line, line=f"{NAMED}process_docs: null\n"),
        functools.partial(add_line, line="a:\n  ? !function own.touch\n  : 1\n"),
        functools.partial(add_line, line="a: !!omap\n  - x: !function own.touch\n"),
        functools.partial(add_line, line="a: !!set\n  ? !function own.touch\n"),
        write_included,
        write_linked,
    ],
    ids=["plainly", "twice", "key", "omap", "set", "included", "linked"],
)
def test_python_of_a_folder_of_tasks_is_not_imported_unasked(
    config: EvaluateConfig, folder: Path, write: Callable[[Path], None]
) -> None:
    (folder / "own.py").write_text("raise RuntimeError('imported')\n")
    write(folder)
    with pytest.raises(
        ValueError, match=r"names Python, own\.touch, which must be all"
    ):
        benchmarks.load(config)
    with pytest.raises(RuntimeError, match="imported"):
        benchmarks.load(dataclasses.replace(config, run_code=True))


def test_the_harness_imports_no_python_of_others_unasked(
    config: EvaluateConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "own.py").write_text("raise RuntimeError('imported')\n")
    add_line(folder, NAMED)
    monkeypatch.setattr(task_folders, "read", lambda *_, **__: {"colors": ()})
    with pytest.raises(ValueError, match=r"task colors: own\.touch beside .*run_code"):
        benchmarks.load(config)


SHUFFLED = """import random
def shuffled(items):
    return items.select(random.sample(range(len(items)), len(items)))
"""


def test_what_a_task_leaves_to_chance_does_not_depend_on_others(
    config: EvaluateConfig, folder: Path
) -> None:
    (folder / "own.py").write_text(SHUFFLED)
    add_line(folder, "process_docs: !function own.shuffled\n")
    bench_tasks.write_answers(folder, [{"question": "1 and 1", "answer": "2"}] * 9)
    sums = folder / "sums.yaml"
    sums.write_text(sums.read_text() + "process_docs: !function own.shuffled\n")

    def digest(*names: str) -> str:
        asked = dataclasses.replace(config, tasks=names, run_code=True)
        (found,) = [b for b in benchmarks.load(asked) if b.name == "colors"]
        return found.digest

    assert digest("colors") == digest("sums", "colors") == digest("colors", "sums")


def test_a_group_of_ones_own_may_name_tasks_of_the_harness(
    config: EvaluateConfig, folder: Path
) -> None:
    (folder / "mine.yaml").write_text("group: mine\ntask: [colors, arc_easy]\n")
    asked = dataclasses.replace(config, tasks=("mine",))
    with pytest.raises(FileNotFoundError, match="task mine must have its data"):
        benchmarks.load(asked)


def test_a_template_of_a_task_cannot_reach_out_of_its_sandbox(
    config: EvaluateConfig, folder: Path
) -> None:
    path = folder / "colors.yaml"
    reach = "{{ question.__class__.__mro__[1].__subclasses__() }}"
    path.write_text(path.read_text().replace("{{question}}", reach))
    with pytest.raises(Exception, match="is unsafe") as caught:
        benchmarks.evaluate_tasks(config, silent)
    assert type(caught.value).__name__ == "SecurityError"


@pytest.mark.parametrize(
    ("text", "law"),
    [
        ("task: [", r"broken\.yaml must be YAML"),
        ("- task", r"broken\.yaml must hold keys and values, got list"),
        ("task: colors", r"broken\.yaml and .*colors\.yaml have 'colors'"),
        ("task: arc_easy", r"which arc_easy is; give them other names"),
        ("include: broken.yaml", r"broken\.yaml must not include itself"),
        ("include: absent", r"absent must be YAML, but is not"),
    ],
)
def test_a_file_that_the_harness_would_pass_over_is_named(
    config: EvaluateConfig, folder: Path, text: str, law: str
) -> None:
    (folder / "broken.yaml").write_text(text)
    with pytest.raises(ValueError, match=law):
        benchmarks.load(config)


def test_a_folder_without_tasks_is_refused(
    config: EvaluateConfig, tmp_path: Path
) -> None:
    empty = dataclasses.replace(config, task_folders=(str(tmp_path / "none"),))
    with pytest.raises(FileNotFoundError, match=r"must hold \.yaml files"):
        benchmarks.load(empty)


def test_a_model_that_cannot_hold_an_answer_is_refused(
    config: EvaluateConfig, folder: Path
) -> None:
    bench_tasks.write_answers(folder, [{"question": "1", "answer": "1"}])
    path = folder / "sums.yaml"
    path.write_text(path.read_text().replace("toks: 6", "toks: 512"))
    asked = dataclasses.replace(config, tasks=("sums",))
    with pytest.raises(ValueError, match="lets an answer have 512 tokens"):
        benchmarks.evaluate_tasks(asked, silent)


@pytest.mark.parametrize("name", ["lm_eval", "datasets"])
def test_without_the_harness_the_extra_is_named(name: str) -> None:
    told = cli.told(ModuleNotFoundError(f"No module named {name!r}", name=name))
    assert told is not None
    assert told.endswith("pip install 'fusebeam[eval]'")


def test_an_evaluation_must_be_of_something(config: EvaluateConfig) -> None:
    with pytest.raises(ValueError, match="windows or tasks must be given"):
        dataclasses.replace(config, tasks=())
    with pytest.raises(ValueError, match="tasks must be names, without slashes"):
        dataclasses.replace(config, tasks=("../colors",))
