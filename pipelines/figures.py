"""The figures that a forecast rests on, each with where it is from."""

import dataclasses

from pipelines import basis
from pipelines.basis import Basis
from pipelines.fuse import FuseConfig
from pipelines.score import ScoreConfig
from transforms.functional import budget

SAMPLE = "measured on the sample"
FORMULA = "formula (docs/running.md)"
AT_MOST = f"{FORMULA}, at most: top_p keeps less"
"""Where k is adaptive: what it comes to only the models' own scores can tell."""


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """A figure that the estimate rests on.

    Attributes:
      name: what it is.
      value: how much.
      unit: of what.
      source: where it is from: measured, listed, given, assumed, or a formula's.
    """

    name: str
    value: float
    unit: str
    source: str


def figures_of(of: Basis) -> list[Figure]:
    """Lists what a forecast rests on."""
    models = [figure for name in of.models for figure in _of_model(of, name)]
    return [*_of_corpus(of), *models, *_of_stages(of)]


def _of_corpus(of: Basis) -> list[Figure]:
    sample = of.sample
    share = SAMPLE if of.job.prepare.split_field else "given"
    return [
        Figure("files of the corpus", len(sample.sizes), "files", "listed"),
        Figure("their size", sum(sample.sizes.values()), "bytes", "listed"),
        *(
            Figure(f"text in {suffix}", ratio, "bytes/stored byte", SAMPLE)
            for suffix, ratio in sample.ratios().items()
        ),
        Figure("text of the corpus", sum(sample.file_bytes()), "bytes", "size x text"),
        Figure("sample", sample.text_bytes, "bytes of text", SAMPLE),
        Figure("its documents", len(sample.documents), "documents", SAMPLE),
        Figure("its rejects", sample.rejects.total(), "records", SAMPLE),
        Figure("share that is fused", of.share, "of the text", share),
        Figure("text of a window", 1 / of.windows_per_byte, "bytes", SAMPLE),
        Figure("windows files", of.stored_per_byte, "bytes/text byte", SAMPLE),
    ]


def _of_model(of: Basis, name: str) -> list[Figure]:
    model, config = of.models[name], of.job.scores[name]
    rate = "given" if name in of.rates.score else _by_flops(budget.FORWARD_FLOPS)
    made = model.parameters
    return [
        Figure(f"{name}: size", made.count, "parameters", made.source),
        Figure(f"{name}: vocabulary", model.vocabulary, "ids", "its tokenizer"),
        Figure(f"{name}: text", 1 / model.tokens_per_byte, "bytes/token", SAMPLE),
        Figure(
            f"{name}: scores, k = {config.top_k}",
            model.bytes_per_token,
            "bytes/token",
            _formula(config),
        ),
        Figure(f"{name}: scoring", model.tokens_per_s, "tokens/s", rate),
    ]


def _of_stages(of: Basis) -> list[Figure]:
    training = of.job.trainings[0]
    rate = "given" if of.rates.train else _by_flops(basis.training_flops(training))
    kept = budget.CHECKPOINTS * budget.CHECKPOINT_BYTES
    fusions = of.job.fusions
    named = {n: "" if len(fusions) == 1 else f" {n}" for n in fusions}
    return [
        *(
            Figure(
                f"fused{named[name]}, k = {basis.fused_entries(fusion)}",
                of.fused_bytes_per_token(fusion),
                "bytes/token",
                _formula(fusion, *(of.job.scores[n] for n in fusion.named_sources())),
            )
            for name, fusion in fusions.items()
        ),
        Figure("checkpoints in training", kept, "bytes/parameter", FORMULA),
        Figure("training", of.trained_per_s(training), "tokens/s", rate),
        Figure("prepare, a core", of.prepared_bytes_per_s, "text bytes/s", SAMPLE),
        *(
            Figure(
                f"fuse{named[name]}, a core",
                basis.FUSE_TOKENS_PER_S / basis.candidates(fusion),
                "tokens/s",
                "measured once (docs/log.md)",
            )
            for name, fusion in fusions.items()
        ),
        Figure("a device", of.rates.flops, "FLOP/s", "given or assumed: --flops"),
    ]


def _formula(*kept_by: ScoreConfig | FuseConfig) -> str:
    """Says where bytes a token are from, of what was kept by such settings."""
    return AT_MOST if any(one.top_p is not None for one in kept_by) else FORMULA


def _by_flops(per_parameter: float) -> str:
    return f"FLOP/s over {per_parameter:g} x parameters"
