"""fusebeam fuse: align the scores of several models and fuse them into shards."""

import dataclasses
import re
import sys
from collections.abc import Sequence
from typing import Any, Literal

from pipelines import launch, stage
from schemas import files, fused, manifest, plan, scores, settings, windows
from schemas.errors import SchemaError
from schemas.manifest import Manifest
from schemas.settings import setting
from transforms import fuse, tokenizer
from transforms.functional import codec, vocabulary
from transforms.fuse import FuseSlices, Mixing, Source
from transforms.tokenizer import Tokenizer

_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FuseConfig:
    """Settings of `fusebeam fuse`."""

    windows: str = setting(help="windows folder that was scored", shapes_output=False)
    target: str = setting(help="scores folder of the target", shapes_output=False)
    sources: tuple[str, ...] = setting(
        help="NAME=FOLDER for each source: its name and its scores folder",
        shapes_output=False,
    )
    output: str = setting(help="fused folder to write", shapes_output=False)
    strategy: Literal["spans"] = setting(
        "spans", help="how tokens are aligned: by byte spans"
    )
    fusion: Literal["mince", "avgce"] = setting(
        "mince", help="mince: the cheapest source; avgce: softmax(-cost / temperature)"
    )
    granularity: Literal["window", "position"] = setting(
        "window", help="what a source's cost is measured over"
    )
    temperature: float = setting(
        1.0, help="of avgce, in bits per byte; 0 is mince, inf the plain mean"
    )
    include_target: bool = setting(
        True, help="let the target's own distributions be a candidate"
    )
    top_k: int = setting(10, help="entries kept for each position")
    tail_samples: int = setting(
        0,
        help="entries drawn for each position, by probability, from what is not kept;"
        " 0: it is all tail",
        omit_default=True,
    )
    seq_length: int = setting(2048, help="tokens of a training row at most")
    slices: str | None = setting(
        None,
        help="do only slices A-B, both included, counted from 0, without a runner",
        shapes_output=False,
    )
    overwrite: bool = setting(
        False, help="write anew what other settings have written", shapes_output=False
    )

    def __post_init__(self) -> None:
        """Checks what can be checked without reading a file."""
        if not 1 <= self.top_k <= codec.MAX_K:
            raise ValueError(f"top_k must be in [1, {codec.MAX_K}], got {self.top_k}")
        if not 0 <= self.tail_samples <= codec.MAX_K - self.top_k:
            raise ValueError(
                f"tail_samples must be in [0, {codec.MAX_K} - top_k], got"
                f" {self.tail_samples} with top_k = {self.top_k}"
            )
        if self.seq_length < 1:
            raise ValueError(f"seq_length must be positive, got {self.seq_length}")
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be 0 or more, got {self.temperature}")
        if not self.sources and not self.include_target:
            raise ValueError("sources must name at least one source")
        self.named_sources()

    def named_sources(self) -> dict[str, str]:
        """Returns the scores folder of each source by name, the target's last."""
        named: dict[str, str] = {}
        for entry in self.sources:
            name, equals, folder = entry.partition("=")
            if not (equals and folder and _NAME.fullmatch(name)) or name in named:
                raise ValueError(
                    f"sources must be NAME=FOLDER, each name once, got {entry!r}"
                )
            named[name] = folder
        if self.include_target:
            if "target" in named:
                raise ValueError("no source may be called 'target': that is the target")
            named["target"] = self.target
        return named


def inputs_of(config: FuseConfig) -> dict[str, Any]:
    """Returns the fingerprints of the windows and of all scores.

    Raises:
      SchemaError: if scores are of other windows.
    """
    found = {"windows": manifest.read(config.windows, windows.STAGE).fingerprint}
    for name, folder in {"target": config.target, **config.named_sources()}.items():
        scored = manifest.read(folder, scores.STAGE)
        if scored.inputs["windows"] != found["windows"]:
            raise SchemaError(
                f"the scores in {folder} must be of the windows in {config.windows},"
                " but are of others; score these windows"
            )
        found[f"scores:{name}"] = scored.fingerprint
    return found


