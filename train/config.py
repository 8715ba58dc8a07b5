"""Settings of the trainer."""

import dataclasses
import math
import re
from typing import Literal

from schemas.settings import setting

_REPOSITORY = re.compile(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+")

_TEMPERATURES = ("teacher_temperature", "target_temperature", "chunk_temperature")

_REFERENCE: dict[str, tuple[str | float, ...]] = {
    "tail": ("renormalise",),
    "fusion_loss": ("ce", "kl"),
    "label_smoothing": (0.0,),
    "target_temperature": (1.0,),
    "chunk_share": (0.0,),
    "position_weights": ("equal",),
}
"""What settings of the objective may be under `reference`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of one training run; every field is a flag and a recipe key."""

    data: tuple[str, ...] | str = setting(
        help="fused folder to train on, or several", shapes_output=False
    )
    model: str = setting(
        help="target model: folder, or id on the Hugging Face hub", shapes_output=False
    )
    output: str = setting(
        help="folder that the trained model is written to", shapes_output=False
    )

    clm_weight: float = setting(
        0.9, help="share of the CLM loss, in [0, 1]; 1 = no fusion"
    )
    clm_schedule: Literal["constant", "linear", "cosine"] = setting(
        "constant",
        help="how the share goes on: as it is, or rising towards 1, which it would"
        " reach after the last step, evenly or along half a cosine",
    )
    fusion_loss: Literal["ce", "kl", "reverse_kl", "jsd", "tv", "chunks"] = setting(
        "ce",
        help="cross-entropy or Kullback-Leibler divergence to the fused rows, that"
        " divergence the other way, Jensen-Shannon, total variation; or the likelihood"
        " of chunks alone",
    )
    tail: Literal["bucket", "renormalise"] = setting(
        "bucket",
        help="one bucket for the mass outside the kept entries, or rows renormalized"
        " over them as FuseLLM does",
    )
    label_smoothing: float = setting(
        0.0, help="share of the CLM target spread over the vocabulary, in [0, 1)"
    )
    teacher_temperature: float = setting(
        1.0,
        help="temperature of the fused rows, above 0; not 1 only where tail is"
        " renormalise",
        omit_default=True,
    )
    target_temperature: float = setting(
        1.0,
        help="temperature of the target where it is compared with fused rows, above 0",
        omit_default=True,
    )
    chunk_share: float = setting(
        0.0,
        help="share of the fusion loss that the likelihood of chunks has beside fused"
        " rows, in [0, 1)",
        omit_default=True,
    )
    chunk_temperature: float = setting(
        100.0,
        help="nats of a chunk are divided by this before they are compared, above 0",
        omit_default=True,
    )
    position_weights: Literal["equal", "confidence", "kept"] = setting(
        "equal",
        help="what a position's fusion loss weighs: 1, the probability of the fused"
        " row's likeliest entry, or the mass that it keeps",
        omit_default=True,
    )
    attend_across: bool = setting(
        False,
        help="let the documents of a packed row attend to those before them",
        omit_default=True,
    )
    reference: Literal["fusellm", "fusechat"] | None = setting(
        None,
        help="minimize the objective of FuseLLM's or FuseChat's code, its rounding and"
        " masks included; needs tail = renormalise",
        omit_default=True,
    )
    kernels: bool = setting(
        False,  # until they have run on a GPU
        help="use Triton's kernels on CUDA, where Triton is installed",
        omit_default=True,
    )

    learning_rate: float = setting(1e-5, help="highest learning rate")
    schedule: Literal["cosine", "linear", "constant"] = setting(
        "cosine", help="how the learning rate goes on after the warm-up"
    )
    warmup_ratio: float = setting(
        0.01, help="share of the steps in which the learning rate rises, in [0, 1]"
    )
    epochs: float = setting(1.0, help="passes over the data")
    max_steps: int | None = setting(
        None, help="optimizer steps; given, it takes the place of --epochs"
    )
    batch_size: int = setting(
        16, help="packed rows of one optimizer step, over all processes"
    )
    accumulation: int = setting(
        1, help="parts that a step's rows are processed in, one after another"
    )
    weight_decay: float = setting(0.1, help="weight decay of AdamW")
    beta1: float = setting(0.9, help="decay of AdamW's first moment, in [0, 1)")
    beta2: float = setting(0.95, help="decay of AdamW's second moment, in [0, 1)")
    clip: float | None = setting(1.0, help="largest norm of the gradient")
    seed: int = setting(42, help="of the order of the data and of dropout")
    gradient_checkpointing: bool = setting(
        False, help="compute activations twice rather than keep them"
    )

    dtype: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", help="of the arithmetic; weights are kept in float32 while they train"
    )
    device: Literal["auto", "cpu", "cuda"] = setting("auto", help="where to train")
    threads: int | None = setting(
        None, help="CPU threads; they shape the last bits (default: torch's choice)"
    )

    # Many processes, little memory: see docs/running.md, Training.
    sharding: Literal["none", "fsdp"] = setting(
        "none",
        help="what each process holds of weights, gradients and optimizer states: all,"
        " or its part (PyTorch's FSDP2; start with torchrun)",
        shapes_output=False,
    )
    deepspeed: str | None = setting(
        None,
        help="DeepSpeed's settings, a JSON file as deploy/train/zero2.json",
        shapes_output=False,
    )
    checkpoint_form: Literal["full", "sharded"] = setting(
        "full",
        help="weights and states in one place, or each process's part in a file of its"
        " own",
        shapes_output=False,
    )
    activation_offload: bool = setting(
        False,
        help="keep activations in the host's memory until the backward pass",
        shapes_output=False,
    )
    lora_rank: int | None = setting(
        None,
        help="rank of low-rank adapters; given, they alone are trained",
        omit_default=True,
    )
    lora_alpha: float = setting(
        16.0, help="adapters are scaled by it over their rank", omit_default=True
    )
    lora_dropout: float = setting(
        0.0, help="dropout before the adapters, in [0, 1)", omit_default=True
    )
    lora_targets: tuple[str, ...] = setting(
        (),
        help="ends of the names of what gets adapters (default: all linear layers but"
        " the head)",
        omit_default=True,
    )
    quantise: Literal["none", "4bit", "8bit"] = setting(
        "none",
        help="how the frozen weights under adapters are kept: 4bit is QLoRA's NF4",
        omit_default=True,
    )
    keep_adapter: bool = setting(
        False,
        help="write the adapters, too, as `adapter` in the output, beside the model"
        " that they are merged into",
        omit_default=True,
    )

    save_steps: int = setting(
        500, help="optimizer steps between checkpoints", shapes_output=False
    )
    checkpoints: str | None = setting(
        None,
        help="local folder for checkpoints while training (default: OUTPUT.partial); "
        "must be given where the output is in a bucket",
        shapes_output=False,
    )
    logging_steps: int = setting(
        10,
        help="optimizer steps between lines of metrics.jsonl; the last, checkpoints and"
        " evaluations have one always",
        shapes_output=False,
    )
    report_to: tuple[str, ...] = setting(
        (),
        help="trackers that transformers knows, as tensorboard and wandb",
        shapes_output=False,
    )
    readers: int = setting(
        0, help="processes that read data; 0 = the trainer's own", shapes_output=False
    )
    # How data is read.
    data_weights: tuple[float, ...] = setting(
        (),
        help="share of the rows that comes from each folder of --data, in any unit"
        " (default: each as many as it has)",
        omit_default=True,
    )
    bad_rows: Literal["error", "skip"] = setting(
        "error",
        help="what a row that cannot be read is: the end, or left out and counted",
        omit_default=True,
    )
    max_bad_fraction: float = setting(
        0.001,
        help="share of the rows of the whole training that may be left out before it"
        " is an error all the same, in [0, 1]",
        shapes_output=False,
    )
    read_ahead: int = setting(
        16,
        help="row groups (64 rows) read ahead of each folder, beside the 64 that rows"
        " are drawn from, by each process that reads; 0 = none",
        shapes_output=False,
    )

    keep_malloc: bool = setting(
        False, help="leave the allocator of glibc as it is", shapes_output=False
    )
    overwrite: bool = setting(
        False, help="replace an output of other settings", shapes_output=False
    )

    # What is watched while it trains, and what follows from it.
    eval_data: str | None = setting(
        None,
        help="windows folder of text that is not trained on: bits per byte are measured"
        " before the first step, every --eval_steps and after the last",
        shapes_output=False,
    )
    eval_steps: int | None = setting(
        None,
        help="optimizer steps between evaluations (default: none between)",
        shapes_output=False,
    )
    patience: int | None = setting(
        None,
        help="end the training after so many evaluations in a row without progress",
        omit_default=True,
    )
    min_delta: float = setting(
        0.0, help="bits per byte that count as progress", omit_default=True
    )
    keep_best: bool = setting(
        False,
        help="publish the weights of the evaluation with the fewest bits per byte, not"
        " the last ones; keeps one checkpoint more",
        omit_default=True,
    )
    peak_tflops: float | None = setting(
        None,
        help="10^12 operations a second of one device at its best, which MFU is the"
        " share of (default: what a large product reaches at the start)",
        shapes_output=False,
    )

    # Where the model goes beside its folder.
    push_to_hub: str | None = setting(
        None,
        help="ORG/NAME on the Hugging Face hub that the finished model is sent to;"
        " a repository that is made is private",
        shapes_output=False,
    )
    hub_public: bool = setting(
        False,
        help="let everybody read what is sent to the hub",
        shapes_output=False,
    )

    def __post_init__(self) -> None:
        """Refuses values out of range.

        Raises:
          ValueError: naming the setting, its range and what came.
        """
        if self.model.endswith(".gguf"):
            raise ValueError(
                f"model must have weights that can be trained, got {self.model}; load"
                " it with transformers and save it with save_pretrained"
            )
        self._check_data()
        for name in ("clm_weight", "warmup_ratio", "max_bad_fraction"):
            _require(0 <= getattr(self, name) <= 1, name, "in [0, 1]", self)
        for name in ("label_smoothing", "chunk_share", "beta1", "beta2"):
            _require(0 <= getattr(self, name) < 1, name, "in [0, 1)", self)
        for name in ("learning_rate", "epochs", *_TEMPERATURES):
            _require(getattr(self, name) > 0, name, "above 0", self)
        self._check_objective()
        for name in ("batch_size", "accumulation", "save_steps", "logging_steps"):
            _require(getattr(self, name) >= 1, name, "at least 1", self)
        for name in ("readers", "read_ahead", "weight_decay", "seed"):
            _require(getattr(self, name) >= 0, name, "at least 0", self)
        for name in ("max_steps", "threads", "clip", "peak_tflops"):
            value = getattr(self, name)
            _require(value is None or value > 0, name, "above 0, or left out", self)
        self._check_evaluations()
        if self.push_to_hub is not None and not _REPOSITORY.fullmatch(self.push_to_hub):
            raise ValueError(
                f"push_to_hub must be ORG/NAME, got {self.push_to_hub!r}; letters,"
                " digits and _.- may stand in both"
            )
        self._check_scale()
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size must be a multiple of accumulation, got {self.batch_size}"
                f" and {self.accumulation}"
            )
        if "://" in (self.checkpoints or self.output):
            raise ValueError(
                "checkpoints must name a folder on a local or mounted disk, as they"
                " are written, flushed and renamed file by file while the model"
                f" trains, got checkpoints {self.checkpoints!r} and output"
                f" {self.output!r}; give --checkpoints=FOLDER, on a disk that outlives"
                " the machine if the run should"
            )

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders of `data`."""
        return (self.data,) if isinstance(self.data, str) else self.data

    def _check_data(self) -> None:
        if not self.folders:
            raise ValueError("data must name a fused folder, got none")
        weights = self.data_weights
        if weights and len(weights) != len(self.folders):
            raise ValueError(
                f"data_weights must be one for each of the {len(self.folders)} folders"
                f" of data, or be left out, got {len(weights)}"
            )
        if not all(0 < weight < math.inf for weight in weights):
            raise ValueError(
                f"data_weights must be above 0, and finite, got {list(weights)}; leave"
                " out what has no share"
            )

    def _check_evaluations(self) -> None:
        _require(self.min_delta >= 0, "min_delta", "at least 0", self)
        for name in ("eval_steps", "patience"):
            value = getattr(self, name)
            _require(value is None or value > 0, name, "above 0, or left out", self)
        chooses = self.keep_best or self.patience is not None
        for given, needs in (
            (chooses or self.min_delta, "eval_steps"),
            (chooses or self.eval_steps, "eval_data"),
        ):
            if given and getattr(self, needs) is None:
                raise ValueError(
                    f"{needs} must be given where eval_steps, patience, min_delta or"
                    " keep_best is, as they are about evaluations while it trains, got"
                    " none; pass --eval_data, a windows folder, and --eval_steps"
                )

    def _check_objective(self) -> None:
        """Refuses parts of the objective that do not go together.

        Raises:
          ValueError: naming the setting, what it needs and what came.
        """
        bare = self.fusion_loss != "chunks"
        _require(
            bare or not self.chunk_share, "chunk_share", "0 for chunks alone", self
        )
        if self.tail == "bucket" and self.teacher_temperature != 1:
            raise ValueError(
                "teacher_temperature must be 1 where tail is bucket, got"
                f" {self.teacher_temperature}: the mass that a fused row does not keep"
                " cannot be tempered without the logits behind it; give"
                " --tail=renormalise"
            )
        if self.reference is None:
            return
        for name, allowed in _REFERENCE.items():
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(
                    f"{name} must be {' or '.join(map(str, allowed))} where reference"
                    f" is {self.reference}, as in the authors' code, got {value!r}"
                )

    def _check_scale(self) -> None:
        """Refuses what does not go together of sharding and adapters."""
        _require(0 <= self.lora_dropout < 1, "lora_dropout", "in [0, 1)", self)
        _require(self.lora_alpha > 0, "lora_alpha", "above 0", self)
        rank = self.lora_rank
        _require(rank is None or rank > 0, "lora_rank", "above 0, or left out", self)
        if rank is None and (self.quantise != "none" or self.keep_adapter):
            name = "keep_adapter" if self.quantise == "none" else "quantise"
            raise ValueError(
                f"{name} must come with adapters, and lora_rank is not given; give"
                " --lora_rank=16, or leave it out"
            )
        if self.deepspeed is not None and self.sharding != "none":
            raise ValueError(
                f"sharding must be none where deepspeed is given, got {self.sharding};"
                " DeepSpeed's file says how it shards"
            )
        if self.deepspeed is not None and self.keep_best:
            raise ValueError(
                "keep_best must be left out where deepspeed is given: an earlier"
                " checkpoint of DeepSpeed's form is not gone back to; give"
                " --sharding=fsdp instead of --deepspeed"
            )
        if self.deepspeed is not None and self.eval_data is not None:
            raise ValueError(
                "eval_data must be left out where deepspeed is given, whose engine is"
                " not asked for logits; evaluate the model afterwards by fusebeam"
                " evaluate, or give --sharding=fsdp instead of --deepspeed"
            )


def _require(holds: bool, name: str, law: str, config: TrainConfig) -> None:
    if not holds:
        raise ValueError(f"{name} must be {law}, got {getattr(config, name)!r}")
