"""Names of the tensors that travel inside the trainer and the merger.

Axes: b rows of a batch, t positions of a row, n positions of a batch that count, k kept
entries, v vocabulary, d hidden size, m chunks of a batch.
"""

from torch import Tensor

from schemas.shapes import BFloat16, Bool, Float, Float64, Int

Scalar = Float[Tensor, ""]
"""One number."""

TokenRows = Int[Tensor, "b t"]
"""Vocabulary ids of packed rows."""

MaskRows = Bool[Tensor, "b t"]
"""One truth value a position."""

TopIdRows = Int[Tensor, "b t k"]
"""Kept ids of the fused rows, by falling probability; -1 behind the last."""

ProbRows = Float[Tensor, "b t k"]
"""Their probabilities in [0, 1]; 0 behind the last."""

TailRows = Float[Tensor, "b t"]
"""1 - sum of the kept probabilities, in [0, 1]."""

ChunkRows = Int[Tensor, "b t"]
"""Which of its row's chunks the token that a position predicts is of; -1: of none."""

ChunkLogprobRows = Float[Tensor, "b c"]
"""What the source gives each chunk, nats; NaN where it does not count."""

Hidden = Float[Tensor, "n d"]
"""Last hidden states, what the output head is applied to."""

HeadWeight = Float[Tensor, "v d"]
"""Weight of the output head."""

HeadBias = Float[Tensor, " v"]
"""Bias of the output head."""

Logits = Float[Tensor, "n v"]
"""Unnormalized log-probabilities."""

Targets = Int[Tensor, " n"]
"""The token that comes next."""

Counted = Bool[Tensor, " n"]
"""Whether a position counts."""

TopIds = Int[Tensor, "n k"]
"""Kept ids, each once in a row; behind the last, the first again."""

Probs = Float[Tensor, "n k"]
"""Probabilities of the kept ids; 0 behind the last."""

Kept = Bool[Tensor, "n k"]
"""Whether an entry is one of the kept, not padding."""

Tail = Float[Tensor, " n"]
"""Probability of all that is not kept."""

Factors = Float[Tensor, " n"]
"""One number a position: what it weighs, or what its logits' exponentials take."""

Nats = Float[Tensor, " n"]
"""One loss or log-probability a position."""

KeptNumbers = Float[Tensor, "n k"]
"""One number a kept entry."""

ChunkOf = Int[Tensor, " n"]
"""Which chunk the token that a position predicts is of, rising; -1: of none."""

ChunkLogprobs = Float[Tensor, " m"]
"""What the source gives each chunk, nats; NaN where it does not count."""

Teacher = BFloat16[Tensor, "n v"]
"""A distribution a position, over the whole vocabulary, rounded as the authors do."""

Weight = Float[Tensor, "*shape"]
"""One parameter of a model, of any shape; all that meet in one merge have the same."""

Marks = Bool[Tensor, "*shape"]
"""One truth value an element of a parameter."""

Gram = Float64[Tensor, "n n"]
"""Inner products of n parameters, or their cosines."""
