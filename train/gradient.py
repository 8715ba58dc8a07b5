"""The objective of a chunk of positions, and its gradient by their logits.

One softmax is measured; what it weighs in the losses makes one factor a row, by which
all its exponentials are multiplied, and a few edges, the gradients at the kept ids and
at the gold id, which are set one by one.
"""

import dataclasses
from typing import Any

import torch

from train import divergences, likelihoods, softmax
from train.divergences import Divergence
from train.objective import Objective, Scales
from train.rows import Rows
from train.softmax import Measured
from train.tensors import Factors, KeptNumbers, Logits, Nats, Targets
from transforms import compilers

_CHUNK_BYTES = {"cpu": 1 << 23, "cuda": 1 << 30}
"""What a chunk's logits take at once in all their forms: on a CPU, what fits its cache.
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """All that a chunk's loss depends on but its logits.

    Attributes:
      rows: what each position is compared with, already tempered.
      objective: what is minimized.
      scales: what each position and chunk weighs.
      scale: what the head's outputs are multiplied by to be logits.
      cap: c of c tanh(x / c), which they then go through; None: they do not.
      kernels: whether Triton's kernels may be used where they can.
    """

    rows: Rows
    objective: Objective
    scales: Scales
    scale: float = 1.0
    cap: float | None = None
    kernels: bool = True

    def fast(self, device: torch.device) -> bool:
        """Says whether the kernels are used on a device."""
        plain = not self.objective.label_smoothing
        plain = plain and self.objective.heat == 1
        return self.kernels and plain and compilers.has_triton(device)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Writing:
    """The gradient of a chunk by the logits that one softmax is of.

    Attributes:
      factor: what the exponentials of a row are multiplied by.
      edges: the gradient at the kept ids, and last at gold.
    """

    factor: Factors
    edges: KeptNumbers


def require_kernels(device: torch.device) -> None:
    """Refuses a device on which Triton's kernels cannot run.

    Raises:
      ValueError: naming the device.
    """
    if not compilers.has_triton(device):
        raise ValueError(
            "kernels must run on CUDA, where Triton is installed, and the device is"
            f" {device}, or Triton is not; leave --kernels out"
        )


def parts(
    task: Task,
    width: int,
    device: torch.device,
    given: torch.dtype,
    *more: torch.dtype,
) -> list[slice]:
    """Divides the positions, so that no chunk of text is cut.

    Args:
      task: what is computed.
      width: logits of a position.
      device: where they are.
      given: type of the logits that `loss_and_gradient` overwrites.
      more: types of what else is held of each logit at the same time.
    """
    count = len(task.rows.targets)
    limit = _CHUNK_BYTES.get(device.type, _CHUNK_BYTES["cuda"])
    held = given.itemsize * _copies(task, device) + sum(one.itemsize for one in more)
    # A product of a few rows with the whole head would be bound by reading the head.
    size = min(max(count, 1), max(128, limit // (held * width)))
    if task.rows.chunks is None or not task.objective.matches_chunks:
        return [slice(at, min(at + size, count)) for at in range(0, count, size)]
    of = task.rows.chunks.of
    free = ((of[1:] != of[:-1]) | (of[1:] < 0)).nonzero().squeeze(-1) + 1
    borders, found, at = free.cpu(), [], 0
    while at < count:
        later = borders[torch.searchsorted(borders, at + size) :]
        stop = int(later[0]) if len(later) else count
        found.append(slice(at, stop))
        at = stop
    return found


def _copies(task: Task, device: torch.device) -> int:
    """Counts what `loss_and_gradient` holds of each logit, in the logits' type."""
    if task.fast(device):
        return 1
    return 1 + (task.cap is not None) + (task.objective.heat != 1)


