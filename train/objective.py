"""What the trainer minimizes, and over what its means are taken."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import torch

from train import divergences
from train import rows as batches
from train.rows import Rows
from train.tensors import Scalar

RowLoss = Literal["ce", "kl", "reverse_kl", "jsd", "tv"]

Scales = tuple[Scalar, Scalar, Scalar]
"""What a position's CLM loss, a position's fusion loss, and a chunk weigh in L."""

_RISES = {
    "linear": ", rising evenly towards 1",
    "cosine": ", rising towards 1 along half a cosine",
}

_ROW_LOSSES = {
    "ce": "cross-entropy to the fused distribution",
    "kl": "Kullback-Leibler divergence to the fused distribution",
    "reverse_kl": "Kullback-Leibler divergence of the fused distribution from the"
    " target's",
    "jsd": "Jensen-Shannon divergence from the fused distribution",
    "tv": "total variation from the fused distribution",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What is minimized.

    Attributes:
      clm_weight: share of the causal language modeling loss, in [0, 1].
      fusion_loss: cross-entropy or Kullback-Leibler divergence to the fused rows, which
        differ by a constant, so the gradients are equal; the divergence the other way;
        Jensen-Shannon; total variation; or no rows, `chunks` alone.
      tail: one bucket for what a fused row does not keep, or rows renormalized over
        what they keep.
      label_smoothing: share of the CLM target that is spread evenly over the
        vocabulary, in [0, 1): a control for what fusion does beyond smoothing. Logits
        of minus infinity make it infinite.
      teacher_temperature: the fused rows' probabilities are raised to 1 / this and
        renormalized; 1 unless tail is `renormalise`. Gradients are not multiplied by
        its square.
      target_temperature: the target's logits are divided by this in the fusion loss
        over rows, and there alone.
      chunk_share: share of L_Chunks in L_Fusion, beside rows, in [0, 1).
      chunk_temperature: tau of L_Chunks.
      authors: rows are rounded as FuseLLM's code does: `rows.round_rows`.
    """

    clm_weight: float = 0.9
    fusion_loss: Literal[RowLoss, "chunks"] = "ce"
    tail: Literal["bucket", "renormalise"] = "bucket"
    label_smoothing: float = 0.0
    teacher_temperature: float = 1.0
    target_temperature: float = 1.0
    chunk_share: float = 0.0
    chunk_temperature: float = 100.0
    authors: bool = False

    @property
    def matches_rows(self) -> bool:
        """Whether fused rows are part of it."""
        return self.fusion_loss != "chunks"

    @property
    def matches_chunks(self) -> bool:
        """Whether chunks are part of it."""
        return not self.matches_rows or self.chunk_share > 0

    @property
    def heat(self) -> float:
        """Temperature of the softmax that is compared with rows."""
        return self.target_temperature if self.matches_rows else 1.0


def scales(
    objective: Objective, clm: Scalar, fusion: Scalar, chunks: Scalar | None
) -> Scales:
    """Divides the shares of the three losses by the counts of their means.

    Raises:
      ValueError: if chunks are part of the objective and were not counted.
    """
    share = objective.clm_weight
    of_chunks = objective.chunk_share if objective.matches_rows else 1.0
    if chunks is None:
        if objective.matches_chunks:
            raise ValueError(
                "chunk_count must be given where chunks are part of the objective, got"
                f" None, with chunk_share {of_chunks}"
            )
        chunks = torch.ones_like(clm)
    return (
        share / _counted(clm),
        (1 - share) * (1 - of_chunks) / _counted(fusion),
        (1 - share) * of_chunks / _counted(chunks),
    )


def _counted(count: Scalar) -> Scalar:
    """Returns a count to divide by: 1 for 0, as then nothing is divided."""
    return torch.where(count > 0, count, torch.ones_like(count))


def teach(rows: Rows, objective: Objective) -> Rows:
    """Makes of each fused row what the target is compared with."""
    if not objective.matches_rows:
        return rows
    heat = objective.teacher_temperature
    if objective.authors:
        rows = batches.round_rows(rows, heat)
    else:
        rows = batches.temper(rows, objective.tail, heat)
    if objective.fusion_loss == "kl" and rows.negentropies is None:
        constant = divergences.negentropy(rows.probs, rows.tail)
        rows = dataclasses.replace(rows, negentropies=constant)
    return rows


def spoken(settings: Mapping[str, Any]) -> dict[str, str]:
    """Says in words what a training minimizes.

    Args:
      settings: a training's, as its manifest names them: some are left out at defaults.

    Returns:
      Each part of the objective, and all of it that is not as by default.
    """
    share = settings["clm_weight"]
    rise = _RISES.get(settings["clm_schedule"], "") if share < 1 else ""
    told = {"share of the text's own loss": f"{share:g}{rise}"}
    if settings["label_smoothing"]:
        told["label smoothing"] = f"{settings['label_smoothing']:g}"
    if settings.get("attend_across"):
        told["documents of a packed row"] = "attend to those before them"
    if share < 1:
        told |= _spoken_fusion(settings)
    return told


def _spoken_fusion(settings: Mapping[str, Any]) -> dict[str, str]:
    """Says what of the objective is not the text's own loss."""
    told, kind = {}, settings["fusion_loss"]
    of_chunks = 1.0 if kind == "chunks" else settings.get("chunk_share", 0.0)
    if kind != "chunks":
        told["fusion loss"] = _ROW_LOSSES[kind]
        told["tail of the fused distribution"] = (
            "none: renormalized over its kept entries"
            if settings["tail"] == "renormalise"
            else "one outcome"
        )
    if of_chunks:
        heat = settings.get("chunk_temperature", Objective().chunk_temperature)
        told["likelihood of chunks"] = (
            f"{of_chunks:g} of the fusion loss, at temperature {heat:g}"
        )
    for name in ("teacher_temperature", "target_temperature", "position_weights"):
        if name in settings:
            told[name.replace("_", " ")] = str(settings[name])
    if settings.get("reference"):
        told["rounding and masks"] = f"those of {settings['reference']}'s code"
    return told
