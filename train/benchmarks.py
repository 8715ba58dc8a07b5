"""Benchmarks of models, by lm-evaluation-harness, beside their bits per byte.

    python -m train.evaluate --name=fused --model=runs/demo/models/fused \
        --tasks arc hellaswag --output=runs/demo/benchmarks

One result a task and model: a command that was killed goes on with the next, and a
further task costs itself alone. What a prompt looks like, what counts as right and what
the standard error is are the harness's own (Biderman et al. 2024, arXiv 2405.14782).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from schemas import files
from schemas.errors import SchemaError
from train import evaluate, harness
from train.evaluate import VERSION, EvaluateConfig
from train.harness import Benchmark, Metrics
from transforms import scorer

FOLDER = "tasks"
TABLE = "evaluation.json"

Table = dict[str, dict[str, dict[str, float]]]
"""By task and model: what was measured, by metric."""

_COMPARED = ("harness", "task_limit", "chat_prompts")
"""Settings without which figures of one task say nothing of each other."""


def load(config: EvaluateConfig) -> list[Benchmark]:
    """Loads the tasks that settings name, with their data.

    Raises:
      FileNotFoundError: if a task cannot have its data.
      ImportError: if the harness is not installed.
      ValueError: if a task is unknown, or would run code and may not.
    """
    return harness.load(config.tasks, config.task_folders, run_code=config.run_code)


def evaluate_tasks(
    config: EvaluateConfig,
    progress: Callable[[str], None],
    loaded: Sequence[Benchmark] | None = None,
) -> Metrics:
    """Measures a model on benchmarks, but for those whose result is there already.

    Args:
      config: what to measure; it names tasks.
      progress: is given one line a task.
      loaded: what `load` returned, where several models are measured.

    Raises:
      SchemaError: if a result of other settings is there.
    """
    found: Metrics = {}
    asked = None
    shared = _settings(config), evaluate.fingerprints(config)
    for benchmark in load(config) if loaded is None else loaded:
        path, identity = _path(config, benchmark), _identity(benchmark, *shared)
        kept = evaluate.kept(path, identity, overwrite=config.overwrite)
        if kept is None:
            asked = asked or _load_model(config)
            kept = _measure(config, benchmark, asked, shared)
            files.write_json(path, kept)
        found |= kept["results"]
        progress(f"task {benchmark.name}: {_told(kept['results'])}")
    return found


def measured_tasks(config: EvaluateConfig, loaded: Sequence[Benchmark]) -> Metrics:
    """Returns the results that are there, if they are what would be measured now."""
    found: Metrics = {}
    there = [one for one in loaded if files.exists(_path(config, one))]
    try:
        shared = _settings(config), evaluate.fingerprints(config)
    except FileNotFoundError:
        return {}  # the model is gone
    for benchmark in there:
        identity = _identity(benchmark, *shared)
        kept = evaluate.kept(_path(config, benchmark), identity, overwrite=True)
        found |= {} if kept is None else kept["results"]
    return found


def _path(config: EvaluateConfig, benchmark: Benchmark) -> str:
    return files.join(config.output, FOLDER, benchmark.name, f"{config.name}.json")


def _settings(config: EvaluateConfig) -> dict[str, Any]:
    """Returns the settings that shape a result, what was left to us made definite."""
    return {
        "harness": harness.version(),
        "task_batch": config.task_batch,
        "task_limit": config.task_limit,
        "chat_prompts": config.chat_prompts,
        **scorer.resolved(evaluate.scorer_settings(config)),
    }


def _identity(
    benchmark: Benchmark, shaping: Mapping[str, Any], inputs: Mapping[str, str]
) -> dict[str, Any]:
    return {**shaping, **inputs, "task": benchmark.digest}


def _load_model(config: EvaluateConfig) -> Any:
    model = scorer.load_model(evaluate.scorer_settings(config))
    tokens = config.tokenizer or config.model
    return harness.wrap(model, tokens, batch=config.task_batch)


def _measure(
    config: EvaluateConfig,
    benchmark: Benchmark,
    asked: Any,
    shared: tuple[dict[str, Any], dict[str, str]],
) -> dict[str, Any]:
    """Measures one benchmark; returns what its file holds."""
    shaping, inputs = shared
    results = harness.ask(
        benchmark, asked, limit=config.task_limit, chat=config.chat_prompts
    )
    return {
        "schema_version": VERSION,
        "settings": shaping,
        "inputs": {**inputs, "task": benchmark.digest},
        "results": results,
    }


def _told(results: Metrics) -> str:
    """Says in a line how many items there were, and which prompts were too long."""
    items = sum(r["items"] for r in results.values() if "cut_prompts" in r)
    cut = sum(r.get("cut_prompts", 0) for r in results.values())
    lost = (
        f", {cut:,} prompts lost their beginning, as they were too long" if cut else ""
    )
    return f"{items:,} items{lost}"


def publish(folder: str) -> Table:
    """Puts all results of a folder into its table, beside what else that holds.

    Args:
      folder: what `--output` named.

    Returns:
      The results by task and model.

    Raises:
      SchemaError: if some must not stand side by side.
    """
    found = side_by_side(read(folder))
    path = files.join(folder, TABLE)
    before = files.read_json(path) if files.exists(path) else {}
    files.write_json(path, {**before, "tasks": found})
    return found


def read(folder: str) -> dict[str, Metrics]:
    """Reads the results of a folder, by model.

    Raises:
      SchemaError: if those of a task are of other settings, or of other items.
    """
    found: dict[str, Metrics] = {}
    first: dict[str, tuple[str, dict[str, Any]]] = {}
    below = files.join(folder, FOLDER)
    for path in sorted(p for p in files.tree(below) if p.endswith(".json")):
        held = files.read_json(path)
        told = {key: held["settings"].get(key) for key in _COMPARED}
        # The items of a benchmark of several tasks say nothing of each of them.
        whole = files.name_of(files.parent(path))
        alike = {f"{whole}/": {**told, "task": held["inputs"]["task"]}}
        for task, had in (alike | dict.fromkeys(held["results"], told)).items():
            _refuse_unlike(task, first.setdefault(task, (path, had)), (path, had))
        name = files.name_of(path).removesuffix(".json")
        found.setdefault(name, {}).update(held["results"])
    return found


def _refuse_unlike(
    task: str, one: tuple[str, dict[str, Any]], other: tuple[str, dict[str, Any]]
) -> None:
    (path, had), (second, has) = one, other
    for key, value in had.items():
        if value != has[key]:
            raise SchemaError(
                f"results of {task.rstrip('/')} must be of the same {key} to stand in"
                f" one table, but {path} is of {value!r} and {second} of {has[key]!r};"
                " measure one of them again with --overwrite as the other was, or with"
                " another --output, or remove it"
            )


def side_by_side(found: Mapping[str, Metrics]) -> Table:
    """Turns results by model into a table by task.

    Example:
      >>> side_by_side({"a": {"arc": {"acc": 0.5}}, "b": {"arc": {"acc": 0.25}}})
      {'arc': {'a': {'acc': 0.5}, 'b': {'acc': 0.25}}}
    """
    tasks = dict.fromkeys(task for results in found.values() for task in results)
    return {
        task: {
            name: results[task] for name, results in found.items() if task in results
        }
        for task in tasks
    }


def table(tasks: Table) -> str:
    """Writes a table as text: a line a task and metric, a column a model."""
    models = list(dict.fromkeys(model for row in tasks.values() for model in row))
    lines = [["", *models]]
    for task, row in tasks.items():
        metrics = dict.fromkeys(metric for held in row.values() for metric in held)
        for metric in metrics:
            if metric != "cut_prompts" and "_stderr" not in metric:
                cells = [_cell(row.get(model, {}), metric) for model in models]
                lines.append([f"{task} {metric}", *cells])
    wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(wide[0]), *map(str.rjust, line[1:], wide[1:])])
        for line in lines
    )


def _cell(held: Mapping[str, float], metric: str) -> str:
    """Writes a count, or a figure with its standard error, if both are there."""
    if metric not in held:
        return "-"
    if metric == "items":
        return f"{held[metric]:,}"
    name, comma, chosen = metric.partition(",")
    error = held.get(f"{name}_stderr{comma}{chosen}")
    return f"{held[metric]:.4f}" + ("" if error is None else f" ± {error:.4f}")
