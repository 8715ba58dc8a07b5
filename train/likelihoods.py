"""Approximate likelihood matching: how likely target and source find each chunk.

Source and target tokenize differently, but between two borders that they share both
write the same bytes. Over such a chunk c, with S_c the sum of the target's log q(gold)
and T_c what the source gives the chunk, both in nats, and a temperature tau::

    p = exp(T_c / tau),   q = exp(S_c / tau)
    D_c = tau (p log (p / q) + (1 - p) log ((1 - p) / (1 - q)))

the divergence between two coins, "this chunk, or any other". Its derivative is ::

    dD_c / dS_c = (q - p) / (1 - q)

and dS_c / dz_v = [v = gold] - q_v at each position of the chunk, so a chunk's positions
learn as in the CLM loss, each with the weight (p - q) / (1 - q) instead of 1: forwards
where the source finds the chunk likelier, backwards where it does not. No map between
vocabularies is needed.

The factor tau is ours: without it gradients vanish as 1 / tau, and would have to be
balanced against the other losses (the paper does so by their magnitudes). With it D_c
tends, as tau grows, to the divergence of the costs, T log (T / S) - T + S with T and S
the nats of source and target. Chunks are not debiased: the paper keeps those whose end
the source's tokenization does not foretell, which needs probabilities of the source
that a fused row does not hold.

References:
  Minixhofer et al., "Universal cross-tokenizer distillation via approximate likelihood
  matching", 2025, arXiv 2503.20083: binarised f-divergence, here with f of KL, their
  choice, as is tau = 100.
"""

import torch

from train.rows import Chunks
from train.tensors import ChunkOf, Nats, Scalar

CERTAIN = 1e-6
"""Nats of a chunk, below which the target counts as certain of it: D is cut off."""


def match_chunks(
    gold: Nats, of: ChunkOf, chunks: Chunks, temperature: float
) -> tuple[Scalar, Nats]:
    """Compares the chunks of some positions.

    Args:
      gold: log q of the token that comes next, at each position.
      of: the chunk of each; no chunk may have positions elsewhere.
      chunks: what the source gives each chunk.
      temperature: tau, above 0.

    Returns:
      The sum of D over these chunks, nats, and dD/dS at each position, 0 outside
      chunks; float64, as p and q are close to 1.
    """
    inside = of >= 0
    place = of.clamp_min(0)
    gold = torch.where(inside, gold, 0.0).double()
    sums = gold.new_zeros(len(chunks.logprobs)).index_add(0, place, gold)  # (m,)
    here = torch.zeros_like(sums).index_add(0, place, inside.double()) > 0
    said = torch.where(here, chunks.logprobs.double(), -1.0) / temperature
    cut = sums.clamp_max(-CERTAIN) / temperature
    cut = torch.where(here, cut, -1.0)
    other, ours = -torch.expm1(said), -torch.expm1(cut)  # 1 - p, 1 - q
    # 0 log 0 = 0: a chunk that the source rules out.
    known = torch.where(said > -torch.inf, said.exp() * (said - cut), 0.0)
    values = known + torch.xlogy(other, other / ours)
    slopes = torch.where(here & (sums < -CERTAIN), (other - ours) / ours, 0.0)
    total = (temperature * torch.where(here, values, 0.0)).sum()
    return total, torch.where(inside, slopes[place], 0.0)