def loss_and_gradient(outputs: Logits, task: Task, part: slice) -> torch.Tensor:
    """Sums the losses of a chunk and overwrites its head's outputs with dL/doutputs.

    Args:
      outputs: of the head; float32 or wider, unless the kernels are used.
      task: what they are compared with.
      part: which of the task's positions they are of.

    Returns:
      The sums of the CLM loss, of the fusion loss, nats, and of the chunks'; and over
      positions with a fused row: how many agree with it on the likeliest id, and the
      target's probability of the kept ids.
    """
    if task.fast(outputs.device):
        return _by_kernels(outputs, task, part)
    rows, objective = task.rows, task.objective
    gold, ids, kept = rows.targets[part], rows.ids[part], rows.kept[part]
    heat, smooth = objective.heat, objective.label_smoothing
    steepness = softmax.warp(outputs, task.scale, task.cap)
    mean = outputs.mean(-1) if smooth else None  # (c,)
    tempered = outputs / heat if heat != 1 else None
    found = softmax.measure(outputs, gold, ids, kept)
    if tempered is None:
        sums, writing, _ = _judge(found, found, task, part, mean)
    else:
        cool = softmax.measure(tempered, gold, ids, kept)
        sums, writing, second = _judge(found, cool, task, part, mean)
        assert second is not None
        _write(tempered, second, gold, rows, part)
    _write(outputs, writing, gold, rows, part)
    if tempered is not None:
        outputs.add_(tempered, alpha=1 / heat)
    if smooth:
        share = _clm_factors(task, part, found) * (smooth / outputs.shape[1])
        outputs.sub_(share[:, None])
    softmax.unwarp(outputs, steepness, task.scale)
    return sums


def _by_kernels(outputs: Logits, task: Task, part: slice) -> torch.Tensor:
    from train import kernels  # needs Triton

    rows = task.rows
    shape: dict[str, Any] = {"scale": task.scale, "cap": task.cap}
    gold, ids, kept = rows.targets[part], rows.ids[part], rows.kept[part]
    found = kernels.measure(outputs, gold, ids, kept, **shape)
    sums, writing, _ = _judge(found, found, task, part, None)
    kernels.spread(outputs, found, writing.factor, **shape)
    logits = torch.cat([found.at_kept, found.at_gold[:, None]], 1)
    steep = kernels.slopes(logits, **shape)  # a padding's is that of the id it repeats
    edges = (writing.edges * steep).to(outputs.dtype)
    outputs.scatter_(1, torch.cat([ids, gold[:, None]], 1), edges)
    return sums


def _write(
    exponentials: Logits, writing: _Writing, gold: Targets, rows: Rows, part: slice
) -> None:
    """Makes a gradient of what `softmax.measure` left."""
    exponentials.mul_(writing.factor[:, None])
    places = torch.cat([rows.ids[part], gold[:, None]], 1)
    exponentials.scatter_(1, places, writing.edges)


def _judge(
    found: Measured, cool: Measured, task: Task, part: slice, mean: Nats | None
) -> tuple[torch.Tensor, _Writing, _Writing | None]:
    """Compares a chunk's softmax with its rows.

    Args:
      found: the target's softmax.
      cool: the same at the target's temperature: `found` itself if that is 1.
      task: what it is compared with.
      part: which positions they are.
      mean: mean logit of each row, where labels are smoothed.

    Returns:
      The sums; what to make of the one softmax, and of the other, if it is.
    """
    smooth = task.objective.label_smoothing
    clm = found.norm - (1 - smooth) * found.at_gold
    if mean is not None:
        clm = clm - smooth * mean
    if task.rows.clm_weights is not None:
        taught = task.rows.clm_weights[part].to(clm)
        clm = torch.where(taught > 0, clm * taught, 0.0)
    chunk_sum, slopes = _match_chunks(found, task, part)
    fusion_sum, divergence, heard = _match_rows(cool, task, part)
    seen = _watch(found, task, part)
    sums = torch.stack([clm.sum(), fusion_sum, chunk_sum, *seen])

    clm_factors = _clm_factors(task, part, found)
    pull = clm_factors * (1 - smooth) + slopes
    whole = clm_factors + slopes
    if divergence is None:
        return sums, _spread(found, task, part, whole, pull), None
    if cool is found:
        more = (divergence, heard)
        return sums, _spread(found, task, part, whole, pull, more), None
    none = torch.zeros_like(whole)
    more = (divergence, heard)
    one = _spread(found, task, part, whole, pull)
    return sums, one, _spread(cool, task, part, none, none, more)


