"""Scores windows with a causal language model: no Beam, whatever runs it.

    scorer = load(ScorerSettings(model="models/smollm2"))
    scored = scorer.score(windows)

Logits stay on the device, some positions at a time; what is kept of them leaves it.
Batches are a pure function of the windows, and the result depends on nothing else but
model, settings and hardware.
"""

import dataclasses
import itertools
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch

from schemas import scores
from schemas.scores import Score
from schemas.windows import Window
from transforms import (
    adapters,
    causal,
    devices,
    encodings,
    loading,
    logits,
    overlap,
    tokenizer,
    vllm_engine,
)
from transforms.adapters import Parts
from transforms.causal import Dtype
from transforms.engine import Engine, Row, Runs
from transforms.functional import chances, counted, nucleus
from transforms.functional.nucleus import Nucleus
from transforms.loading import Loading
from transforms.logits import Kept
from transforms.tokenizer import Encoding, Tokenizer

Backend = Literal["transformers", "vllm"]

_AHEAD = 2
"""Groups of windows that are read and tokenized ahead."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScorerSettings:
    """Which model scores, and how it is run.

    Attributes:
      model: a local folder, a `*.gguf` file, or a name on the Hugging Face hub; or the
        same of a LoRA adapter.
      tokenizer: the same for its tokenizer; None = the model's own.
      top_k: entries kept for each position; 0 = none.
      top_p: mass that the entries of a position need not exceed; None = all stay.
      min_k: entries that stay in any case, where `top_p` is set.
      tail_samples: ids drawn for each position from what is not kept; 0 = none.
      kernels: whether Triton's kernels may reduce logits, where they can.
      dtype: number format of the weights; `auto` is bfloat16 on a GPU that has it.
      device: `cpu`, `cuda`, `cuda:N`, or `auto`: CUDA where there is one.
      batch_tokens: tokens of a forward pass, padding, if any, included.
      threads: threads of the CPU's arithmetic; None = torch's choice.
      tune_allocator: whether glibc keeps large blocks, which is faster on a CPU.
      revision: the hub's hash of the model's files; None = the newest.
      share_device: whether other processes may have the same GPU.
      loading: adapter, quantization and layout over devices.
      backend: what runs the model: transformers, or vLLM in this process.
      compile: whether torch compiles the model: minutes at the first batch.
      pad: whether windows are padded, and not packed, whatever the model takes.
    """

    model: str
    tokenizer: str | None = None
    top_k: int = 10
    top_p: float | None = None
    min_k: int = 1
    tail_samples: int = 0
    kernels: bool = True
    dtype: Dtype = "auto"
    device: str = "auto"
    batch_tokens: int = 4096
    threads: int | None = None
    tune_allocator: bool = True
    revision: str | None = None
    share_device: bool = False
    loading: Loading = loading.PLAIN
    backend: Backend = "transformers"
    compile: bool = False
    pad: bool = False

    def __post_init__(self) -> None:
        """Checks what needs no model."""
        for name in ("top_k", "tail_samples"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        nucleus.of(self.top_p, self.min_k, k=max(1, self.top_k))
        if self.batch_tokens < 1:
            raise ValueError(f"batch_tokens must be positive, got {self.batch_tokens}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be positive, got {self.threads}")
        self.loading.check(self.device, compiled=self.compile)
        if self.backend == "vllm":
            vllm_engine.refuse(
                self.device,
                self.tail_samples,
                self.loading,
                compile=self.compile,
                pad=self.pad,
                no_kernels=not self.kernels,
                share_device=self.share_device,
                threads=self.threads,
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """Scores of windows, in their order.

    Attributes:
      scores: one for each window; one that failed has an error.
      halved_batches: how often memory ran out and a batch was cut in two. Equal
        windows give equal bytes only where it is 0.
      too_large: windows that failed because memory did not hold them alone.
    """

    scores: list[Score]
    halved_batches: int
    too_large: int = 0


def load(settings: ScorerSettings) -> "Scorer":
    """Loads model and tokenizer as `load_model` does, ready to score.

    Raises:
      FileNotFoundError: if a path does not exist.
      ValueError: if the device is not there or taken, or the model has no weights that
        may be read or is not causal.
    """
    tokens = tokenizer.load(settings.tokenizer or settings.model)
    chosen = nucleus.of(settings.top_p, settings.min_k, k=max(1, settings.top_k))
    model, engine = None, None
    if settings.backend == "vllm":
        device = _prepared(settings)
        engine = vllm_engine.load(
            _parts(settings),
            dtype=causal.choose_dtype(settings.dtype, device),
            n_ids=tokens.size,
            top_k=settings.top_k,
            chosen=chosen,
            batch_tokens=settings.batch_tokens,
        )
    else:
        model = load_model(settings)
    return Scorer(
        model,
        tokens,
        top_k=settings.top_k,
        chosen=chosen,
        tail_samples=settings.tail_samples,
        kernels=settings.kernels,
        batch_tokens=settings.batch_tokens,
        engine=engine,
        packed=not settings.pad,
        compiled=settings.compile,
    )


def load_model(settings: ScorerSettings) -> Any:
    """Loads a model for inference; sets the process's threads and allocator.

    A GPU is this process's alone from now on, unless it is to be shared.

    Raises:
      FileNotFoundError: if a path does not exist.
      ValueError: if the device is not there or taken, or the model has no weights that
        may be read.
    """
    device = _prepared(settings)
    return loading.load_model(
        settings.model,
        dtype=causal.choose_dtype(settings.dtype, device),
        device=device,
        revision=settings.revision,
        how=settings.loading,
    )


def _prepared(settings: ScorerSettings) -> torch.device:
    device = causal.choose_device(settings.device)
    if settings.backend == "vllm":
        device = vllm_engine.first_gpu(device)
    return devices.prepare(
        device,
        share=settings.share_device,
        threads=settings.threads,
        tune_allocator=settings.tune_allocator,
        every=settings.loading.split,
    )


def resolved(settings: ScorerSettings) -> dict[str, Any]:
    """Makes definite, for this machine, what the settings leave to it.

    Raises:
      ValueError: if the device is unknown or not here.
    """
    causal.choose_device(settings.device)
    return resolved_for_workers(settings)


def resolved_for_workers(settings: ScorerSettings) -> dict[str, Any]:
    """Makes definite, as this machine finds it, what the settings leave to it.

    A GPU that is named need not be here: a job may start on a machine without one, and
    `load` looks for it where the work is done.

    Raises:
      ValueError: if the device is unknown, or its dtype cannot be known here.
    """
    device = causal.name_device(settings.device)
    threads = settings.threads or torch.get_num_threads()
    dtype = causal.choose_dtype(settings.dtype, device)
    return {
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": threads if device.type == "cpu" else None,
    }


def model_fingerprint(model: str, adapter: str | None = None) -> str:
    """Digests configuration and weights of a model with what is merged into it."""
    return adapters.fingerprint(adapters.split(model, adapter))


def fingerprint_of(settings: ScorerSettings) -> str:
    """Digests the model that settings name, in the revisions that they name."""
    return adapters.fingerprint(_parts(settings))


def pinned(settings: ScorerSettings) -> ScorerSettings:
    """Names the base, the adapter and the hub's hashes of both as they are now.

    Workers that load a model by what this returns load the same one, whatever is
    uploaded meanwhile.
    """
    parts = adapters.pinned(_parts(settings))
    return dataclasses.replace(
        settings,
        model=parts.model,
        tokenizer=settings.tokenizer or settings.model,
        revision=parts.revision,
        loading=dataclasses.replace(
            settings.loading,
            adapter=parts.adapter,
            adapter_revision=parts.adapter_revision,
        ),
    )


def _parts(settings: ScorerSettings) -> Parts:
    return adapters.split(
        settings.model,
        settings.loading.adapter,
        revision=settings.revision,
        adapter_revision=settings.loading.adapter_revision,
    )


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class _Group:
    """Windows that are being scored.

    Attributes:
      windows: the windows.
      found: the tokens of each, or why there are none.
      kept: by place, what is kept of a window, or why nothing is.
      missing: windows whose rows have not run yet.
      halved: batches that were cut in two.
    """

    windows: Sequence[Window]
    found: list[Encoding | str]
    kept: dict[int, Kept | str] = dataclasses.field(default_factory=dict)
    missing: int = 0
    halved: int = 0


class Scorer:
    """A model and its tokenizer, ready to score; threads may share it.

    Ids from the tokenizer's size on, by which some models' logits are padded, have
    their part in the log-sum-exp, as in the model itself, but are never kept.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        *,
        top_k: int = 10,
        chosen: Nucleus | None = None,
        tail_samples: int = 0,
        batch_tokens: int = 4096,
        packed: bool = True,
        kernels: bool = True,
        compiled: bool = False,
        engine: Runs | None = None,
    ) -> None:
        """Wraps a loaded model.

        Args:
          model: a causal language model of transformers, in evaluation mode; None
            where an engine has one.
          tokenizer: its tokenizer.
          top_k: entries to keep for each position; 0 = none, which is faster.
          chosen: which of them stay; None = all.
          tail_samples: ids to draw for each position from what is not kept, by
            chances that depend on window id, position and draw alone.
          batch_tokens: tokens of a forward pass, padding included.
          packed: whether windows are laid end to end, where the model takes that.
          kernels: whether Triton's kernels may be used, where they can, and where
            nothing is drawn.
          compiled: whether torch compiles the model: minutes at the first batch.
          engine: what runs the model; None = transformers does.

        Raises:
          ValueError: if the model is not causal.
        """
        self.tokenizer = tokenizer
        self.engine: Runs = engine or Engine(
            model,
            n_ids=tokenizer.size,
            top_k=top_k,
            chosen=chosen,
            batch_tokens=batch_tokens,
            packed=packed,
            kernels=kernels and not tail_samples,
            compiled=compiled,
        )
        self._k = top_k
        self._tail_samples = tail_samples

    def score(self, windows: Sequence[Window]) -> Scored:
        """Scores the windows of a slice.

        A window fails, and no other with it, where its tokens do not tile its bytes,
        it is longer than the model's context, a logit is not finite, or memory does
        not hold it.
        """
        (scored,) = self._scored(self._read([windows]))
        return scored

    def stream(
        self, groups: Iterable[Sequence[Window]]
    ) -> Generator[Scored, None, None]:
        """Scores groups of windows as `score` does, batches across groups included.

        Groups are read and tokenized ahead, in a thread that ends with the generator.

        Args:
          groups: windows; their iterator is used in that thread alone.

        Yields:
          The scores of each group, in order, as soon as they are there.

        Raises:
          Exception: what `groups` raises, at once.
        """
        with overlap.ahead(self._read(groups), _AHEAD) as read:
            yield from self._scored(read)

    def _read(self, groups: Iterable[Sequence[Window]]) -> Iterator[_Group]:
        """Tokenizes groups of windows."""
        for windows in groups:
            tokens = encodings.encode(self.tokenizer, windows)
            yield _Group(
                windows=windows,
                found=[self._checked(encoding) for encoding in tokens],
            )

    def _scored(self, groups: Iterator[_Group]) -> Iterator[Scored]:
        """Runs the model over groups; yields each as soon as all of it is scored."""
        unfinished: deque[_Group] = deque()
        places: dict[int, tuple[_Group, int]] = {}
        for ran in self.engine.run(self._rows(groups, unfinished, places)):
            for row, kept in zip(ran.rows, ran.kept, strict=True):
                group, place = places.pop(row.place)
                made = _does_not_fit(len(row)) if kept is None else kept
                group.kept[place] = made
                group.missing -= 1
            group.halved += ran.halved  # of the last row: only their sum counts
            while unfinished and not unfinished[0].missing:
                yield self._finish(unfinished.popleft())
        for group in unfinished:  # those without a row
            yield self._finish(group)

    def _rows(
        self,
        groups: Iterator[_Group],
        unfinished: deque[_Group],
        places: dict[int, tuple[_Group, int]],
    ) -> Iterator[Row]:
        """Yields the rows of groups, and notes whose they are."""
        numbers = itertools.count()
        for group in groups:
            unfinished.append(group)
            found = enumerate(group.found)
            sound = {p: e.token_ids for p, e in found if isinstance(e, Encoding)}
            group.missing = len(sound)
            for place, ids in sound.items():
                number = next(numbers)
                places[number] = group, place
                name = group.windows[place].window_id
                yield Row(
                    place=number,
                    token_ids=ids,
                    chances=chances.derive(
                        "score", name, len(ids) - 1, self._tail_samples
                    ),
                )

    def _finish(self, group: _Group) -> Scored:
        """Makes the scores of a group."""
        made = [
            self._record(window, group.found[place], group.kept.get(place))
            for place, window in enumerate(group.windows)
        ]
        return Scored(
            scores=made,
            halved_batches=group.halved,
            too_large=sum(isinstance(one, str) for one in group.kept.values()),
        )

    def _checked(self, encoding: Encoding | str) -> Encoding | str:
        """Returns the tokens of a window, or why the model cannot read them."""
        if isinstance(encoding, str):
            return encoding
        highest, length = encoding.token_ids.max(), len(encoding.token_ids) - 1
        width, longest = self.engine.width, self.engine.longest
        if highest >= width:
            return (
                f"token ids must be below {width}, the model's logits, got"
                f" {highest} from tokenizer {self.tokenizer.name}; name the model's own"
                " tokenizer, or leave this document out"
            )
        if longest is not None and length > longest:
            return (
                f"a window must fit the model's context of {longest} tokens, got"
                f" {length}; prepare windows with a smaller max_tokens, and name this"
                " model's tokenizer there"
            )
        return encoding

    def _record(
        self, window: Window, encoding: Encoding | str, kept: Kept | str | None
    ) -> Score:
        """Makes the row of a window from its tokens and what was kept, or an error."""
        n_bytes = counted.counted_bytes(len(window.text.encode()), window.loss_spans)
        if isinstance(kept, Kept) and not kept.finite.all():
            kept = logits.not_finite(kept)
        if isinstance(encoding, str) or isinstance(kept, str):
            error = encoding if isinstance(encoding, str) else kept
            return scores.failed(
                window.window_id, n_bytes, str(error), self._k, self._tail_samples
            )
        assert kept is not None
        counts = counted.counted_tokens(encoding.byte_ends, window.loss_spans)[1:]
        return Score(
            window_id=window.window_id,
            token_ids=encoding.token_ids,
            byte_ends=encoding.byte_ends,
            top_ids=kept.top_ids,
            top_logprobs=kept.top_logprobs,
            logsumexp=kept.logsumexp,
            gold_logprob=kept.gold_logprob,
            nll_nats=-float(kept.gold_logprob[counts].sum(dtype=np.float64)),
            n_bytes=n_bytes,
            sampled_ids=kept.sampled_ids if self._tail_samples else None,
        )


def _does_not_fit(length: int) -> str:
    return (
        f"memory must hold one window, but not even {length} tokens alone fit; prepare"
        " windows with a smaller max_tokens, or choose a smaller dtype or model"
    )
