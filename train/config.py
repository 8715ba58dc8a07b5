"""Settings of the trainer."""

import dataclasses
from typing import Literal

from schemas.settings import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of one training run; every field is a flag and a recipe key."""

    data: str = setting(help="fused folder to train on", shapes_output=False)
    model: str = setting(
        help="target model: folder, or id on the Hugging Face hub", shapes_output=False
    )
    output: str = setting(
        help="folder that the trained model is written to", shapes_output=False
    )

    clm_weight: float = setting(
        0.9, help="share of the CLM loss, in [0, 1]; 1 = no fusion"
    )
    clm_schedule: Literal["constant", "linear"] = setting(
        "constant", help="how the share goes on: as it is, or rising to 1 at the end"
    )
    fusion_loss: Literal["ce", "kl"] = setting(
        "ce", help="cross-entropy or Kullback-Leibler divergence to the fused rows"
    )
    tail: Literal["bucket", "renormalise"] = setting(
        "bucket",
        help="one bucket for the mass outside the kept entries, or rows renormalized"
        " over them as FuseLLM does",
    )
    label_smoothing: float = setting(
        0.0, help="share of the CLM target spread over the vocabulary, in [0, 1)"
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
        help="optimizer steps between lines of metrics.jsonl; the last has one always",
        shapes_output=False,
    )
    report_to: tuple[str, ...] = setting(
        (), help="trackers that transformers knows, as tensorboard", shapes_output=False
    )
    readers: int = setting(
        0, help="processes that read data; 0 = the trainer's own", shapes_output=False
    )
    keep_malloc: bool = setting(
        False, help="leave the allocator of glibc as it is", shapes_output=False
    )
    overwrite: bool = setting(
        False, help="replace an output of other settings", shapes_output=False
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
        for name in ("clm_weight", "warmup_ratio"):
            _require(0 <= getattr(self, name) <= 1, name, "in [0, 1]", self)
        for name in ("label_smoothing", "beta1", "beta2"):
            _require(0 <= getattr(self, name) < 1, name, "in [0, 1)", self)
        for name in ("learning_rate", "epochs"):
            _require(getattr(self, name) > 0, name, "above 0", self)
        for name in ("batch_size", "accumulation", "save_steps", "logging_steps"):
            _require(getattr(self, name) >= 1, name, "at least 1", self)
        for name in ("readers", "weight_decay", "seed"):
            _require(getattr(self, name) >= 0, name, "at least 0", self)
        for name in ("max_steps", "threads", "clip"):
            value = getattr(self, name)
            _require(value is None or value > 0, name, "above 0, or left out", self)
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


def _require(holds: bool, name: str, law: str, config: TrainConfig) -> None:
    if not holds:
        raise ValueError(f"{name} must be {law}, got {getattr(config, name)!r}")
