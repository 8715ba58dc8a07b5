"""Runs a model over windows' tokens by vLLM, in this process.

vLLM is asked for one token after each window, which nobody looks at, and for the
logprobs of the window's own tokens: its `prompt_logprobs`. These are over the full
vocabulary, in float32, whatever the sampling; but without the log-sum-exp, so that
logits cannot be had back, and without draws from the tail. It needs room for the token
that it makes: windows may hold two tokens fewer than the model's context.

A model that has failed once is broken, whatever it failed of: what it was at stays in
it, and would come out with what it is asked next. vLLM plans its memory itself, so that
batches are not halved where that runs out.

The extra `vllm` of this distribution says for which versions this is written.
"""

import contextlib
import dataclasses
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from schemas.errors import FusionError, SchemaError
from transforms import causal, checkpoint, extras, loading
from transforms.adapters import Parts
from transforms.engine import Ran, Row
from transforms.functional import listed, nucleus
from transforms.functional.nucleus import Nucleus
from transforms.loading import Loading
from transforms.logits import Kept

_AT_ONCE = 64
"""Budgets of a forward pass that vLLM is given together: it fills its passes itself."""
_SEQUENCES = 256
"""Windows that a forward pass may hold pieces of, at most."""
_APART = "VLLM_ENABLE_V1_MULTIPROCESSING"
"""Variable by which vLLM decides whether the model has a process of its own."""

_SPARE = 8
"""Further entries that are asked for where a vocabulary is padded with other ids."""
_EXTRA_TOKENS = 2
"""Tokens of the context that a window cannot have: its last, and the one after it."""


class VllmEngine:
    """A model that vLLM runs; threads may share it.

    Attributes:
      width: token ids are below it.
      longest: tokens of a window that it can read, the last left out.
      layout: how rows are laid into batches.
      reducer: what reduces logits.
    """

    def __init__(
        self,
        llm: Any,
        sampling: Any,
        *,
        width: int,
        longest: int | None,
        n_ids: int,
        top_k: int,
        batch_tokens: int,
        chosen: Nucleus | None = None,
    ) -> None:
        """Wraps a loaded model.

        Args:
          llm: a `vllm.LLM`.
          sampling: `vllm.SamplingParams` that ask for the logprobs of so many tokens
            at each of the prompt; what is kept is chosen among these.
          width: size of the model's vocabulary.
          longest: tokens of its context that a window may have but for its last.
          n_ids: ids from it on are never kept.
          top_k: entries to keep for each position.
          batch_tokens: tokens of a forward pass.
          chosen: which of the kept entries stay; None = all.
        """
        self.width = width
        self.longest = longest
        self.layout = "batched by vLLM"
        self.reducer = "vLLM"
        self._llm = llm
        self._sampling = sampling
        self._n_ids = min(width, n_ids)
        self._k = top_k
        self._chosen = chosen
        self._asked = int(sampling.prompt_logprobs)
        self._at_once = _AT_ONCE * batch_tokens
        self._lock = threading.Lock()

    @property
    def broken(self) -> bool:
        """Whether the model has failed, and is to be loaded anew."""
        return self._llm is None

    def run(self, rows: Iterable[Row]) -> Iterator[Ran]:
        """Runs the model over rows, each of them once, in their order.

        Raises:
          FusionError: if vLLM fails, or has failed before.
        """
        for batch in _grouped(rows, self._at_once):
            pairs = zip(batch, self._ask(batch), strict=True)
            kept = [self._kept(row, one.prompt_logprobs) for row, one in pairs]
            yield Ran(rows=batch, kept=kept, halved=0)

    def close(self) -> None:
        """Lets go of the model, and of what vLLM keeps beside it in this process."""
        from vllm.distributed import parallel_state

        with self._lock:
            self._llm = None
            # What vLLM has loaded it keeps from being collected, till it is told.
            parallel_state.cleanup_dist_env_and_memory()

    def _ask(self, batch: Sequence[Row]) -> list[Any]:
        """Asks vLLM of rows, one thread at a time; lets go of it where it fails."""
        prompts = [{"prompt_token_ids": row.token_ids.tolist()} for row in batch]
        with self._lock:
            if self._llm is None:
                raise FusionError(
                    "vLLM must have its model to score, but it was let go of: it failed"
                    " in another thread, or other work needs the process; repeat the"
                    " command, where the runner does not try the slice again"
                )
            try:
                return list(self._llm.generate(prompts, self._sampling, use_tqdm=False))
            except Exception as error:
                self._llm = None
                raise FusionError(_failure(error, len(batch))) from error

    def _kept(self, row: Row, told: Any) -> Kept:
        """Keeps what is to be kept of what vLLM says of a window's tokens."""
        positions, ids, logprobs = _entries(told, len(row.token_ids))
        gold, there = listed.gold_of(positions, ids, logprobs, row.token_ids[1:])
        if not there.all():
            raise SchemaError(
                "vLLM must give the logprob of every token of its prompt, but gave none"
                f" of token {int(there.argmin()) + 1} of {len(row.token_ids)}; install"
                " a version of it that the extra vllm names"
            )
        top_ids, top_logprobs = listed.keep_top_k(
            positions,
            ids,
            logprobs,
            len(row),
            complete=self._asked,
            n_ids=self._n_ids,
            k=self._k,
        )
        if self._chosen is not None:
            outside = nucleus.outside(np.exp(top_logprobs), self._chosen)
            top_ids[outside], top_logprobs[outside] = -1, -np.inf
        finite = np.isfinite(gold)
        finite[positions[np.isnan(logprobs)]] = False
        return Kept(
            top_ids=top_ids,
            top_logprobs=top_logprobs,
            logsumexp=None,
            gold_logprob=gold,
            finite=finite,
            sampled_ids=np.zeros((len(row), 0), np.int32),
        )


