"""What a run is watched by: one name for each figure, in every log.

metrics.jsonl, TensorBoard and W&B get the same names and values. transformers puts
`train/` or `eval/` in front of what its trackers are given, so every name but `step`
begins with one of them; `spell` takes that off again.

Floating-point operations are those of the model, whatever is computed twice
(Chowdhery et al. 2022, arXiv 2204.02311, appendix B)::

    F = 6 N + 12 L d T   for each token, forward and backward

N: parameters that a token is multiplied with, so the head but no embeddings, or the
table of embeddings once where the head is that table; frozen ones weigh 4, not 6, as
they get no gradient. L: layers. d: heads times their width. T: tokens of the token's
segment, beyond which it attends to nothing.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from train import rows as counting
from train.rows import Rows

Line = dict[str, float | int]
"""One line of metrics.jsonl."""

_PARTS = tuple(
    f"{name}_sum"
    for name in ("clm", "fusion", "chunk", "agree", "kept", "mass", "tail", "gold")
)
"""What a micro-batch says of itself: sums over its positions."""

_SIDE = {"cpu": 512, "cuda": 8192}
_TRIES = 5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Floating-point operations of a model's training step.

    Attributes:
      of_token: 6 N.
      of_pair: 12 L d: of each pair of a token and a position it may attend to.
    """

    of_token: int
    of_pair: int

    def __call__(self, tokens: float, attended: float) -> float:
        """Counts the operations of segments.

        Args:
          tokens: of all segments.
          attended: sum of the segments' squared lengths.
        """
        return self.of_token * tokens + self.of_pair * attended