def _watch(
    found: Measured, task: Task, part: slice
) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts rows whose likeliest id is the target's, and sums its mass on kept ids."""
    covered = task.rows.covered[part]
    best = task.rows.probs[part].argmax(-1, keepdim=True)
    agree = found.at_kept.gather(1, best).squeeze(1) >= found.top
    mass = found.kept.sum(-1) / found.whole
    return (covered & agree).sum().to(mass), (mass * covered).sum()


def _clm_factors(task: Task, part: slice, found: Measured) -> Factors:
    """Returns what each position's CLM loss weighs in L."""
    scale = task.scales[0].to(found.norm).expand_as(found.norm)
    weights = task.rows.clm_weights
    return scale if weights is None else scale * weights[part].to(scale)


def _match_rows(
    cool: Measured, task: Task, part: slice
) -> tuple[torch.Tensor, Divergence | None, Factors]:
    """Compares positions with their rows; also says what each weighs in L."""
    rows = task.rows
    heard = rows.fused[part].to(cool.norm)
    if rows.weights is not None:
        heard = heard * rows.weights[part].to(heard)
    if not task.objective.matches_rows:
        return torch.zeros_like(heard.sum()), None, heard
    probs, tail = rows.probs[part].to(heard), rows.tail[part].to(heard)
    divergence = divergences.OF[task.objective.fusion_loss](cool, probs, tail)
    value = divergence.value
    if task.objective.fusion_loss == "kl" and rows.negentropies is not None:
        value = value + rows.negentropies[part].to(value)
    return (value * heard).sum(), divergence, heard * task.scales[1].to(heard)


def _match_chunks(
    found: Measured, task: Task, part: slice
) -> tuple[torch.Tensor, Factors]:
    """Compares chunks; also says what each position's -log q(gold) weighs in L."""
    chunks = task.rows.chunks
    if chunks is None or not task.objective.matches_chunks:
        return found.norm.new_zeros(()), torch.zeros_like(found.norm)
    total, slopes = likelihoods.match_chunks(
        found.at_gold - found.norm,
        chunks.of[part],
        chunks,
        task.objective.chunk_temperature,
    )
    return total.to(found.norm), -(slopes * task.scales[2].to(slopes)).to(found.norm)


def _spread(
    found: Measured,
    task: Task,
    part: slice,
    weights: Factors,
    pull: Factors,
    more: tuple[Divergence, Factors] | None = None,
) -> _Writing:
    """Spreads weights over a softmax: the two lines of `loss`, in its words a and b.

    Args:
      found: the softmax.
      task: holds ids and gold.
      part: which positions they are.
      weights: a, what the softmax is multiplied by for CLM and chunks.
      pull: what gold is pulled by; a, but for smoothing.
      more: the rows' divergence, and b.
    """
    gold, ids, kept = (
        x[part] for x in (task.rows.targets, task.rows.ids, task.rows.kept)
    )
    factor = inner = weights
    if more is not None:
        divergence, b = more
        factor = weights + b * (divergence.slope - divergence.total)
        inner = weights - b * divergence.total
    factor = factor / found.whole
    edges = found.kept * (inner / found.whole)[:, None]  # (c, k)
    if more is not None:
        edges = edges + b[:, None] * divergence.pulls
    is_gold = (ids == gold[:, None]) & kept
    edges = torch.where(is_gold, edges - pull[:, None], edges)
    outside = found.gold * factor - pull
    among = torch.where(is_gold, edges, 0.0).sum(-1)
    last = torch.where(is_gold.any(-1), among, outside)
    edges = torch.where(kept, edges, edges[:, :1])  # a padding repeats the first id
    return _Writing(factor=factor, edges=torch.cat([edges, last[:, None]], 1))
