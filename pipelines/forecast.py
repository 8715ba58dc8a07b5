"""What every stage of a run will take, by arithmetic from its basis."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from pipelines import basis, figures
from pipelines.basis import FUSE_TOKENS_PER_S, Basis
from pipelines.figures import Figure
from schemas import fused
from train.config import TrainConfig
from transforms.functional import budget
from transforms.functional.budget import Prices, Stage, Volume


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What a run of one size takes.

    Attributes:
      is_corpus: whether it is the corpus as it is.
      tokens: positions of the target that are fused.
      corpus_bytes: text of the whole corpus, all splits.
      volume: what of it is scored and fused.
      stages: what each stage takes, in order.
      cost: of the hours; None where no price of hours was given.
      cost_month: of keeping all files for a month; None where it has no price.
    """

    is_corpus: bool
    tokens: float
    corpus_bytes: float
    volume: Volume
    stages: tuple[Stage, ...]
    cost: float | None
    cost_month: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forecast:
    """All that `fusebeam plan` finds.

    Attributes:
      figures: what it rests on.
      sizes: what it comes to, for each size asked for.
    """

    figures: tuple[Figure, ...]
    sizes: tuple[Size, ...]

    def as_json(self) -> dict[str, Any]:
        """Returns all of it as JSON values."""
        return dataclasses.asdict(self)


def forecast(of: Basis, prices: Prices, sizes: Sequence[float | None]) -> Forecast:
    """Estimates what a run takes at each size.

    Args:
      of: what is known of it.
      prices: what hours and bytes cost.
      sizes: positions of the target to fuse; None is the corpus as it is.
    """
    return Forecast(
        figures=tuple(figures.figures_of(of)),
        sizes=tuple(_size(of, prices, tokens) for tokens in sizes),
    )


def _size(of: Basis, prices: Prices, tokens: float | None) -> Size:
    """Estimates one size: this corpus, its files that much longer or shorter."""
    file_bytes, prepare = of.sample.file_bytes(), of.job.prepare
    own = sum(file_bytes) * of.share * of.target.tokens_per_byte
    scale = 1.0 if tokens is None else tokens / own
    volume = budget.volume(
        [size * of.share * scale for size in file_bytes],
        of.windows_per_byte,
        group_windows=prepare.group_windows,
        slice_bytes=prepare.slice_bytes,
    )
    stages = (
        _prepare(of, sum(file_bytes) * scale),
        *(_score(of, name, volume) for name in of.models),
        *(_fuse(of, name, volume) for name in of.job.fusions),
        _train(of, volume),
        *_merge(of),
    )
    return Size(
        is_corpus=tokens is None,
        tokens=own * scale,
        corpus_bytes=sum(file_bytes) * scale,
        volume=volume,
        stages=stages,
        cost=prices.work(stages),
        cost_month=prices.month(stages),
    )


def _prepare(of: Basis, text_bytes: float) -> Stage:
    return Stage(
        name="prepare",
        tokens=None,
        bytes=text_bytes * of.stored_per_byte,
        cpu_hours=budget.hours(text_bytes, of.prepared_bytes_per_s),
    )


def _score(of: Basis, name: str, volume: Volume) -> Stage:
    model = of.models[name]
    tokens = volume.text_bytes * model.tokens_per_byte
    return Stage(
        name=f"score {name}",
        tokens=tokens,
        bytes=budget.scores_bytes(tokens, volume, model.bytes_per_token),
        gpu_hours=budget.hours(tokens, model.tokens_per_s),
    )


def _fused_tokens(of: Basis, volume: Volume) -> float:
    """Returns the target's tokens: in each window one more than its positions."""
    return volume.text_bytes * of.target.tokens_per_byte + volume.windows


def _fuse(of: Basis, name: str, volume: Volume) -> Stage:
    tokens, fusion = _fused_tokens(of, volume), of.job.fusions[name]
    candidates = basis.candidates(fusion)
    return Stage(
        name="fuse" if len(of.job.fusions) == 1 else f"fuse {name}",
        tokens=tokens,
        bytes=budget.fused_bytes(
            tokens,
            volume,
            of.fused_bytes_per_token(fusion),
            sources=candidates,
            group_tokens=fusion.seq_length * fused.ROW_GROUP_ROWS,
        ),
        cpu_hours=budget.hours(tokens * candidates, FUSE_TOKENS_PER_S),
    )


def _train(of: Basis, volume: Volume) -> Stage:
    """Estimates all trainings, one after another."""
    trainings, size = of.job.trainings, of.target.parameters
    tokens = [_trained(of, training, volume) for training in trainings]
    return Stage(
        name="train",
        tokens=sum(tokens),
        bytes=budget.training_bytes(size.count, size.stored_bytes, len(trainings)),
        gpu_hours=sum(
            budget.hours(n, of.trained_per_s(training))
            for n, training in zip(tokens, trainings, strict=True)
        ),
    )


def _trained(of: Basis, training: TrainConfig, volume: Volume) -> float:
    """Returns the tokens that a training sees, all its passes together."""
    if training.max_steps is None:
        return training.epochs * len(training.folders) * _fused_tokens(of, volume)
    row_tokens = of.job.rows_of(training).seq_length
    return float(training.max_steps * training.batch_size * row_tokens)


def _merge(of: Basis) -> list[Stage]:
    """Estimates all merges: their bytes, as hours are those of copying them."""
    written = float(of.job.merges * of.target.parameters.stored_bytes)
    return [Stage(name="merge", tokens=None, bytes=written)] if written else []