def work_of(model: Any) -> Work:
    """Counts what a step of a model costs, by its parameters and configuration.

    All experts of a mixture are counted. What a configuration does not tell, as that of
    a model without attention, costs nothing.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    parameters = [p for p in model.parameters() if tied or p is not embedding.weight]
    sizes = [_numbers(p) for p in parameters]
    factors = [6 if p.requires_grad else 4 for p in parameters]
    config = model.config.get_text_config()
    layers = getattr(config, "num_hidden_layers", None) or 0
    heads = getattr(config, "num_attention_heads", None) or 0
    width = getattr(config, "head_dim", None)
    d = heads * width if width else getattr(config, "hidden_size", 0) * bool(heads)
    return Work(
        of_token=sum(n * f for n, f in zip(sizes, factors, strict=True)),
        of_pair=12 * layers * d,
    )


def _numbers(parameter: Tensor) -> int:
    """Counts the numbers that a parameter stands for, however it is stored here.

    DeepSpeed leaves an empty tensor where other processes hold it, bitsandbytes several
    numbers of 4 bits in each element.
    """
    packed = getattr(parameter, "quant_state", None)
    if packed is not None:
        return math.prod(packed.shape)
    return int(getattr(parameter, "ds_numel", parameter.numel()))


@functools.cache
def measured_peak(device: str, dtype: torch.dtype, threads: int) -> float:
    """Returns the operations per second of a large square product, the best of some.

    Args:
      device: where it is computed.
      dtype: of the factors.
      threads: torch's threads, by which a CPU's figure is told from another.
    """
    kind = torch.device(device).type
    side = _SIDE.get(kind, _SIDE["cuda"])
    factor = torch.ones(side, side, dtype=dtype, device=device)
    taken = []
    for _ in range(1 + _TRIES):  # the first warms up
        if kind == "cuda":
            torch.cuda.synchronize(device)
        then = time.perf_counter()
        factor @ factor
        if kind == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - then)
    return 2 * side**3 / min(taken[1:])


def of_rows(rows: Rows) -> dict[str, Tensor]:
    """Sums what the fused rows of a micro-batch say, whatever the target makes of it.

    Returns:
      mass_sum: their probability on kept ids.
      tail_sum: their probability in the tail.
      gold_sum: rows whose likeliest id is the token that comes next.
    """
    likeliest = rows.ids.gather(1, rows.probs.argmax(-1, keepdim=True)).squeeze(1)
    return {
        "mass_sum": (rows.probs.sum(-1) * rows.covered).sum(),
        "tail_sum": (rows.tail * rows.covered).sum(),
        "gold_sum": (rows.covered & (likeliest == rows.targets)).sum(),
    }


def counts_of(batch: dict[str, Tensor]) -> Tensor:
    """Takes out of a batch what `data.Collator` tells of it.

    Returns:
      What `rows.count` counts; positions that count and have a fused row; tokens; sum
      of squared lengths of segments; rows that could not be read; and positions with a
      fused row by source.
    """
    covered = batch["loss_mask"] & (batch["top_ids"] >= 0).any(-1)
    told = (batch.pop(name) for name in ("tokens", "attended", "skipped"))
    parts = torch.stack([covered.sum(), *told])
    counts = counting.count(batch)
    return torch.cat([counts.double(), parts.double(), batch.pop("sources")])


class Meter:
    """Adds up what the steps since the last line came to."""

    def __init__(
        self,
        sources: Sequence[str],
        work: Work,
        peak: float,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begins at the first step.

        Args:
          sources: names of those that the fused rows have weights of, in their order.
          work: operations of the model.
          peak: operations per second of all devices together.
          clock: tells seconds.
        """
        self._names, self._work, self._peak = list(sources), work, peak
        self._clock = clock
        self.start()

    def start(self) -> None:
        """Forgets all before this moment."""
        self._parts = torch.zeros(len(_PARTS) + 4, dtype=torch.float64)
        self._tokens = self._attended = 0.0
        self._sources = [0.0] * len(self._names)
        self._then = self._clock()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time of a block out."""
        began = self._clock()
        try:
            yield
        finally:
            self._then += self._clock() - began

    def add_counts(
        self, tokens: float, attended: float, sources: Sequence[float]
    ) -> None:
        """Adds what `data.Collator` sums, of one step and all processes.

        Raises:
          ValueError: if there are not as many sources as there are names.
        """
        if len(sources) != len(self._names):
            raise ValueError(
                f"fused rows must have a weight of each source, {self._names}, but have"
                f" {len(sources)}; fuse again"
            )
        self._tokens += tokens
        self._attended += attended
        pairs = zip(self._sources, sources, strict=True)
        self._sources = [had + more for had, more in pairs]

    def add_losses(
        self, losses: Mapping[str, Tensor], counts: Tensor, *, processes: int
    ) -> None:
        """Adds a micro-batch of this process; nothing waits for the device.

        Args:
          losses: what the model returned.
          counts: what `rows.count` counts, and positions with a fused row: this
            micro-batch's share of those of all processes.
          processes: how many processes there are.
        """
        parts = torch.stack([losses[name].double() for name in _PARTS])
        self._parts = self._parts.to(parts.device)
        # Counts are of all processes, sums of this one; `take` gets their means.
        self._parts += torch.cat([parts * processes, counts.double()])

    def take(self, mean: Callable[[Tensor], Tensor]) -> Line:
        """Returns the figures of the steps since the last call, and begins anew.

        Args:
          mean: averages a tensor over processes.
        """
        *sums, counted, heard, chunks, covered = mean(self._parts).tolist()
        by_name = dict(zip(_PARTS, sums, strict=True))
        seconds = max(self._clock() - self._then, 1e-9)
        flops = self._work(self._tokens, self._attended) / seconds
        over = max(covered, 1.0)
        line: Line = {
            "train/tokens_per_s": round(self._tokens / seconds, 1),
            "train/flops_per_s": round(flops),
            "train/mfu": round(flops / self._peak, 4),
            "train/clm_nats": by_name["clm_sum"] / max(counted, 1.0),
            "train/fusion_nats": by_name["fusion_sum"] / (heard or 1.0),
            "train/coverage": covered / max(counted, 1.0),
            "train/agreement": by_name["agree_sum"] / over,
            "train/fused_accuracy": by_name["gold_sum"] / over,
            "train/kept_mass": by_name["mass_sum"] / over,
            "train/tail_mass": by_name["tail_sum"] / over,
            "train/target_kept_mass": by_name["kept_sum"] / over,
        }
        if chunks:
            line["train/chunk_nats"] = by_name["chunk_sum"] / chunks
        for name, share in zip(self._names, self._sources, strict=True):
            line[f"train/source/{name}"] = share / over
        self.start()
        return line


def spell(line: Line) -> dict[str, float | int]:
    """Returns a line by the names that transformers wants for its trackers."""
    return {
        name.removeprefix("train/").replace("eval/", "eval_", 1): value
        for name, value in line.items()
        if name != "step"  # the axis
    }
