"""What a run will take: bytes, device time and money, from sizes and rates.

Arithmetic alone: nothing here reads a file or a clock. Bytes of the files that models
write follow formulas whose constants were fitted to real files (`docs/log.md`): scores
to SmolLM2's at 4 to 64 entries, fused rows at vocabularies of 4,096 and 49,152 and 4 to
32 entries; beyond that they are extrapolated. With b = log2(vocabulary) / 8, the bytes
of a whole id, one position takes

    scores   (0.92 k - 0.75) b + 1.27 k^(3/4) + 4.1 + 0.75 b + 0.7 + 0.95 b r
             ids                 logprobs   gold, lse  token   end   sampled ids
    fused    1.7 + (0.6 b + 0.03) (k + r) + 0.65 b + 1.95
             distribution                   token    chunks and their ends

and every window, row group and file something of its own. Floating point is meant:
10^12 tokens are no exact count.
"""

import dataclasses
import math
from collections.abc import Sequence

GB = 1e9
"""Bytes that storage is paid by."""

HOUR_S = 3600.0
FORWARD_FLOPS = 2.0
"""Operations for each parameter and token that is scored; attention is left out."""
TRAINING_FLOPS = 6.0
"""The same where it is trained on: forward, and twice that backward."""
CHECKPOINT_BYTES = 12.0
"""Of each parameter: float32 weight and both moments of AdamW."""
CHECKPOINTS = 2
"""Checkpoints on the disk at once: the old one goes when the new one is whole."""

_SCORED_WINDOW_BYTES = 50.0  # its id, cost, bytes
_SCORED_GROUP_BYTES = 1_000.0
_FUSED_WINDOW_BYTES = 24.0
_SOURCE_WINDOW_BYTES = 12.0  # its cost, coverage and weight
_FUSED_GROUP_BYTES = 3_500.0
_FUSED_FILE_BYTES = 4_500.0
_SCORED_FILE_BYTES = 1_900.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """How much text goes through a stage.

    Attributes:
      text_bytes: UTF-8 bytes of the windows.
      windows: windows.
      slices: files that every later stage writes.
      groups: row groups of the windows.
    """

    text_bytes: float
    windows: float
    slices: int
    groups: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What one stage takes.

    Attributes:
      name: the command, and the model where it is about one.
      tokens: tokens that go through it; None where it counts none.
      bytes: of what it writes.
      cpu_hours: hours of one core.
      gpu_hours: hours of one device.
    """

    name: str
    tokens: float | None
    bytes: float
    cpu_hours: float = 0.0
    gpu_hours: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Prices in one currency; None where none was given.

    Attributes:
      gpu_hour: of a device for an hour.
      cpu_hour: of a core for an hour.
      gb_month: of 10^9 bytes kept for a month.
    """

    gpu_hour: float | None = None
    cpu_hour: float | None = None
    gb_month: float | None = None

    def work(self, stages: Sequence[Stage]) -> float | None:
        """Returns what the hours cost; None where no price of hours was given.

        Hours without a price cost nothing here.
        """
        if self.gpu_hour is None and self.cpu_hour is None:
            return None
        gpu = sum(stage.gpu_hours for stage in stages) * (self.gpu_hour or 0.0)
        return gpu + sum(stage.cpu_hours for stage in stages) * (self.cpu_hour or 0.0)

    def month(self, stages: Sequence[Stage]) -> float | None:
        """Returns what it costs to keep all that was written for a month."""
        if self.gb_month is None:
            return None
        return sum(stage.bytes for stage in stages) / GB * self.gb_month


