"""What a forecast rests on: a run's settings, a sample of its corpus, its models."""

import dataclasses
from collections.abc import Mapping, Sequence

from pipelines import sampling
from pipelines.fuse import FuseConfig
from pipelines.prepare import PrepareConfig
from pipelines.sampling import Measures
from pipelines.score import ScoreConfig
from schemas.samples import Sample
from train.config import TrainConfig
from transforms import adapters, parameters, tokenizer
from transforms.functional import budget
from transforms.parameters import Parameters

FUSE_TOKENS_PER_S = 300_000.0
"""Target tokens times candidates that a core fuses in a second, all of `fuse` included:
10 s for 10^6 tokens of three, hardly more at 32 entries than at 4 (`docs/log.md`)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """The stages of a run, by their own settings.

    Attributes:
      prepare: how the corpus is cut.
      split: the split that is scored and fused; None for all of it.
      scores: how each model is scored, the target first, by name.
      fusions: how they are fused, each time they are, by name.
      trainings: how the target is trained, each time it is.
      merges: how many models are made of trained ones.
    """

    prepare: PrepareConfig
    split: str | None
    scores: Mapping[str, ScoreConfig]
    fusions: Mapping[str, FuseConfig]
    trainings: Sequence[TrainConfig]
    merges: int = 0

    def rows_of(self, training: TrainConfig) -> FuseConfig:
        """Returns the fusion that a training is on."""
        return next(f for f in self.fusions.values() if f.output in training.folders)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """How fast devices are.

    Attributes:
      score: tokens that one scores in a second, for models of which it is known.
      train: tokens that one trains on in a second; None where it is not known.
      flops: operations a second that one really reaches, for what is not known.
    """

    score: Mapping[str, float]
    train: float | None
    flops: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model as the forecast sees it.

    Attributes:
      parameters: its size.
      vocabulary: ids of its tokenizer.
      tokens_per_byte: positions for each byte of text.
      tokens_per_s: positions that one device scores in a second.
      bytes_per_token: of its scores.
    """

    parameters: Parameters
    vocabulary: int
    tokens_per_byte: float
    tokens_per_s: float
    bytes_per_token: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Basis:
    """All that a forecast rests on.

    Attributes:
      job: the stages.
      rates: how fast devices are.
      sample: what was read of the corpus.
      share: share of the text that is scored and fused, in (0, 1].
      measured: what the sample came to.
      models: the models by name, the target first.
    """

    job: Job
    rates: Rates
    sample: Sample
    share: float
    measured: Measures
    models: Mapping[str, Model]

    @property
    def target(self) -> Model:
        """The model that is trained."""
        return self.models["target"]

    @property
    def windows_per_byte(self) -> float:
        """Windows for each byte of text."""
        return self.measured.windows / self.measured.text_bytes

    @property
    def stored_per_byte(self) -> float:
        """Bytes of windows files for each byte of text."""
        return self.measured.windows_bytes / self.measured.text_bytes

    @property
    def prepared_bytes_per_s(self) -> float:
        """Bytes of text that one core cuts in a second."""
        return self.measured.text_bytes / self.measured.cpu_s

    def fused_bytes_per_token(self, fusion: FuseConfig) -> float:
        """Returns the bytes of a fused token, start tokens among them."""
        return budget.fused_bytes_per_token(
            fused_entries(fusion), self.target.vocabulary
        )

    def trained_per_s(self, training: TrainConfig) -> float:
        """Returns the tokens that one device trains on in a second."""
        return self.rates.train or budget.tokens_per_second(
            self.rates.flops, self.target.parameters.count, training_flops(training)
        )


def fused_entries(fusion: FuseConfig) -> int:
    """Returns the entries kept and drawn for each fused position."""
    return fusion.top_k + fusion.tail_samples


def candidates(fusion: FuseConfig) -> int:
    """Returns how many rows are fused into one."""
    return len(fusion.named_sources())


def training_flops(training: TrainConfig) -> float:
    """Returns operations for each parameter and token, a second forward included."""
    again = budget.FORWARD_FLOPS if training.gradient_checkpointing else 0.0
    return budget.TRAINING_FLOPS + again


def gather(job: Job, rates: Rates, *, sample_bytes: int, seed: int) -> Basis:
    """Takes a sample of the corpus, and reads what models say of themselves.

    Args:
      job: the stages.
      rates: how fast devices are.
      sample_bytes: bytes of the corpus to read.
      seed: of the sample's places.

    Raises:
      FileNotFoundError: if the corpus or a model is not there.
      FusionError: if the sample holds no document of the split.
    """
    # What costs least first: models may have to be fetched, texts to be cut.
    sample = sampling.take(job.prepare, sample_bytes, seed)
    share = 1.0
    if job.split is not None:
        share = sampling.split_share(job.prepare, sample, job.split)
    counted = {
        name: parameters.count(adapters.split(c.model, c.adapter).model)
        for name, c in job.scores.items()
    }
    tokenizers = {
        name: tokenizer.load(config.tokenizer or config.model)
        for name, config in job.scores.items()
    }
    measured = sampling.measure(job.prepare, sample.documents, tokenizers)
    models = {}
    for name, config in job.scores.items():
        size = counted[name].count
        flops_rate = budget.tokens_per_second(rates.flops, size, budget.FORWARD_FLOPS)
        vocabulary = tokenizers[name].size
        models[name] = Model(
            parameters=counted[name],
            vocabulary=vocabulary,
            tokens_per_byte=measured.tokens[name] / measured.text_bytes,
            tokens_per_s=rates.score.get(name, flops_rate),
            bytes_per_token=budget.scores_bytes_per_token(
                config.top_k, config.tail_samples, vocabulary
            ),
        )
    return Basis(
        job=job,
        rates=rates,
        sample=sample,
        share=share,
        measured=measured,
        models=models,
    )
