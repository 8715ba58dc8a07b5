"""What the trainer's settings may be, each alone and all together.

A setting that would do nothing beside the others is refused: who gives it expects
something of it. At its default it never is. What only changes a figure that is logged,
as a fusion loss at a CLM share of 1, does something.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.config import TrainConfig

_REPOSITORY = re.compile(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Idle:
    """Settings that do nothing in some runs.

    Attributes:
      names: the settings.
      when: says of which runs that is true.
      why: what is so there, after "where".
      cure: what to give instead.
    """

    names: tuple[str, ...]
    when: Callable[["TrainConfig"], Any]
    why: str
    cure: str


_IDLE = (
    _Idle(
        names=("tail", "teacher_temperature", "target_temperature", "position_weights"),
        when=lambda run: run.fusion_loss == "chunks",
        why="fusion_loss is chunks, which looks at no fused rows",
        cure="leave it out, or match rows beside chunks by --chunk_share",
    ),
    _Idle(
        names=("chunk_temperature",),
        when=lambda run: run.fusion_loss != "chunks" and not run.chunk_share,
        why="no chunks are matched",
        cure="leave it out, or give --chunk_share, or --fusion_loss=chunks",
    ),
    _Idle(
        names=("label_smoothing",),
        when=lambda run: run.clm_weight == 0 and run.clm_schedule == "constant",
        why="clm_weight is 0, as it is the CLM loss's",
        cure="leave it out, or give --clm_weight",
    ),
    _Idle(
        names=("kernels",),
        when=lambda run: run.label_smoothing or run.target_temperature != 1,
        why="label_smoothing or target_temperature is given, which they know nothing"
        " of",
        cure="leave it out",
    ),
    _Idle(
        names=(
            "lora_alpha",
            "lora_dropout",
            "lora_targets",
            "quantise",
            "keep_adapter",
        ),
        when=lambda run: run.lora_rank is None,
        why="lora_rank is not given, as it is about adapters",
        cure="give --lora_rank=16, or leave it out",
    ),
    _Idle(
        names=("checkpoint_form",),
        when=lambda run: run.lora_rank is not None,
        why="lora_rank is given, as adapters are small and written whole",
        cure="leave it out",
    ),
    _Idle(
        names=("checkpoint_form",),
        when=lambda run: run.deepspeed is not None,
        why="deepspeed is given, which has a form of its own",
        cure="leave it out, or give --sharding=fsdp instead of --deepspeed",
    ),
    _Idle(
        names=("max_bad_fraction",),
        when=lambda run: run.bad_rows != "skip",
        why="bad_rows is not skip: the first bad row is an error",
        cure="leave it out, or give --bad_rows=skip",
    ),
    _Idle(
        names=("min_delta",),
        when=lambda run: run.patience is None,
        why="patience is not given, as it is what patience counts by",
        cure="leave it out, or give --patience",
    ),
    _Idle(
        names=("hub_public",),
        when=lambda run: run.push_to_hub is None,
        why="push_to_hub is not given",
        cure="leave it out, or give --push_to_hub=ORG/NAME",
    ),
)

_REFERENCE: dict[str, tuple[str | float, ...]] = {
    "tail": ("renormalise",),
    "fusion_loss": ("ce", "kl"),
    "label_smoothing": (0.0,),
    "target_temperature": (1.0,),
    "chunk_share": (0.0,),
    "position_weights": ("equal",),
}
"""What settings of the objective may be under `reference`."""


def check(run: "TrainConfig") -> None:
    """Refuses values out of range, and settings that do not go together.

    Raises:
      ValueError: naming the setting, what it must be and what came.
    """
    if run.model.endswith(".gguf"):
        raise ValueError(
            f"model must have weights that can be trained, got {run.model}; load"
            " it with transformers and save it with save_pretrained"
        )
    _check_numbers(run)
    _check_data(run)
    _check_objective(run)
    _check_evaluations(run)
    _check_scale(run)
    _check_places(run)
    _check_idle(run)


def _check_numbers(run: "TrainConfig") -> None:
    """Refuses numbers out of range, whatever the others are."""
    for name in ("clm_weight", "warmup_ratio", "max_bad_fraction"):
        _require(0 <= getattr(run, name) <= 1, name, "in [0, 1]", run)
    for name in ("label_smoothing", "chunk_share", "beta1", "beta2", "lora_dropout"):
        _require(0 <= getattr(run, name) < 1, name, "in [0, 1)", run)
    heats = ("teacher_temperature", "target_temperature", "chunk_temperature")
    for name in ("learning_rate", "epochs", "lora_alpha", *heats):
        _require(getattr(run, name) > 0, name, "above 0", run)
    for name in ("batch_size", "accumulation", "save_steps", "logging_steps"):
        _require(getattr(run, name) >= 1, name, "at least 1", run)
    for name in ("readers", "read_ahead", "weight_decay", "seed", "min_delta", "clip"):
        _require(getattr(run, name) >= 0, name, "at least 0", run)
    for name, value in vars(run).items():
        if isinstance(value, float):
            _require(math.isfinite(value), name, "finite", run)
    optional = ("max_steps", "threads", "peak_tflops", "lora_rank")
    for name in (*optional, "eval_steps", "patience"):
        value = getattr(run, name)
        _require(value is None or value > 0, name, "above 0, or left out", run)
    if run.batch_size % run.accumulation:
        raise ValueError(
            f"batch_size must be a multiple of accumulation, got {run.batch_size}"
            f" and {run.accumulation}"
        )


def _check_data(run: "TrainConfig") -> None:
    if not run.folders:
        raise ValueError("data must name a fused folder, got none")
    weights = run.data_weights
    if weights and len(weights) != len(run.folders):
        raise ValueError(
            f"data_weights must be one for each of the {len(run.folders)} folders"
            f" of data, or be left out, got {len(weights)}"
        )
    if not all(0 < weight < math.inf for weight in weights):
        raise ValueError(
            f"data_weights must be above 0, and finite, got {list(weights)}; leave"
            " out what has no share"
        )


def _check_objective(run: "TrainConfig") -> None:
    """Refuses parts of the objective that do not go together."""
    bare = run.fusion_loss != "chunks"
    _require(bare or not run.chunk_share, "chunk_share", "0 for chunks alone", run)
    if bare and run.tail == "bucket" and run.teacher_temperature != 1:
        raise ValueError(
            "teacher_temperature must be 1 where tail is bucket, got"
            f" {run.teacher_temperature}: the mass that a fused row does not keep"
            " cannot be tempered without the logits behind it; give"
            " --tail=renormalise"
        )
    if run.reference is None:
        return
    for name, allowed in _REFERENCE.items():
        if (value := getattr(run, name)) not in allowed:
            raise ValueError(
                f"{name} must be {' or '.join(map(str, allowed))} where reference"
                f" is {run.reference}, as in the authors' code, got {value!r}"
            )


def _check_evaluations(run: "TrainConfig") -> None:
    chooses = run.keep_best or run.patience is not None
    for given, needs in (
        (chooses, "eval_steps"),
        (chooses or run.eval_steps, "eval_data"),
    ):
        if given and getattr(run, needs) is None:
            raise ValueError(
                f"{needs} must be given where eval_steps, patience or keep_best is, as"
                " they are about evaluations while it trains, got none; pass"
                " --eval_data, a windows folder, and --eval_steps"
            )


def _check_scale(run: "TrainConfig") -> None:
    """Refuses what DeepSpeed does not go together with."""
    if run.deepspeed is None:
        return
    if run.sharding != "none":
        raise ValueError(
            f"sharding must be none where deepspeed is given, got {run.sharding};"
            " DeepSpeed's file says how it shards"
        )


def _check_places(run: "TrainConfig") -> None:
    if run.push_to_hub is not None and not _REPOSITORY.fullmatch(run.push_to_hub):
        raise ValueError(
            f"push_to_hub must be ORG/NAME, got {run.push_to_hub!r}; letters,"
            " digits and _.- may stand in both"
        )
    if "://" in (run.checkpoints or run.output):
        raise ValueError(
            "checkpoints must name a folder on a local or mounted disk, as they"
            " are written, flushed and renamed file by file while the model"
            f" trains, got checkpoints {run.checkpoints!r} and output"
            f" {run.output!r}; give --checkpoints=FOLDER, on a disk that outlives"
            " the machine if the run should"
        )


def _check_idle(run: "TrainConfig") -> None:
    """Refuses settings that would do nothing beside the others."""
    defaults = {field.name: field.default for field in dataclasses.fields(run)}
    for idle in _IDLE:
        for name in idle.names:
            value, default = getattr(run, name), defaults[name]
            if value != default and idle.when(run):
                raise ValueError(
                    f"{name} must be {_spelt(default)} where {idle.why}, got"
                    f" {_spelt(value)}; {idle.cure}"
                )


def _spelt(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "left out"
    return str(value)


def _require(holds: bool, name: str, law: str, run: "TrainConfig") -> None:
    if not holds:
        raise ValueError(f"{name} must be {law}, got {getattr(run, name)!r}")