def tokenizer_of(folder: str) -> Tokenizer:
    """Loads the tokenizer that scores were made with.

    Raises:
      SchemaError: if what is there now is another tokenizer.
    """
    scored = manifest.read(folder, scores.STAGE)
    found = tokenizer.load(scored.origins["tokenizer"])
    if found.fingerprint != scored.inputs["tokenizer"]:
        raise SchemaError(
            f"the scores in {folder} were made with another tokenizer than the one now"
            f" at {scored.origins['tokenizer']}; put it back, or score again"
        )
    return found


def shaping(config: FuseConfig) -> dict[str, Any]:
    """Returns the settings that shape the rows, the candidates' names among them."""
    target = manifest.read(config.target, scores.STAGE)
    return {
        **settings.shaping(config),
        "sources": list(config.named_sources()),
        "target_tokenizer": target.inputs["tokenizer"],
    }


def work_of(config: FuseConfig, inputs: dict[str, Any]) -> FuseSlices:
    """Builds the vocabulary maps, and returns what is to be done with each slice."""
    target = tokenizer_of(config.target)
    sources = []
    # The target's map onto itself tells what its tokens spell.
    for name, folder in {**config.named_sources(), "target": config.target}.items():
        own = tokenizer_of(folder)
        with files.publish(
            files.join(config.output, fuse.MAPS, f"{name}.parquet")
        ) as sink:
            vocabulary.save_map(vocabulary.build_map(own, target), sink)
        if name in config.named_sources():
            sources.append(_source(name, folder, own))
    return FuseSlices(
        windows=config.windows,
        target=_source("target", config.target, target),
        sources=tuple(sources),
        output=config.output,
        mixing=Mixing(
            fusion=config.fusion,
            granularity=config.granularity,
            temperature=config.temperature,
            top_k=config.top_k,
            tail_samples=config.tail_samples,
        ),
        seq_length=config.seq_length,
        vocabulary_size=target.size,
        identity=stage.identity(fused.STAGE, shaping(config), inputs),
        overwrite=config.overwrite,
    )


def _source(name: str, folder: str, own: Tokenizer) -> Source:
    return Source(
        name=name, scores=folder, tokenizer=own.fingerprint, eos_id=own.eos_id
    )


def fuse_scores(
    config: FuseConfig, runner_flags: Sequence[str] = ()
) -> Manifest | None:
    """Fuses scores into shards, and describes them once all slices are there.

    Returns:
      The manifest, or None where slices outside `config.slices` are missing.
    """
    inputs = inputs_of(config)
    shaped = shaping(config)
    if stage.whole(
        config.output, fused.STAGE, shaped, inputs, overwrite=config.overwrite
    ):
        return manifest.read(config.output, fused.STAGE)
    work = work_of(config, inputs)
    whole = stage.do_slices("fuse", work, config.windows, config.slices, runner_flags)
    if not whole:
        return None
    return stage.finish(
        config.output,
        fused.STAGE,
        settings=shaped,
        inputs=inputs,
        origins={
            "windows": config.windows,
            "target": config.target,
            "sources": list(config.sources),
            "models": {
                name: manifest.read(folder, scores.STAGE).origins["model"]
                for name, folder in config.named_sources().items()
            },
        },
        names=[piece.output for piece in plan.read(config.windows)],
        overwrite=config.overwrite,
        count=lambda footers: {
            **stage.total(
                footers, "windows", "failed", "tokens", "positions", "covered"
            ),
            **fuse.taught_by(footers),
        },
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    config, runner_flags = launch.parse(
        FuseConfig,
        sys.argv[1:] if argv is None else argv,
        prog="fusebeam fuse",
        description=__doc__ or "",
    )
    made = fuse_scores(config, runner_flags)
    if made is None:
        print(f"slices {config.slices} done; others are missing, so no manifest yet")
    else:
        counts = made.counts
        print(
            f"{config.output}: {counts['windows']:,} windows, {counts['tokens']:,}"
            f" tokens, {counts['covered'] / max(1, counts['positions']):.1%} of"
            " positions covered"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
