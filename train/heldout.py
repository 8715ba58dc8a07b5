"""Held-out text while a model trains: its bits per byte, and which step was best.

Windows are scored as `train.evaluate` scores those of a saved model, by the weights as
they are in the middle of training: in float32, or where the training computes in
bfloat16 by autocast, before they are rounded to what the target is stored in.

Windows are dealt out to the processes one by one. Where a process holds but a part of
the weights, all must call the model in step, so each of them scores all windows.
"""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from schemas import files
from schemas.errors import SchemaError
from train import checkpoints, evaluate, faults
from train.evaluate import Domains
from transforms.scorer import Scorer
from transforms.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """What a run is measured on.

    Attributes:
      folder: the windows.
      tokenizer: the target's.
      bfloat16: whether the training computes in bfloat16.
    """

    folder: str
    tokenizer: Tokenizer
    bfloat16: bool

    def measure(self, model: Any, share: tuple[int, int]) -> Domains:
        """Sums nats and bytes of a model that is being trained.

        Args:
          model: a whole model; it comes back in the mode it was in.
          share: number of this process, and how many share the windows.

        Raises:
          PeerError: if another process failed.
        """
        target = _bare(model)
        was_training = model.training
        model.eval()
        try:
            with faults.shared(), _own_forward(target):
                return self._sum(target, share, iter)
        finally:
            model.train(was_training)

    def measure_sharded(self, model: Any) -> Domains:
        """Does the same where processes share the weights: every one for all windows.

        Args:
          model: as its wrapper made it; only a call of the whole gathers weights.

        Raises:
          PeerError: if another process failed to read the windows.
          SchemaError: if memory does not hold a batch of them.
        """
        was_training = model.training
        model.eval()
        try:
            with _own_forward(_bare(model)):
                dtype = torch.bfloat16 if self.bfloat16 else torch.float32
                whole = _Whole(model, _bare(model).config, dtype)
                return self._sum(whole, (0, 1), faults.each)
        finally:
            model.train(was_training)
            _shard_again(model)

    def _sum(self, model: Any, share: tuple[int, int], each: evaluate.Each) -> Domains:
        # A dozen tokens try the model in float32: bfloat16's rounding would look like
        # a model that looks ahead.
        scoring = Scorer(model, self.tokenizer, top_k=0)
        kind = next(model.parameters()).device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.bfloat16):
            return evaluate.measure(
                scoring, self.folder, _say_nothing, share, each=each
            )


def _say_nothing(_: str) -> None:
    pass


def _bare(model: Any) -> Any:
    """Returns the target itself, on which the objective is, out of all wrappers."""
    inner = getattr(model, "module", model)  # DeepSpeed's engine
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def _shard_again(model: nn.Module) -> None:
    """Gives back weights that FSDP keeps whole until a backward pass: none follows."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextlib.contextmanager
def _own_forward(model: nn.Module) -> Iterator[None]:
    """Lets a model return logits again, where training made it return losses."""
    given = vars(model).pop("forward", None)
    try:
        yield
    finally:
        if given is not None:
            vars(model)["forward"] = given


class _Whole:
    """A model without halves: every call of it is one of the whole."""

    def __init__(self, model: Any, config: Any, dtype: torch.dtype) -> None:
        self._model = model
        self.base_model = self
        self.config = config
        self.dtype = dtype  # of the arithmetic: whoever gathers weights may cast them

    def parameters(self) -> Iterator[Tensor]:
        """Yields the parameters, of which only the device is asked."""
        yield from self._model.parameters()

    def __call__(self, **inputs: Any) -> Any:
        """Runs the model; what it gathers must be fit for training afterwards.

        Raises:
          SchemaError: if memory does not hold it. A process that tried again by itself
            would gather weights that no other one sends.
        """
        try:
            with torch.inference_mode(False), torch.no_grad():
                return self._model(**inputs)
        except torch.OutOfMemoryError as error:
            raise SchemaError(
                f"memory must hold {inputs['input_ids'].numel()} tokens of held-out"
                f" text beside the training, and does not: {error}; leave --eval_data"
                " out, and evaluate the model afterwards by fusebeam evaluate"
            ) from error


def joined(parts: Sequence[Domains]) -> Domains:
    """Adds up what processes measured."""
    names = sorted({name for part in parts for name in part})
    return {
        name: {
            "nats": math.fsum(part[name]["nats"] for part in parts if name in part),
            **{
                key: sum(part[name][key] for part in parts if name in part)
                for key in ("bytes", "windows", "failed")
            },
        }
        for name in names
    }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How the evaluations of a run have gone so far; it lives in its checkpoints.

    Attributes:
      best: fewest bits per byte over all domains; None before the first evaluation of
        weights that were trained at all.
      best_step: the optimizer step that they were reached at.
      mark: what the next evaluation must undercut by more than `min_delta`.
      bad: how many in a row did not.
    """

    best: float | None = None
    best_step: int | None = None
    mark: float | None = None
    bad: int = 0

    def after(self, step: int, bits: float, min_delta: float) -> "Standing":
        """Returns how things stand after one more evaluation.

        Args:
          step: optimizer steps done.
          bits: per byte, over all domains.
          min_delta: bits per byte that count as progress.
        """
        best = self.best is None or bits < self.best
        forth = self.mark is None or bits < self.mark - min_delta
        return Standing(
            best=bits if best else self.best,
            best_step=step if best else self.best_step,
            mark=bits if forth else self.mark,
            bad=0 if forth else self.bad + 1,
        )


def write(folder: pathlib.Path, standing: Standing, *, keep: bool) -> None:
    """Puts it into a checkpoint; `keep` says whether the best one must not go."""
    told = {**dataclasses.asdict(standing), "keep": keep}
    files.write_json(str(folder / checkpoints.STANDING), told)


def read(checkpoint: pathlib.Path | None) -> Standing:
    """Returns what a checkpoint tells; of none, or of an older one, the beginning."""
    path = checkpoint and checkpoint / checkpoints.STANDING
    if path is None or not path.exists():
        return Standing()
    told = dict(files.read_json(str(path)))
    del told["keep"]
    return Standing(**told)
