"""fusebeam fuse: align the scores of several models and fuse them into shards."""

import dataclasses
import functools
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pipelines import adaptive, counting, guards, launch, maps, scored, stage, weights
from pipelines.counting import CountConfig
from pipelines.maps import Maps
from pipelines.weights import Weights
from schemas import files, fused, manifest, plan, scores, settings, windows
from schemas.errors import SchemaError
from schemas.manifest import Manifest
from schemas.settings import setting
from transforms import fuse, rows
from transforms.functional import codec, nucleus
from transforms.fuse import FuseSlices
from transforms.mixing import Mixing
from transforms.sources import Source
from transforms.tokenizer import Tokenizer

_TOTALS = ("windows", "failed", "tokens", "positions", "covered")
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
    strategy: Literal["spans", "exact", "mined", "statistics"] = setting(
        "spans",
        help="how tokens are aligned: by byte spans, or by dynamic time warping; that"
        " keeps pairs of equal strings (exact), and those that a vocabulary map pairs,"
        " by edit distance (mined) or by how often they meet (statistics)",
    )
    reference: bool = setting(
        False,
        help="align, weigh and break ties to the letter as FuseLLM and FuseChat do,"
        " their faults included; spans, which they have not, stay as they are",
    )
    fusion: Literal["mince", "avgce", "static"] = setting(
        "mince",
        help="mince: the cheapest source; avgce: softmax(-cost / temperature); static:"
        " by --weights",
    )
    granularity: Literal["window", "document", "position", "packed_row"] = setting(
        "window",
        help="what a source's cost is measured over; packed_row only with --reference",
    )
    temperature: float = setting(
        1.0, help="of avgce, in bits per byte; 0 is mince, inf the plain mean"
    )
    weights: tuple[str, ...] = setting(
        (), help="NAME=W for each candidate, of static; the target is called target"
    )
    domain_weights: tuple[str, ...] = setting(
        (), help="DOMAIN:NAME=W where a domain's weight differs from --weights"
    )
    include_target: bool = setting(
        True, help="let the target's own distributions be a candidate"
    )
    top_k: int = setting(10, help="entries kept for each position")
    top_p: float | None = adaptive.top_p()
    min_k: int = adaptive.min_k()
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
    maps_only: bool = setting(
        False,
        help="write the vocabulary maps, for statistics count the corpus, and do no"
        " slice: once, before many processes do --slices",
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
        if not 1 <= self.top_k <= codec.MAX_K:
            raise ValueError(f"top_k must be in [1, {codec.MAX_K}], got {self.top_k}")
        if nucleus.of(self.top_p, self.min_k, k=self.top_k) and self.tail_samples:
            raise ValueError(
                "top_p must be left out where tail_samples are drawn, which tell of the"
                f" tail all the same, got {self.top_p} and {self.tail_samples}"
            )
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
        if self.maps_only and self.slices is not None:
            raise ValueError("maps_only does no slice: slices must be left out with it")
        guards.of(self)
        self.named_sources()
        self._check_mixing()

    def _check_mixing(self) -> None:
        """Checks that what is said of the mixture fits together."""
        if self.fusion == "static":
            self.given_weights()
            idle = ["granularity", "temperature"]
            if self.strategy == "spans":  # the others align as the authors do by it
                idle.append("reference")
            for name in idle:
                if getattr(self, name) != getattr(FuseConfig, name):
                    raise ValueError(
                        f"{name} must be left out with fusion = static, which asks for"
                        f" no cost, got {getattr(self, name)!r}"
                    )
        elif self.weights or self.domain_weights:
            raise ValueError(
                "weights and domain_weights are for fusion = static, got fusion ="
                f" {self.fusion}; give --fusion=static, or leave them out"
            )
        if self.reference and self.granularity not in ("window", "packed_row"):
            raise ValueError(
                "granularity must be window or packed_row with --reference, as the"
                f" authors have no other, got {self.granularity}"
            )
        if self.granularity == "packed_row" and not self.reference:
            raise ValueError(
                "granularity = packed_row is the authors' own and needs --reference;"
                " document is what it stands for"
            )
        if self.reference and self.temperature != FuseConfig.temperature:
            raise ValueError(
                "temperature must be left out with --reference, as the authors have"
                f" none, got {self.temperature}"
            )

    def given_weights(self) -> Weights:
        """Returns the weights of fusion = static."""
        return weights.parse(
            self.weights, self.domain_weights, list(self.named_sources())
        )

    def named_sources(self) -> dict[str, str]:
        """Returns the scores folder of each candidate by name.

        They stand in the order of their names, so that the order in which sources are
        given changes no byte; with `reference` as given, behind the target.
        """
        named: dict[str, str] = {}
        for entry in self.sources:
            name, equals, folder = entry.partition("=")
            if not (equals and folder and _NAME.fullmatch(name)) or name in named:
                raise ValueError(
                    f"sources must be NAME=FOLDER, each name once, got {entry!r}"
                )
            named[name] = folder
        if "target" in named:
            raise ValueError("no source may be called 'target': that is the target")
        if self.include_target:
            named = {"target": self.target, **named}
        return named if self.reference else dict(sorted(named.items()))


def inputs_of(config: FuseConfig) -> dict[str, Any]:
    """Returns the fingerprints of the windows and of all scores.

    Raises:
      SchemaError: if scores are of other windows.
    """
    found = {"windows": manifest.read(config.windows, windows.STAGE).fingerprint}
    for name, folder in {"target": config.target, **config.named_sources()}.items():
        made = manifest.read(folder, scores.STAGE)
        if made.inputs["windows"] != found["windows"]:
            raise SchemaError(
                f"the scores in {folder} must be of the windows in {config.windows},"
                " but are of others; score these windows"
            )
        found[f"scores:{name}"] = made.fingerprint
    return found


def shaping(config: FuseConfig) -> dict[str, Any]:
    """Returns the settings that shape the rows.

    The candidates' names are among them, and the version of the frames: rows that were
    coded by another are not gone on with.
    """
    target = manifest.read(config.target, scores.STAGE)
    shaped = {
        **settings.shaping(config),
        "sources": list(config.named_sources()),
        "target_tokenizer": target.inputs["tokenizer"],
        "frames": codec.VERSION,
    }
    for name in ("weights", "domain_weights"):  # their order says nothing
        shaped[name] = sorted(shaped[name])
    return shaped


def tokenizers_of(config: FuseConfig) -> dict[str, Tokenizer]:
    """Loads the tokenizer of each candidate and of the target, by name."""
    places = {**config.named_sources(), "target": config.target}
    return {name: scored.tokenizer_of(place) for name, place in places.items()}


def work_of(
    config: FuseConfig, inputs: dict[str, Any], own: Mapping[str, Tokenizer]
) -> FuseSlices:
    """Returns what is done with each slice, by `inputs_of` and `tokenizers_of`."""
    counted = _counted(config, own)
    sources = {
        name: Source(
            name=name,
            scores=place,
            tokenizer=own[name].fingerprint,
            eos_id=own[name].eos_id,
            counts=counting.fingerprint_of(counted[name]) if name in counted else None,
        )
        for name, place in {**config.named_sources(), "target": config.target}.items()
    }
    return FuseSlices(
        windows=config.windows,
        target=sources["target"],
        sources=tuple(sources[name] for name in config.named_sources()),
        output=config.output,
        strategy=config.strategy,
        mixing=mixing_of(config),
        seq_length=config.seq_length,
        vocabulary_size=own["target"].size,
        identity=stage.identity(fused.STAGE, shaping(config), inputs),
        overwrite=config.overwrite,
    )


def write_maps(
    config: FuseConfig, own: Mapping[str, Tokenizer], runner_flags: Sequence[str] = ()
) -> None:
    """Writes what the work takes to know of vocabularies, unless it is there.

    Args:
      config: the settings.
      own: from `tokenizers_of`. The target's map onto itself tells what its tokens
        spell.
      runner_flags: Beam's, for the job that counts co-occurrences. In a dry run none
        is written: workers read them, and the job names only their folder.
    """
    made, counted = _maps(config, own), _counted(config, own)
    dry = launch.is_dry(runner_flags)
    for name, tokenizer in own.items():
        if name in counted:
            # Counts that are written anew lose their manifest first.
            there = dataclasses.replace(
                counted[name], overwrite=config.overwrite and not dry
            )
            maps.count(there, runner_flags, slices=config.slices)
        if not dry:
            made.write(name, tokenizer, counted.get(name))


def _maps(config: FuseConfig, own: Mapping[str, Tokenizer]) -> Maps:
    return Maps(
        folder=files.join(config.output, fuse.MAPS),
        target=own["target"],
        strategy=config.strategy,
        reference=config.reference,
        overwrite=config.overwrite,
    )


def _counted(
    config: FuseConfig, own: Mapping[str, Tokenizer]
) -> dict[str, CountConfig]:
    """Says what is counted of which source: none that has the target's own tokenizer.

    There every token stands beside itself, whatever the corpus.
    """
    if config.strategy != "statistics":
        return {}
    alike = own["target"].fingerprint
    return {
        name: CountConfig(
            source=place,
            target=config.target,
            output=files.join(config.output, fuse.MAPS, maps.COUNTS, name),
            reference=config.reference,
            overwrite=config.overwrite,
            guards=guards.of(config),
        )
        for name, place in config.named_sources().items()
        if own[name].fingerprint != alike
    }


def mixing_of(config: FuseConfig) -> Mixing:
    """Returns how the candidates become one, their weights in their order."""
    names = list(config.named_sources())
    static = config.given_weights() if config.fusion == "static" else None
    return Mixing(
        fusion=config.fusion,
        granularity=config.granularity,
        reference=config.reference,
        temperature=config.temperature,
        top_k=config.top_k,
        chosen=nucleus.of(config.top_p, config.min_k, k=config.top_k),
        tail_samples=config.tail_samples,
        shares=static.shares(names) if static else (),
        domain_shares=static.domain_shares(names) if static else {},
        target_first=config.include_target,
    )


def fuse_scores(
    config: FuseConfig, runner_flags: Sequence[str] = ()
) -> Manifest | None:
    """Fuses scores into shards, and describes them once all slices are there.

    Returns:
      The manifest, or None where slices outside `config.slices` are missing, maps
      alone were asked for, or nobody awaits the job.

    Raises:
      SchemaError: if maps or slices of other work are in the way and `config.overwrite`
        is off.
    """
    launch.check(config.output, runner_flags, config.slices)
    dry = launch.is_dry(runner_flags)
    inputs, shaped = inputs_of(config), shaping(config)
    if stage.whole(
        config.output, fused.STAGE, shaped, inputs, overwrite=config.overwrite, dry=dry
    ):
        return manifest.read(config.output, fused.STAGE)
    own = tokenizers_of(config)
    work = work_of(config, inputs, own)
    stage.refuse_others(work, config.windows)
    write_maps(config, own, runner_flags)
    if config.maps_only:
        return None
    describe = functools.partial(_describe, config, inputs, shaped)
    whole = stage.do_slices(
        "fuse",
        work,
        config.windows,
        config.slices,
        runner_flags,
        describe=describe,
        reads=(config.target, *config.named_sources().values()),
        guards=guards.of(config),
    )
    # Not part of the description: workers need not have the models' tokenizers.
    if whole or (launch.left_alone(runner_flags) and not dry):
        _maps(config, own).remove_others(own, _counted(config, own))
    return describe() if whole else None


def _describe(
    config: FuseConfig, inputs: Mapping[str, Any], shaped: Mapping[str, Any]
) -> Manifest:
    """Writes the manifest of fused rows that are all there."""
    return stage.finish(
        config.output,
        fused.STAGE,
        settings=shaped,
        inputs=inputs,
        origins=_origins(config),
        names=[piece.output for piece in plan.read(config.windows)],
        count=lambda footers: {
            **stage.total(footers, *_TOTALS),
            **rows.taught_by(footers),
        },
    )


def _origins(config: FuseConfig) -> dict[str, Any]:
    """Returns where the inputs were found."""
    named = config.named_sources()
    return {
        "windows": config.windows,
        "target": config.target,
        "sources": [f"{name}={at}" for name, at in named.items() if name != "target"],
        "models": {
            name: manifest.read(folder, scores.STAGE).origins["model"]
            for name, folder in named.items()
        },
    }


def slips(config: FuseConfig, counts: Mapping[str, int]) -> list[str]:
    """Names the domains that have weights of their own, but taught no window."""
    static = config.given_weights().by_domain if config.fusion == "static" else {}
    there = {domain for domain, _, _ in rows.taught(counts)}
    told = "domain_weights name {!r}, of which no window was taught"
    return [told.format(name) for name in static if name not in there]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    config, runner_flags = launch.parse(
        FuseConfig,
        sys.argv[1:] if argv is None else argv,
        prog="fusebeam fuse",
        description=__doc__ or "",
    )
    made = fuse_scores(config, runner_flags)
    if made is not None:
        counts = made.counts
        print(
            f"{config.output}: {counts['windows']:,} windows, {counts['tokens']:,}"
            f" tokens, {counts['covered'] / max(1, counts['positions']):.1%} of"
            " positions covered"
        )
        for line in (*manifest.losses(config.output, made), *slips(config, counts)):
            print(line)
    elif config.maps_only and not launch.is_dry(runner_flags):
        print(f"{files.join(config.output, fuse.MAPS)} is written; no slice was done")
    else:
        print(stage.unfinished(config.slices, runner_flags))
    return 0


if __name__ == "__main__":
    sys.exit(main())
