"""Tasks of EleutherAI's lm-evaluation-harness: found, loaded with their data, asked."""

import dataclasses
import importlib.metadata
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from schemas import files, settings
from train import confinement, task_folders
from transforms import causal, checkpoint

PRESETS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "bbh": ("bbh/cot_fewshot", ("bbh",)),
    "arc": ("arc", ("arc_easy", "arc_challenge")),
    "boolq": ("super_glue/boolq", ("boolq",)),
    "hellaswag": ("hellaswag", ("hellaswag",)),
    "openbookqa": ("openbookqa", ("openbookqa",)),
    "gsm8k": ("gsm8k", ("gsm8k",)),
}
"""By name: where the harness has it, and what it is called there.

These need not the index of all its 14,000 tasks, which takes seconds.
"""

Metrics = dict[str, dict[str, float]]
"""By task: what was measured, by metric; `items`; `cut_prompts`, those too long."""

_SHOTS_SEED = 1234
"""Of the choice of examples in prompts: the harness's own default."""
_NOT_HOW = ("metadata", "dataset_kwargs")
"""Keys of a task that say where it lies, not how it asks."""
_NOT_KEPT = "Couldn't find cache"
"""What datasets begins with where another part of the same data set was kept."""
_DRAWS = 1000
"""Of the bootstrap, for standard errors that no formula gives."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Benchmark:
    """A task, or several under one name, with its data.

    Attributes:
      name: as it was asked for.
      loaded: the harness's tasks and groups.
      digest: of how it asks, and of every item.
      run_code: whether code of others may run.
    """

    name: str
    loaded: Any
    digest: str
    run_code: bool


def version() -> str:
    """Returns the version of the harness, which has its part in every figure."""
    return importlib.metadata.version("lm_eval")


def load(
    names: Sequence[str], folders: Sequence[str], *, run_code: bool
) -> list[Benchmark]:
    """Finds tasks and loads their data.

    Args:
      names: presets, or tasks and groups of the harness or of the folders.
      folders: of tasks of one's own.
      run_code: whether code of others may run.

    Raises:
      FileNotFoundError: if a folder is not there, or a task cannot have its data.
      ImportError: if the harness is not installed.
      ValueError: if there is no such task, two are called alike, or one would run code
        and may not.
    """
    own = task_folders.read(folders, run_code=run_code)
    if clash := sorted(own.keys() & _reserved()):
        raise ValueError(
            f"tasks of {', '.join(folders)} must not be called as those of presets,"
            f" which {', '.join(clash)} {'is' if len(clash) == 1 else 'are'}; give them"
            " other names"
        )
    with confinement.confined(run_code=run_code):
        manager = _manager(names, folders, own)
        asked = dict.fromkeys(names)
        found = {name: _load(name, manager, own, run_code=run_code) for name in asked}
        code = task_folders.programs(folders) if run_code else []
        return [
            Benchmark(
                name=name,
                loaded=loaded,
                digest=_digest(loaded["tasks"], [] if name in PRESETS else code),
                run_code=run_code,
            )
            for name, loaded in found.items()
        ]


def _reserved() -> set[str]:
    return {*PRESETS, *(task for _, tasks in PRESETS.values() for task in tasks)}


def _manager(
    names: Sequence[str], folders: Sequence[str], own: Mapping[str, Sequence[str]]
) -> Any:
    """Indexes the tasks that names may mean, no more of the harness's than needed."""
    from lm_eval import tasks  # takes seconds

    members = [member for name in own for member in own[name]]
    if any(n not in own for n in members) or any(
        n not in own and n not in PRESETS for n in names
    ):
        return tasks.TaskManager(include_path=[*folders])
    root = Path(tasks.__file__).parent
    places = [root / PRESETS[name][0] for name in names if name in PRESETS]
    return tasks.TaskManager(include_defaults=False, include_path=[*places, *folders])


def _load(name: str, manager: Any, own: Collection[str], *, run_code: bool) -> Any:
    import datasets  # takes seconds

    members = PRESETS[name][1] if name in PRESETS and name not in own else (name,)
    for member in members:
        if member not in manager.task_index:
            known = [*PRESETS, *manager.all_tasks]
            raise ValueError(
                f"tasks must name presets ({', '.join(PRESETS)}), or tasks of the"
                f" harness or of --task_folders, got {name!r}"
                f"{settings.suggestion(name, known)}"
            )
    try:
        with confinement.seeded():  # so no task depends on those that are asked beside
            loaded = manager.load([*members])
    except confinement.Refused as error:
        raise ValueError(f"task {name}: {error}") from error.__cause__
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise FileNotFoundError(_lacking(name, error)) from error
    except ValueError as error:
        if not str(error).startswith(_NOT_KEPT):
            raise
        raise FileNotFoundError(_lacking(name, error)) from error
    for task_name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False) and not run_code:
            raise ValueError(
                f"task {task_name} runs what the model has written, as a program, which"
                f" must be allowed; {confinement.ALLOW}"
            )
        if getattr(task, "MULTIMODAL", False):
            raise ValueError(
                f"task {task_name} must be of text alone, but asks about pictures or"
                " sound; leave it out"
            )
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        if made := task.get_config("process_docs"):  # the harness calls it every time
            task.set_config("process_docs", confinement.seeded()(made))
    return loaded


