"""Settings of the trainer."""

import dataclasses
from typing import Literal

from schemas.settings import setting
from train import limits


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
        help="use Triton's kernels; needs CUDA, and Triton installed",
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
    clip: float = setting(1.0, help="largest norm of the gradient; 0: any")
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
        """Refuses values out of range, and what would do nothing.

        Raises:
          ValueError: naming the setting, what it must be and what came.
        """
        limits.check(self)

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders of `data`."""
        return (self.data,) if isinstance(self.data, str) else self.data
