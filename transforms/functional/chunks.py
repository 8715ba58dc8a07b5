"""Cuts a window into chunks between the borders that two tokenizations share.

Over a chunk, source and target write the same bytes, each with tokens of its own; so
the likelihoods that they give it can be compared, whatever their vocabularies::

    target  |The| un|believ|able| one|<EOS>|
    source  |The| unbeliev |able one |<EOS>|
    chunks  |The| unbeliev |able one |<EOS>|
    ends      1           3         5     6   tokens of the target; 0 is the start token

That is what likelihood matching trains on (Minixhofer et al. 2025, arXiv 2503.20083).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int32, Int64

from schemas.errors import AlignmentError
from transforms.functional import rounding

_BITS = 11


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chunks:
    """The chunks of a window, in order; they tile its tokens behind the start token.

    Attributes:
      ends: index of the last target token of each; strictly rising.
      logprobs: what the source gives a chunk's bytes, after all before them, natural
        log; NaN where it says nothing.
    """

    ends: Int32[np.ndarray, " c"]
    logprobs: Float64[np.ndarray, " c"]


def cut_chunks(
    target_byte_ends: Int32[np.ndarray, " i"],
    source_byte_ends: Int32[np.ndarray, " j"],
    gold_logprob: Float[np.ndarray, " r"],
    *,
    target_eos: bool,
    source_eos: bool,
) -> Chunks:
    """Cuts wherever a target token and a source token end at the same border.

    Tokens without bytes (a dummy prefix that stands alone) are chunks of their own as
    far as both have them at the same byte, in order; others go with the token behind,
    or, behind all text, with the last. The EOS is a chunk of its own: NaN where the
    source has none; where only the source has one, its cost is left out. So the chunks'
    log-probabilities sum to the source's log-probability of the text, and of its end
    where both predict it.

    Args:
      target_byte_ends: end offsets, start token included.
      source_byte_ends: the same of the source; ends at the same byte.
      gold_logprob: the source's, natural log, of each token behind its start token.
      target_eos: whether the target's tokens end with its EOS.
      source_eos: whether the source's do.

    Raises:
      AlignmentError: if one has no text, or if they end at different bytes.
    """
    target = target_byte_ends[: target_byte_ends.size - int(target_eos)]
    source = source_byte_ends[: source_byte_ends.size - int(source_eos)]
    if min(target.size, source.size) < 2 or target[-1] != source[-1]:
        raise AlignmentError(
            "both tokenizations must cover the same bytes, with a token or more, got"
            f" {target.size - 1} tokens up to byte {target[-1:]} for the target and"
            f" {source.size - 1} up to {source[-1:]} for the source; score the same"
            " windows with both"
        )
    _, ends, stops = np.intersect1d(
        _borders(target), _borders(source), assume_unique=True, return_indices=True
    )
    ends, stops = ends[1:], stops[1:]  # without the start tokens
    ends[-1], stops[-1] = target.size - 1, source.size - 1
    logprobs = _sums(gold_logprob, stops)
    if target_eos:
        said = gold_logprob[-1:] if source_eos else [np.nan]
        ends, logprobs = np.append(ends, target.size), np.append(logprobs, said)
    return Chunks(ends=ends.astype(np.int32), logprobs=logprobs)


def cut_nothing(tokens: int) -> Chunks:
    """Returns the one chunk of a window of which no source says anything.

    Args:
      tokens: of the target, start token included; no chunk where it stands alone.
    """
    ends = np.arange(tokens, dtype=np.int32)[1:][-1:]
    return Chunks(ends=ends, logprobs=np.full(len(ends), np.nan))


def round_logprobs(logprobs: Float64[np.ndarray, " c"]) -> Float32[np.ndarray, " c"]:
    """Rounds to the 11 significant bits that rows keep: half of the bytes are 0."""
    return rounding.round_bits(logprobs, _BITS)


def _borders(byte_ends: Int32[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Numbers the border behind each token, alike for all tokenizations of a text.

    A border is its byte, and how many tokens without bytes stand between it and there.
    """
    places = np.arange(byte_ends.size)
    first = np.maximum.accumulate(
        np.where(np.diff(byte_ends, prepend=-1) > 0, places, 0)
    )
    return (byte_ends.astype(np.int64) << 32) + places - first


def _sums(
    gold_logprob: Float[np.ndarray, " r"], stops: Int64[np.ndarray, " c"]
) -> Float64[np.ndarray, " c"]:
    """Adds the log-probabilities of the tokens up to each stop, from the one before.

    Each chunk on its own, as a running sum would carry a NaN to all that follow.
    """
    starts = np.concatenate([[0], stops[:-1]])
    nats = gold_logprob[: stops[-1]].astype(np.float64)
    return np.add.reduceat(nats, starts)
