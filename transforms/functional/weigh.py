"""Weighs sources by what their text costs.

Costs are bits per byte, so that tokenizers of different fineness compare fairly: of a
window or a document (s,), or of each of t positions (t, s). Weights have the costs'
shape. A source with NaN or inf for its cost is out; the others stay, and their weights
sum to 1, or to 0 where no source is left. The order of the sources matters nowhere:
equal costs weigh the same.

`reference_*` are FuseLLM's and FuseChat's own: nats per own token, in the precision
that their code has, which decides ties. There the order of the sources matters.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, Int32

Costs = Float64[np.ndarray, "*t s"]
"""Bits per byte of s sources, for one window or for each of t positions."""

Metrics = Float64[np.ndarray, " s"]
"""Nats per own token of s sources."""

Shares = Float64[np.ndarray, " s"]
"""Weights given by hand, 0 or more; of any sum."""


def bits_per_byte(nll_nats: float, n_bytes: int) -> float:
    """Returns nll_nats / (n_bytes * ln 2); NaN where there are no bytes."""
    return nll_nats / (n_bytes * np.log(2.0)) if n_bytes else float("nan")


def document_costs(
    nats: Float64[np.ndarray, "w s"],
    n_bytes: Int[np.ndarray, " w"],
    begins: Bool[np.ndarray, " w"],
) -> Float64[np.ndarray, "w s"]:
    """Sums what each source spends on a document over the document's windows.

        cost = sum of nats / (ln 2 * sum of bytes)   over the windows the source scored

    Args:
      nats: cost of each window's bytes; NaN where the source failed.
      n_bytes: bytes of each window that count.
      begins: which windows begin a document; the first one does, whatever it says.

    Returns:
      For each window its document's cost, in bits per byte; NaN for a source that
      failed in the window, or for which nothing of the document counts.
    """
    document = np.cumsum(begins) - int(begins[:1].sum())
    scored = np.isfinite(nats)
    size = (int(document[-1]) + 1 if len(document) else 0, nats.shape[1])
    spent, held = np.zeros(size), np.zeros(size)
    np.add.at(spent, document, np.where(scored, nats, 0.0))
    np.add.at(held, document, np.where(scored, n_bytes[:, None], 0))
    costs = np.full(size, np.nan)
    np.divide(spent, held * np.log(2.0), out=costs, where=held > 0)
    return np.where(scored, costs[document], np.nan)


def position_costs(
    target_byte_ends: Int32[np.ndarray, " i"],
    source_byte_ends: Int32[np.ndarray, " j"],
    gold_logprob: Float[np.ndarray, " r"],
    *,
    eos: bool,
) -> Float64[np.ndarray, " t"]:
    """Attributes a source's cost to the target's tokens, in bits per byte.

    A source token's nats spread evenly over its bytes; those of an empty token go to
    the token behind it. EOS counts as one byte. A target position has NaN if it has no
    bytes, or if a source token that overlaps it has no finite cost.

    Args:
      target_byte_ends: end offsets, start token included.
      source_byte_ends: the same of the source; ends at the same byte.
      gold_logprob: the source's, natural log.
      eos: whether both token lists end with their EOS.
    """
    stop = source_byte_ends.size - int(eos)
    first = np.flatnonzero(np.diff(source_byte_ends[:stop], prepend=-1))
    finite = np.isfinite(gold_logprob)
    nats = np.where(finite, -gold_logprob.astype(np.float64), 0.0)
    width = np.diff(target_byte_ends).astype(np.float64)
    ends, costs = target_byte_ends, np.full(width.size, np.nan)
    spent, bad = (
        np.diff(np.interp(ends, source_byte_ends[first], _running(x)[first]))
        for x in (nats, ~finite)
    )
    known = (width > 0) & (bad == 0)
    costs[known] = spent[known] / width[known]
    if eos and finite[-1]:
        costs[-1] = nats[-1]
    costs /= np.log(2.0)
    return costs


def min_ce_weights(costs: Costs) -> Costs:
    """Gives all weight to the cheapest source (MinCE); equally cheap ones share it.

    Zeros where no source has a finite cost.
    """
    usable = np.isfinite(costs)
    least = np.min(costs, axis=-1, keepdims=True, where=usable, initial=np.inf)
    cheapest = usable & (costs == least)
    return cheapest / np.maximum(cheapest.sum(axis=-1, keepdims=True), 1)


def avg_ce_weights(costs: Costs, *, temperature: float = 1.0) -> Costs:
    """Returns softmax(-costs / temperature) over the sources (AvgCE).

    Temperature 0 is MinCE, inf the plain mean. Zeros where no source has a finite cost.

    Args:
      costs: bits per byte; NaN and inf are out.
      temperature: in bits per byte, 0 or more.

    Raises:
      ValueError: if `temperature` is negative or NaN.
    """
    if not temperature >= 0.0:
        raise ValueError(f"temperature must be 0 or more, got {temperature}")
    if temperature == 0.0:
        return min_ce_weights(costs)
    usable = np.isfinite(costs)
    best = np.min(costs, axis=-1, keepdims=True, where=usable, initial=np.inf)
    above = np.where(usable, np.where(usable, costs, 0.0) - best, 0.0)
    with np.errstate(over="ignore"):  # a quotient beyond float64 weighs nothing
        weights: Costs = np.where(usable, np.exp(-above / temperature), 0.0)
    weights /= np.maximum(weights.sum(axis=-1, keepdims=True), 1e-300)
    return weights


def static_weights(costs: Costs, shares: Shares) -> Costs:
    """Scales shares given by hand over the sources that have a finite cost."""
    weights: Costs = np.where(np.isfinite(costs), shares, 0.0)
    weights /= np.maximum(weights.sum(axis=-1, keepdims=True), 1e-300)
    return weights


def reference_metric(gold_logprob: Float32[np.ndarray, " r"]) -> float:
    """Returns the mean cost of a text's own tokens, in nats, as the authors keep it.

    Costs, their sum and their mean are float16 each. NaN where there is no token.
    """
    if not gold_logprob.size:
        return float("nan")
    with np.errstate(over="ignore"):  # their sum overflows over 65,504 nats, too
        total = np.float16(np.sum(-gold_logprob.astype(np.float16), dtype=np.float32))
        return float(np.float16(np.float32(total) / gold_logprob.size))


def packed_metrics(
    metrics: Float64[np.ndarray, "w s"],
    lengths: Int[np.ndarray, " w"],
    rows: Sequence[Sequence[int]],
) -> Float64[np.ndarray, "w s"]:
    """Gives each window the mean metric of the training row it is packed into.

    Windows weigh by their length, as in FuseLLM, whose packing repeats a window's
    metric for each of its tokens and takes the mean over the row.

    Args:
      metrics: of each window, by source, in nats per own token.
      lengths: the windows' target tokens; 0 where none of a window's counts.
      rows: the windows of each row; NaN for a window in none.
    """
    packed = np.full(metrics.shape, np.nan)
    for row in rows:
        own = [window for window in row if lengths[window]]
        if own:
            weights = lengths[own] / lengths[own].sum()
            packed[row] = weights @ metrics[own]
    return packed


def reference_min_ce_weights(
    metrics: Metrics, *, ties: Literal["first", "last"] = "first"
) -> Shares:
    """Gives all weight to the source of the greatest reward (FuseLLM's MinCE).

        reward = 1 / exp(metric)   in bfloat16

    Sources whose metrics differ by less than bfloat16 tells are equal. Among equals the
    first wins; NaN wins over all, the first NaN. Where the target is no candidate, the
    authors compare two sources the other way round: then the last wins.

    All weights are 0 where every metric is NaN: nothing counts there, and the authors
    drop such a row (`filter_nan`) before anything is chosen.

    References:
      Wan et al., "Knowledge Fusion of Large Language Models", 2024, section 3.3; ties
      and NaN as its code has them.
    """
    if np.isnan(metrics).all():
        return np.zeros(len(metrics))
    rewards = _rewards(metrics)
    best = int(np.argmax(rewards))  # NaN is the greatest to numpy, as to torch
    if ties == "last":
        best = 0
        for s in range(1, len(rewards)):
            best = best if rewards[best] > rewards[s] else s
    return (np.arange(len(rewards)) == best).astype(np.float64)


def reference_avg_ce_weights(metrics: Metrics) -> Shares:
    """Returns softmax(exp(-metrics)) over the sources in bfloat16 (FuseLLM's AvgCE).

    Nearly uniform whatever the metrics, as exp(-metric) is in [0, 1]. The weights sum
    to 1 but for bfloat16's rounding; all are NaN where one metric is.
    """
    raised = np.exp(_rewards(metrics))
    return _bfloat16(raised / raised.sum())


def _rewards(metrics: Metrics) -> Shares:
    with np.errstate(divide="ignore", over="ignore"):
        return _bfloat16(1.0 / _bfloat16(np.exp(_bfloat16(metrics))))


def _bfloat16(numbers: Float64[np.ndarray, " s"]) -> Float64[np.ndarray, " s"]:
    """Rounds to the nearest number of bfloat16, ties to even; NaN and inf stay."""
    bits = numbers.astype(np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    kept = (rounded & np.uint32(0xFFFF0000)).view(np.float32)
    return np.where(np.isfinite(numbers), kept, numbers).astype(np.float64)


def _running(costs: Float[np.ndarray, " r"] | Bool[np.ndarray, " r"]) -> np.ndarray:
    """Sums in front of every border: none in front of the first."""
    return np.concatenate([[0.0], np.cumsum(costs, dtype=np.float64)])