def _failure(error: Exception, windows: int) -> str:
    """Says what vLLM failed of, and what can be done."""
    what = str(error).strip().partition("\n")[0]
    told = (
        f"vLLM must score {windows} windows at once, but failed"
        f" ({type(error).__name__}: {what}); its model is loaded anew at the next"
        " attempt: repeat the command, where the runner makes none"
    )
    if causal.is_out_of_memory(error):
        told += (
            ". It plans its memory itself: end what else uses the GPU, or score all"
            " with a smaller --batch_tokens"
        )
    return told


def first_gpu(device: torch.device) -> torch.device:
    """Returns the GPU that vLLM takes: the first that its process sees.

    Args:
      device: what was asked for.

    Raises:
      ValueError: if it is another one, or none.
    """
    if device.type == "cpu":
        raise ValueError(
            "backend vllm must have a GPU, and the device is cpu; leave --backend out,"
            " or name the workers' by --device=cuda"
        )
    if device.index:
        raise ValueError(
            "backend vllm must have the first GPU that its process sees, got"
            f" {device}; choose that by CUDA_VISIBLE_DEVICES"
        )
    return torch.device("cuda", 0)


def refuse(device: str, tail_samples: int, how: Loading, **run: int | None) -> None:
    """Refuses what only transformers does.

    Args:
      device: as it was asked for.
      tail_samples: ids to draw.
      how: how the model is loaded.
      **run: settings of how it is run, by name; each is to be false or None.

    Raises:
      ValueError: if the device is not the first GPU, tails are to be drawn, or a model
        is to be loaded or run in a special way.
    """
    if device != "auto":
        first_gpu(causal.name_device(device))
    if tail_samples:
        raise ValueError(
            f"tail_samples must be 0 with backend vllm, got {tail_samples}: it tells"
            " the likeliest tokens alone, and no log-sum-exp; leave --backend out"
        )
    plain = dataclasses.asdict(loading.PLAIN)
    for name, value in (dataclasses.asdict(how) | run).items():
        if value not in (plain.get(name), False, None):
            raise ValueError(
                f"{name} must be left out with backend vllm, got {value}: transformers"
                " alone heeds it; leave --backend out, or write the model as it is to"
                " be beforehand"
            )


