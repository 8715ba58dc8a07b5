"""FuseLLM's and FuseChat's objective as their code has it: the oracle of `loss`.

    L        = clm_weight * L_CLM + (1 - clm_weight) * L_Fusion
    L_CLM    = mean of -log q[t, label[t + 1]] over the labels that count
    L_Fusion = mean over a mask of
        ce:  -sum_v p[t, v] log q[t, v]
        kl:  the same, plus sum_v p[t, v] log p[t, v]

where q is the target's softmax, and p the teacher's over the entries that were kept,
renormalized, everything of it in bfloat16. Plain and dense: [positions, vocabulary] is
held whole, several times. `fusebeam train --reference` minimizes the same in chunks, of
rows that went through the codec. Without it, --tail=renormalise differs in three
things: its rows are not rounded to bfloat16; the position behind a text's last token
never counts, while FuseLLM's mask, which is not shifted, counts it; and both means are
over the whole optimizer step, the authors' over each micro-batch.

References:
  Wan et al., "Knowledge Fusion of Large Language Models", 2024, equations 3 to 5; Wan
  et al., "FuseChat", 2024; rounding, ties and masks as in their code.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch.nn import functional as F

from train.tensors import Counted, Logits, Scalar, Targets, Teacher

IGNORED = -100
"""Label of a token that does not count."""


def teacher_rows(
    ids: Sequence[Sequence[int]],
    logits: Sequence[Sequence[float]],
    *,
    vocabulary: int,
    fallback: Teacher | None = None,
) -> Teacher:
    """Spreads each row over the entries it keeps: softmax of their logits.

    Args:
      ids: kept ids of each position, each once.
      logits: their logits.
      vocabulary: how many ids the target has.
      fallback: rows that stand in where a row keeps nothing: the target's own.

    Raises:
      ValueError: if a row keeps nothing and there is no `fallback`.
    """
    rows = torch.zeros(len(ids), vocabulary, dtype=torch.bfloat16)
    for t, (kept, values) in enumerate(zip(ids, logits, strict=True)):
        if kept:
            given = torch.tensor(values, dtype=torch.bfloat16)
            rows[t, torch.tensor(kept)] = torch.softmax(given, -1)
        elif fallback is not None:
            rows[t] = fallback[t]
        else:
            raise ValueError(f"row {t} must keep an entry, or there must be a fallback")
    return rows


def mix_rows(rows: Sequence[Teacher], weights: Sequence[float]) -> Teacher:
    """Adds the rows of several sources, each times its weight, in bfloat16."""
    mixed = torch.zeros_like(rows[0])
    for row, weight in zip(rows, weights, strict=True):
        mixed = mixed + torch.tensor(weight, dtype=torch.bfloat16) * row
    return mixed


def objective(
    logits: Logits,
    labels: Targets,
    teacher: Teacher,
    mask: Counted,
    *,
    clm_weight: float,
    fusion_loss: Literal["ce", "kl"],
) -> Scalar:
    """Returns L of one row of tokens, in nats.

    Args:
      logits: of the target, float32; position t predicts label t + 1.
      labels: the tokens themselves, IGNORED where they do not count.
      teacher: what the fused sources say at each position.
      mask: positions whose teacher counts. FuseLLM: all that hold a token, the last,
        which predicts nothing, too. FuseChat: see `shifted`.
      clm_weight: share of L_CLM, in [0, 1].
      fusion_loss: which L_Fusion.
    """
    clm = F.cross_entropy(logits[:-1], labels[1:], ignore_index=IGNORED)
    divergence = -(teacher * F.log_softmax(logits, -1)).sum(-1)  # (n,)
    if fusion_loss == "kl":
        # A product and a logarithm in bfloat16 each, as in torch's own kl_div.
        entropies = torch.where(teacher > 0, teacher * teacher.log(), 0.0)
        divergence = divergence + entropies.float().sum(-1)
    fusion = (divergence * mask).sum() / mask.sum()
    return clm_weight * clm + (1 - clm_weight) * fusion


def shifted(labels: Targets) -> Counted:
    """Marks the positions whose next token counts: FuseChat's mask."""
    return F.pad(labels[1:] != IGNORED, (0, 1))