def volume(
    file_bytes: Sequence[float],
    windows_per_byte: float,
    *,
    group_windows: int,
    slice_bytes: int,
) -> Volume:
    """Cuts files of text into row groups and slices as `prepare` does.

    A row group holds `group_windows` windows; a slice takes row groups of one file
    until it holds `slice_bytes`. So no slice reaches over two files, and the last
    group and slice of a file may be small.

    Args:
      file_bytes: bytes of text of each file, after it was cut to its split.
      windows_per_byte: windows for each byte of text.
      group_windows: windows of a row group.
      slice_bytes: bytes of text of a slice.

    Example:
      >>> volume([1000.0, 300.0], 0.01, group_windows=2, slice_bytes=300)
      Volume(text_bytes=1300.0, windows=13.0, slices=4, groups=7)
    """
    group_bytes = group_windows / windows_per_byte
    groups_a_slice = max(1, math.ceil(slice_bytes / group_bytes))
    groups = [math.ceil(size / group_bytes) for size in file_bytes]
    text_bytes = math.fsum(file_bytes)
    return Volume(
        text_bytes=text_bytes,
        windows=text_bytes * windows_per_byte,
        slices=sum(math.ceil(n / groups_a_slice) for n in groups),
        groups=sum(groups),
    )


def scores_bytes_per_token(top_k: int, tail_samples: int, vocabulary: int) -> float:
    """Returns the bytes of one position of a scores file; see the module's formula.

    Args:
      top_k: entries kept, k.
      tail_samples: ids drawn, r.
      vocabulary: ids of the model's tokenizer.
    """
    id_bytes = _id_bytes(vocabulary)
    entries = (0.92 * top_k - 0.75) * id_bytes + 1.27 * top_k**0.75
    return entries + 4.1 + 0.75 * id_bytes + 0.7 + 0.95 * id_bytes * tail_samples


def fused_bytes_per_token(entries: int, vocabulary: int) -> float:
    """Returns the bytes of one token of a fused file; see the module's formula.

    Args:
      entries: entries kept and drawn, k + r.
      vocabulary: ids of the target's tokenizer.
    """
    id_bytes = _id_bytes(vocabulary)
    distribution = 1.7 + (0.6 * id_bytes + 0.03) * entries
    return distribution + 0.65 * id_bytes + 1.95


def _id_bytes(vocabulary: int) -> float:
    return math.log2(max(2, vocabulary)) / 8


def scores_bytes(tokens: float, of: Volume, per_token: float) -> float:
    """Returns the bytes of a model's scores."""
    files = of.groups * _SCORED_GROUP_BYTES + of.slices * _SCORED_FILE_BYTES
    return tokens * per_token + of.windows * _SCORED_WINDOW_BYTES + files


def fused_bytes(
    tokens: float, of: Volume, per_token: float, *, sources: int, group_tokens: int
) -> float:
    """Returns the bytes of fused shards.

    Args:
      tokens: the target's, start tokens included.
      of: the windows.
      per_token: bytes of a token.
      sources: candidates, of which each window notes cost, coverage and weight.
      group_tokens: tokens of a row group at most.
    """
    groups = max(of.slices, math.ceil(tokens / group_tokens))
    noted = _FUSED_WINDOW_BYTES + sources * _SOURCE_WINDOW_BYTES
    files = groups * _FUSED_GROUP_BYTES + of.slices * _FUSED_FILE_BYTES
    return tokens * per_token + of.windows * noted + files


def training_bytes(parameters: int, model_bytes: int, models: int) -> float:
    """Returns the most that trained models and one training's checkpoints take.

    Args:
      parameters: of the target.
      model_bytes: of a finished model, as it is stored.
      models: trainings, of which each leaves a model.
    """
    return models * model_bytes + CHECKPOINTS * CHECKPOINT_BYTES * parameters


def tokens_per_second(flops: float, parameters: int, per_parameter: float) -> float:
    """Estimates a rate: FLOP/s that are really reached over FLOP a token.

    Args:
      flops: operations a second, as utilised and not as advertised.
      parameters: of the model.
      per_parameter: operations for each parameter and token.

    Example:
      >>> tokens_per_second(4e14, 7 * 10**9, FORWARD_FLOPS) // 1
      28571.0
    """
    return flops / (per_parameter * parameters)


def hours(tokens: float, per_second: float) -> float:
    """Returns the hours that tokens take at a rate of tokens a second.

    Example:
      >>> hours(7200.0, 1.0)
      2.0
    """
    return tokens / per_second / HOUR_S
