"""Names of the arrays that travel between functions.

Axes: t target positions, i source positions, k kept entries, r drawn ones, n tokens,
v vocabulary.
Shapes are checked under pytest only, by jaxtyping's import hook.

A window of n tokens is stored with its start token in front, `token_ids[0]` (BOS, or
EOS where a model has no BOS), so it has t = n positions and position t predicts
`token_ids[t + 1]`.
"""

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64, UInt8

TokenIds = Int32[np.ndarray, " n"]
"""Vocabulary ids."""

ByteEnds = Int32[np.ndarray, " n"]
"""End offset of each token in the UTF-8 bytes of its window; never falling."""

TopIds = Int32[np.ndarray, "t k"]
"""Ids of the kept entries by falling logprob; -1 where a row has fewer than k."""

TopLogprobs = Float32[np.ndarray, "t k"]
"""Natural-log probabilities over the full vocabulary; -inf where the id is -1."""

SampledIds = Int32[np.ndarray, "t r"]
"""Ids drawn from what a row does not keep, maybe twice; -1 where a draw found none."""

Chances = Float64[np.ndarray, "t r"]
"""Uniform random numbers in [0, 1), one a draw."""

GoldLogprobs = Float32[np.ndarray, " t"]
"""Natural-log probability of the token that did come next."""

Counts = Int32[np.ndarray, " t"]
"""How many of the k entries a row uses, in [0, k]."""

Probs = Float32[np.ndarray, "t k"]
"""Probabilities of the kept entries in [0, 1], falling; 0 behind the last."""

TailMass = Float32[np.ndarray, " t"]
"""1 - sum of the kept probabilities, in [0, 1]; 0 where a row keeps nothing."""

Mask = Bool[np.ndarray, " t"]
"""One truth value a position."""

Offsets = Int64[np.ndarray, " n"]
"""Offsets into a flat array; row r is flat[offsets[r]:offsets[r + 1]]."""

Bytes = UInt8[np.ndarray, " n"]
"""Raw bytes."""

Weights = Float64[np.ndarray, " s"]
"""One weight a source, in [0, 1], summing to 1."""

Genes = Float64[np.ndarray, " n"]
"""One number of any size a gene: its place in the gene's range, in units of that."""