def _lacking(name: str, error: Exception) -> str:
    """Says of which data a task is in want, and how to come by it."""
    told = str(error).strip().partition("\n")[0]
    return (
        f"task {name} must have its data, from the hub, from what this machine has kept"
        f" of it, or from the files that a task of your own names, and cannot"
        f" ({type(error).__name__}: {told}); without a way to the hub, run the same"
        " command with --task_limit=1 where there is one, with HF_HOME naming a folder"
        " that both machines see, and here with the same HF_HOME and HF_HUB_OFFLINE=1"
    )


def _digest(tasks: Mapping[str, Any], code: Sequence[tuple[str, str]]) -> str:
    """Digests how tasks ask, and every item, those shown as examples among them.

    Args:
      tasks: of the harness, by name.
      code: Python that they may run, besides the harness's own.
    """
    told: list[Any] = [*code]
    for name, task in tasks.items():
        how = {k: v for k, v in task.dump_config().items() if k not in _NOT_HOW}
        shots = task.get_config("num_fewshot")
        shown = list(task.fewshot_docs() or ()) if shots else []
        told.append([name, _plain(how), _plain(list(task.eval_docs)), _plain(shown)])
    return files.digest(told)


def _plain(value: Any) -> Any:
    """Turns what tasks hold into JSON values; what has no such form is told by name."""
    if isinstance(value, Mapping):
        return {str(key): _plain(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(held) for held in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value) if not callable(value) else getattr(value, "__name__", "function")


def wrap(model: Any, tokenizer: str, *, batch: int) -> Any:
    """Puts a loaded model into the harness's hands.

    Args:
      model: a causal language model of transformers, in evaluation mode.
      tokenizer: folder, GGUF file or hub id of its tokenizer.
      batch: requests of a forward pass.
    """
    import transformers
    from lm_eval.models import huggingface

    found = checkpoint.fetch(tokenizer, (checkpoint.CONFIG, *checkpoint.COMPANIONS))
    given = transformers.AutoTokenizer.from_pretrained(
        str(found.folder),
        trust_remote_code=False,
        local_files_only=True,
        **({"gguf_file": found.gguf_file} if found.gguf_file else {}),
    )
    with confinement.confined(run_code=False):
        return huggingface.HFLM(
            pretrained=model,
            tokenizer=given,
            backend="causal",
            batch_size=batch,
            trust_remote_code=False,
        )


def ask(benchmark: Benchmark, asked: Any, *, limit: int | None, chat: bool) -> Metrics:
    """Asks a model all items of a benchmark.

    Args:
      benchmark: what `load` returned.
      asked: what `wrap` returned.
      limit: items of each task; None = all.
      chat: whether prompts are put into the model's chat template.

    Raises:
      ValueError: if answers may be as long as all that the model can read.
    """
    from lm_eval import evaluator

    tasks = benchmark.loaded["tasks"]
    with confinement.confined(run_code=benchmark.run_code), causal.quiet():
        for task in tasks.values():
            _refuse_short(task, asked)
            task.set_fewshot_seed(seed=_SHOTS_SEED)
        found = evaluator.evaluate(
            asked,
            benchmark.loaded,
            limit=limit,
            bootstrap_iters=_DRAWS,
            log_samples=False,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            confirm_run_unsafe_code=benchmark.run_code,
        )
        cut = {
            name: sum(_is_cut(asked, one) for one in task.instances)
            for name, task in tasks.items()
        }
    return {
        name: {
            **_metrics(name, row),
            **({"cut_prompts": cut[name]} if name in cut else {}),
        }
        for name, row in found["results"].items()
    }


def _metrics(task: str, row: Mapping[str, Any]) -> dict[str, float]:
    """Takes the numbers of a row of the harness's; what has no filter says none.

    Raises:
      ValueError: if a figure is no number; a standard error may be none.
    """
    found: dict[str, float] = {}
    for key, value in row.items():
        if "," not in key or isinstance(value, str):
            continue  # names, and what says that there is no standard error
        if math.isfinite(value):
            found[key.removesuffix(",none")] = float(value)
        elif "_stderr," not in key:
            raise ValueError(
                f"{key} of task {task} must be a number, got {value}; the model gives"
                " logits that are none, or the task's metric does not fit its answers"
            )
    return {**found, "items": int(row["sample_len"])}


def _generated(task: Any, asked: Any) -> int:
    """Returns how many tokens of an answer there may be."""
    told = task.get_config("generation_kwargs") or {}
    return int(told.get("max_gen_toks", asked.max_gen_toks))


def _refuse_short(task: Any, asked: Any) -> None:
    if task.OUTPUT_TYPE != "generate_until":
        return
    answer, room = _generated(task, asked), asked.max_length
    if answer >= room:
        raise ValueError(
            f"task {task.config.task} lets an answer have {answer} tokens, so that the"
            f" model must be able to read more than these, it reads {room}; leave the"
            " task out, or set max_gen_toks below that in a task of your own"
        )


def _is_cut(asked: Any, request: Any) -> bool:
    """Says whether a prompt was too long, and so has lost its beginning."""
    if request.request_type == "generate_until":
        prompt, told = request.args
        answer = int(told.get("max_gen_toks", asked.max_gen_toks))
        return len(asked.tok_encode(prompt)) > asked.max_length - answer
    if request.request_type == "loglikelihood" and request.args[0]:
        prompt, answer = asked._encode_pair(*request.args)
        return len(prompt) + len(answer) > asked.max_length + 1
    return False
