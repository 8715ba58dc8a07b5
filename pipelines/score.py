"""fusebeam score: one model's top-k distributions over every window."""

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pipelines import adaptive, guards, hints, launch, stage, ways
from schemas import files, manifest, plan, scores, settings, windows
from schemas.manifest import Manifest
from schemas.settings import setting
from transforms import adapters, score, scorer, tokenizer
from transforms.functional import nucleus, rounding
from transforms.loading import Loading
from transforms.scorer import ScorerSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Settings of `fusebeam score`."""

    windows: str = setting(help="windows folder to score", shapes_output=False)
    model: str = setting(
        help="the model: a local folder, a .gguf file or a hub id; or a LoRA adapter,"
        " which names its base",
        shapes_output=False,
    )
    output: str = setting(help="scores folder to write", shapes_output=False)
    tokenizer: str | None = setting(
        None,
        help="its tokenizer, where it is not the model's own",
        shapes_output=False,
    )
    top_k: int = setting(10, help="entries kept for each position")
    top_p: float | None = adaptive.top_p()
    min_k: int = adaptive.min_k()
    tail_samples: int = setting(
        0,
        help="ids drawn for each position, by probability, from what is not kept: an"
        " unbiased tail",
        omit_default=True,
    )
    kernels: bool = setting(
        True,
        help="on CUDA, take top-k and log-sum-exp by Triton's kernels, where it is"
        " installed and they pass a trial; last bits depend on it",
        omit_default=True,
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto",
        help="number format of weights; auto: bfloat16 where it is fast, as the"
        " machine that starts the command finds",
    )
    device: str = setting(
        "auto",
        help="cpu, cuda or cuda:N, on the workers; auto: CUDA where the machine that"
        " starts the command has one",
    )
    batch_tokens: int = setting(4096, help="tokens of one forward pass; bounds memory")
    compile: bool = setting(
        False,
        help="have torch compile the model: minutes at the start, for a GPU that small"
        " kernels keep waiting",
        omit_default=True,
    )
    adapter: str | None = setting(
        None,
        help="a LoRA adapter, folder or hub id, to merge into the model",
        shapes_output=False,
    )
    quantization: Literal["none", "int8", "int4", "fp8"] = setting(
        "none",
        help="how weights are quantized as they are loaded; int8 and int4 by"
        " bitsandbytes, fp8 on GPUs that have it",
        omit_default=True,
    )
    device_map: Literal["none", "auto", "balanced", "balanced_low_0", "sequential"] = (
        setting(
            "none",
            help="lay one model over all GPUs that the process sees, the host's memory"
            " and the disk, as accelerate does",
            omit_default=True,
        )
    )
    max_memory: tuple[str, ...] = setting(
        (),
        help="SHARE=SIZE that device_map may fill, of a GPU's number or cpu: 0=40GiB;"
        " left out: all there is",
        omit_default=True,
    )
    backend: Literal["transformers", "vllm"] = setting(
        "transformers",
        help="what runs the model; vllm gives no log-sum-exp and draws no tail",
        omit_default=True,
    )
    pad: bool = setting(
        False,
        help="pad windows to one length, even where the model takes them end to end",
        omit_default=True,
    )
    threads: int | None = setting(
        None, help="threads of the CPU's arithmetic; left out: what torch takes"
    )
    max_reject_fraction: float = setting(
        0.0,
        help="share of a slice's windows that may fail, in [0, 1]",
        shapes_output=False,
    )
    keep_malloc: bool = setting(
        False, help="leave the allocator of glibc as it is", shapes_output=False
    )
    share_device: bool = setting(
        False,
        help="let other processes have models on the same GPU; else each process takes"
        " a GPU of its own",
        shapes_output=False,
    )
    worker_hints: tuple[str, ...] = setting(
        (),
        help="NAME=VALUE for what a worker needs to score, where the runner heeds it:"
        " accelerator, min_ram, cpu_count, max_active_bundles_per_worker",
        shapes_output=False,
    )
    slices: str | None = setting(
        None,
        help="do only slices A-B, both included, counted from 0, without a runner",
        shapes_output=False,
    )
    stall_timeout: float = guards.stall_timeout()
    max_slice_attempts: int = guards.max_slice_attempts()
    element_timeout: float | None = guards.element_timeout()
    overwrite: bool = setting(
        False, help="write anew what other settings have written", shapes_output=False
    )

    def __post_init__(self) -> None:
        """Checks what can be checked without reading a file."""
        if self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        nucleus.of(self.top_p, self.min_k, k=self.top_k)
        if self.tail_samples < 0:
            raise ValueError(
                f"tail_samples must be at least 0, got {self.tail_samples}"
            )
        if self.batch_tokens < 1:
            raise ValueError(f"batch_tokens must be positive, got {self.batch_tokens}")
        if not 0 <= self.max_reject_fraction <= 1:
            raise ValueError(
                f"max_reject_fraction must be in [0, 1], got {self.max_reject_fraction}"
            )
        hints.parse(self.worker_hints)
        guards.of(self)
        _ = self.scorer  # which checks what it is made of

    @property
    def scorer(self) -> ScorerSettings:
        """The settings of the scorer itself."""
        return ScorerSettings(
            model=self.model,
            tokenizer=self.tokenizer,
            top_k=self.top_k,
            top_p=self.top_p,
            min_k=self.min_k,
            tail_samples=self.tail_samples,
            kernels=self.kernels,
            dtype=self.dtype,
            device=self.device,
            batch_tokens=self.batch_tokens,
            threads=self.threads,
            tune_allocator=not self.keep_malloc,
            share_device=self.share_device,
            backend=self.backend,
            loading=Loading(
                adapter=self.adapter,
                quantization=self.quantization,
                device_map=self.device_map,
                max_memory=self.max_memory,
            ),
            compile=self.compile,
            pad=self.pad,
        )


def inputs_of(config: ScoreConfig) -> dict[str, Any]:
    """Returns the fingerprints of what the scores are made from."""
    return {
        "windows": manifest.read(config.windows, windows.STAGE).fingerprint,
        "model": scorer.fingerprint_of(config.scorer),
        "tokenizer": tokenizer.load(config.tokenizer or config.model).fingerprint,
    }


def shaping(config: ScoreConfig) -> dict[str, Any]:
    """Returns the settings that shape the scores, what is automatic made definite.

    How numbers are rounded is among them, so that slices of before, and of a version
    that does it in another way, are not gone on with.
    """
    found = scorer.resolved_for_workers(config.scorer)
    if found["device"] != "cuda" or config.tail_samples:
        config = dataclasses.replace(config, kernels=True)  # which changes no byte
    return {**settings.shaping(config), **found, "rounding": rounding.FORMAT}


def work_of(config: ScoreConfig, inputs: dict[str, Any]) -> score.ScoreSlices:
    """Returns what is to be done with each slice.

    What is automatic is settled here, where the command starts: workers must not each
    choose for themselves, as the fingerprint of the scores names one choice.
    """
    found = scorer.resolved_for_workers(config.scorer)
    settled = dataclasses.replace(
        scorer.pinned(config.scorer),
        dtype=found["dtype"],
        device=found["device"] if config.device == "auto" else config.device,
        threads=found["threads"],
    )
    return score.ScoreSlices(
        windows=config.windows,
        output=config.output,
        settings=settled,
        model=inputs["model"],
        tokenizer=inputs["tokenizer"],
        identity=stage.identity(scores.STAGE, shaping(config), inputs),
        max_reject_fraction=config.max_reject_fraction,
        overwrite=config.overwrite,
    )


def score_windows(
    config: ScoreConfig, runner_flags: Sequence[str] = ()
) -> Manifest | None:
    """Scores a windows folder, and describes the scores once all slices are there.

    Returns:
      The manifest, or None where slices outside `config.slices` are missing, or
      nobody awaits the job.
    """
    launch.check(config.output, runner_flags, config.slices)
    inputs = inputs_of(config)
    shaped = shaping(config)
    if stage.whole(
        config.output,
        scores.STAGE,
        shaped,
        inputs,
        overwrite=config.overwrite,
        dry=launch.is_dry(runner_flags),
    ):
        return manifest.read(config.output, scores.STAGE)
    base = adapters.split(config.model, config.adapter).model
    describe = functools.partial(_describe, config, inputs, shaped, base)
    read = (config.model, base, config.tokenizer, config.adapter)
    whole = stage.do_slices(
        f"score {files.name_of(config.output)}",
        work_of(config, inputs),
        config.windows,
        config.slices,
        runner_flags,
        describe=describe,
        reads=tuple(dict.fromkeys(filter(None, read))),
        hints=hints.parse(config.worker_hints),
        guards=guards.of(config),
    )
    score.unload()
    return describe() if whole else None


def _describe(
    config: ScoreConfig,
    inputs: Mapping[str, Any],
    shaped: Mapping[str, Any],
    base: str,
) -> Manifest:
    """Writes the manifest of scores that are all there.

    Args:
      config: the settings.
      inputs: fingerprints of what the scores are made from.
      shaped: the settings that shape them.
      base: the model, or what it is an adapter of.
    """
    return stage.finish(
        config.output,
        scores.STAGE,
        settings=shaped,
        inputs=inputs,
        origins={
            "windows": config.windows,
            "model": config.model,
            "tokenizer": config.tokenizer or config.model,
            **({"adapter": config.adapter} if config.adapter else {}),
            **({"base": base} if base != config.model else {}),
        },
        names=[piece.output for piece in plan.read(config.windows)],
        count=lambda footers: {
            **stage.total(footers, "windows", "failed", "tokens"),
            **ways.count(footers),
        },
    )


def remarks(folder: str, made: Manifest) -> list[str]:
    """Says what is to be known of scores besides their counts."""
    return [*manifest.losses(folder, made), *ways.mixed(folder, made)]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    config, runner_flags = launch.parse(
        ScoreConfig,
        sys.argv[1:] if argv is None else argv,
        prog="fusebeam score",
        description=__doc__ or "",
    )
    made = score_windows(config, runner_flags)
    if made is None:
        print(stage.unfinished(config.slices, runner_flags))
    else:
        counts = made.counts
        print(
            f"{config.output}: {counts['windows']:,} windows, {counts['tokens']:,}"
            f" tokens, {counts['failed']:,} failed"
        )
        for line in remarks(config.output, made):
            print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