def load(
    parts: Parts,
    *,
    dtype: torch.dtype,
    n_ids: int,
    top_k: int,
    batch_tokens: int,
    chosen: Nucleus | None = None,
) -> VllmEngine:
    """Loads a model by vLLM; none of its own code is run, and no pickle is read.

    It goes to the first GPU that CUDA shows to this process, see `first_gpu`: vLLM
    takes no other, and what CUDA shows does not change once it was asked.

    Args:
      parts: the model; it must be no adapter.
      dtype: number format of the weights, where they are not quantized.
      n_ids: ids from it on are never kept.
      top_k: entries to keep for each position; 0 = none.
      batch_tokens: tokens of a forward pass.
      chosen: which of the kept entries stay; None = all.

    Raises:
      ModuleNotFoundError: if vLLM is missing.
      ValueError: if the model is an adapter or a GGUF file.
    """
    if parts.adapter is not None:
        raise ValueError(
            f"backend vllm must be given a whole model, and {parts.adapter} is an"
            " adapter; merge it beforehand, or leave --backend out"
        )
    found = checkpoint.locate(parts.model, revision=parts.revision)
    if found.gguf_file is not None:
        raise ValueError(
            "a model for vLLM must be a folder or a name on the hub, got the GGUF file"
            f" {found.gguf_file}; leave --backend out"
        )
    extras.require("vllm", "vllm", "backend vllm")
    import transformers  # takes seconds
    import vllm

    config = transformers.AutoConfig.from_pretrained(
        str(found.folder), trust_remote_code=False, local_files_only=True
    )
    longest = causal.longest_told(config)
    width = config.get_text_config().vocab_size
    # Where some of the likeliest ids are no tokens, others take their places.
    asked = top_k and top_k + min(_SPARE, max(0, width - n_ids))
    with _within_this_process():
        llm = vllm.LLM(
            model=str(found.folder),
            dtype=str(dtype).removeprefix("torch."),
            max_model_len=longest,
            **_engine_options(asked, batch_tokens),
        )
    return VllmEngine(
        llm,
        vllm.SamplingParams(**_sampling_options(asked)),
        width=width,
        longest=None if longest is None else longest - _EXTRA_TOKENS,
        n_ids=n_ids,
        top_k=top_k,
        batch_tokens=batch_tokens,
        chosen=chosen,
    )


def _engine_options(asked: int, batch_tokens: int) -> dict[str, Any]:
    return {
        "trust_remote_code": False,
        "load_format": "safetensors",
        "skip_tokenizer_init": True,  # it is given tokens and asked for tokens
        "generation_config": "vllm",  # none of the model's own
        "seed": 0,
        # Of a prefix that was seen before there would be no logprobs.
        "enable_prefix_caching": False,
        # Logits of a pass exist whole: its tokens times the vocabulary, in float32.
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": batch_tokens,
        "max_num_seqs": min(_SEQUENCES, batch_tokens),
        "max_logprobs": max(1, asked),
        "logprobs_mode": "raw_logprobs",  # before any sampling
    }


def _sampling_options(asked: int) -> dict[str, Any]:
    return {
        "prompt_logprobs": asked,
        "max_tokens": 1,  # at least one must be asked for
        "temperature": 0.0,
        "detokenize": False,
        "flat_logprobs": True,
    }


@contextlib.contextmanager
def _within_this_process() -> Iterator[None]:
    """Keeps vLLM from giving the model a process of its own.

    That would keep the GPU's memory when this one is killed, while the GPU counts as
    free.
    """
    before = os.environ.get(_APART)
    os.environ[_APART] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_APART]
        else:
            os.environ[_APART] = before


def _grouped(rows: Iterable[Row], tokens: int) -> Iterator[list[Row]]:
    """Groups rows, in their order, to about so many tokens."""
    group: list[Row] = []
    held = 0
    for row in rows:
        group.append(row)
        held += len(row)
        if held >= tokens:
            yield group
            group, held = [], 0
    if group:
        yield group


def _entries(told: Any, n_tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lists what vLLM says of a prompt: position, id and logprob of each entry.

    It gives a mapping from ids to `Logprob`s for each token of the prompt, the first of
    which has none or an empty one; or the same laid flat, `FlatLogprobs`.
    """
    if told is None or len(told) != n_tokens:
        raise SchemaError(
            f"vLLM must tell of all {n_tokens} tokens of a prompt, but tells of"
            f" {0 if told is None else len(told)}; install a version of it that the"
            " extra vllm names"
        )
    if hasattr(told, "start_indices"):
        counts = np.subtract(told.end_indices, told.start_indices)
        ids, logprobs = told.token_ids, told.logprobs
    else:
        each: list[Mapping[int, Any]] = [one or {} for one in told]
        counts = np.array([len(one) for one in each])
        ids = [id_ for one in each for id_ in one]
        logprobs = [entry.logprob for one in each for entry in one.values()]
    positions = np.repeat(np.arange(n_tokens) - 1, counts)
    return positions, np.asarray(ids, np.int64), np.asarray(logprobs, np.float32)
