"""What stands for vLLM: its outputs, in its shapes, from a model of transformers.

The classes have the fields, and refuse what is refused, as vLLM's own do (outputs.py,
logprobs.py, sampling_params.py, engine/arg_utils.py; 0.20 to 0.32), and `LLM` fills
them as its engine does: the token of the prompt first, whatever its rank, then the
likeliest by falling logprob, in float32. Mappings are as all versions since 0.6 give
them, flat lists as those since 0.11, columns as the newest. Nothing of vLLM is run.
"""

import dataclasses
import itertools
import os
import sys
from collections.abc import Iterator, MutableSequence, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch

from transforms import devices, loading

_OPTIONS = frozenset(
    (
        *("model", "dtype", "max_model_len", "load_format", "seed", "revision"),
        *("trust_remote_code", "skip_tokenizer_init", "generation_config"),
        *("enable_prefix_caching", "enable_chunked_prefill", "max_num_seqs"),
        *("max_num_batched_tokens", "max_logprobs", "logprobs_mode"),
        *("gpu_memory_utilization", "enforce_eager", "tensor_parallel_size"),
    )
)
"""Of what `LLM` takes, the names that are the same in all versions since 0.11."""

_MODES = ("raw_logits", "raw_logprobs", "processed_logits", "processed_logprobs")


@dataclasses.dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


Position = dict[int, Logprob]


@dataclasses.dataclass
class FlatLogprobs(MutableSequence[Position]):
    start_indices: list[int] = dataclasses.field(default_factory=list)
    end_indices: list[int] = dataclasses.field(default_factory=list)
    token_ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    ranks: list[int | None] = dataclasses.field(default_factory=list)
    decoded_tokens: list[str | None] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.start_indices)

    def __getitem__(self, index: Any) -> Any:
        span = slice(self.start_indices[index], self.end_indices[index])
        parts = (self.logprobs[span], self.ranks[span], self.decoded_tokens[span])
        told = itertools.starmap(Logprob, zip(*parts, strict=True))
        return dict(zip(self.token_ids[span], told, strict=True))

    def append(self, value: Position | None) -> None:
        self.append_fast([*(value or {}).items()])

    def append_fast(self, entries: Sequence[tuple[int, Logprob]]) -> None:
        """Keeps what is told twice, the prompt's token where it is likely."""
        self.start_indices.append(len(self.token_ids))
        for token_id, told in entries:
            self.token_ids.append(token_id)
            self.logprobs.append(told.logprob)
            self.ranks.append(told.rank)
            self.decoded_tokens.append(told.decoded_token)
        self.end_indices.append(len(self.token_ids))

    def _refuse(self, *_: Any) -> NoReturn:
        raise TypeError("logprobs cannot be changed")

    __setitem__ = __delitem__ = insert = _refuse


class ColumnLogprobs:
    """As `FlatLogprobs` of a version that keeps arrays, and makes lists when asked."""

    def __init__(self, flat: FlatLogprobs) -> None:
        self._flat = flat

    def __len__(self) -> int:
        return len(self._flat)

    def __getattr__(self, name: str) -> Any:
        return list(getattr(self._flat, name))


@dataclasses.dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None
    logprobs: Any
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclasses.dataclass
class RequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int] | None
    prompt_logprobs: Any
    outputs: list[CompletionOutput]
    finished: bool
    metrics: Any = None
    lora_request: Any = None
    encoder_prompt: str | None = None
    encoder_prompt_token_ids: list[int] | None = None
    num_cached_tokens: int | None = None


@dataclasses.dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    max_tokens: int | None = 16
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    flat_logprobs: bool = False
    detokenize: bool = True

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if self.prompt_logprobs is not None and self.prompt_logprobs < -1:
            raise ValueError("prompt_logprobs must be at least 0, or -1")


class LLM:
    """Runs a model of transformers over prompts of tokens, one by one."""

    def __init__(self, made: Any, **options: Any) -> None:
        assert options.keys() <= _OPTIONS, options.keys() - _OPTIONS
        assert options.get("logprobs_mode", "raw_logprobs") in _MODES
        self.made = made
        self.options = options
        self._numbers = itertools.count()

    def generate(
        self,
        prompts: Sequence[Any],
        sampling_params: SamplingParams | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        assert not use_tqdm
        sampling = sampling_params or SamplingParams()
        self._check(prompts, sampling)
        return [self._output(one["prompt_token_ids"], sampling) for one in prompts]

    def _check(self, prompts: Sequence[Any], sampling: SamplingParams) -> None:
        """Refuses what vLLM refuses of a request, in the same kind of error."""
        most = self.options.get("max_logprobs", 20)
        if self.options and (sampling.prompt_logprobs or 0) > most:
            raise ValueError(f"prompt logprobs are greater than max allowed: {most}")
        longest = self.options.get("max_model_len")
        for one in prompts:
            length = len(one["prompt_token_ids"]) + (sampling.max_tokens or 1)
            if longest is not None and length > longest:
                raise ValueError(f"a prompt is longer than the context of {longest}")

    def _output(self, token_ids: list[int], sampling: SamplingParams) -> RequestOutput:
        with torch.no_grad():
            logits = self.made(input_ids=torch.tensor([token_ids])).logits[0]
        logprobs = logits.float().log_softmax(-1)
        rows = [*entries(token_ids, logprobs, sampling.prompt_logprobs or 0)]
        told: Any = [None, *(dict(row) for row in rows)]
        if sampling.flat_logprobs:
            told = FlatLogprobs()
            for row in ([], *rows):
                told.append_fast(row)
        made = [int(logprobs[-1].argmax())]
        outputs = [CompletionOutput(0, "", made, None, None, "length")]
        name = str(next(self._numbers))
        return RequestOutput(name, None, token_ids, told, outputs, True)


def entries(
    token_ids: list[int], logprobs: torch.Tensor, k: int
) -> Iterator[list[tuple[int, Logprob]]]:
    """Yields what is told of each token of a prompt but the first."""
    for row, gold in zip(logprobs, token_ids[1:], strict=False):
        rank = int((row >= row[gold]).sum())
        kept = row.topk(k)
        yield [
            (gold, Logprob(float(row[gold]), rank)),
            *(
                (int(token_id), Logprob(float(logprob), at + 1))
                for at, (logprob, token_id) in enumerate(zip(*kept, strict=True))
            ),
        ]


def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Puts what is here where vLLM is imported, and shows GPUs that are not there.

    Returns:
      What each `LLM` was given; in `apart` whether it would have had a process of its
      own, in `claimed` the GPUs claimed before, in `ended` whether vLLM was told that
      it is done with, and in `llm` the object.
    """
    seen: list[dict[str, Any]] = []
    claimed: list[torch.device] = []
    cpu = torch.device("cpu")

    def start(**options: Any) -> LLM:
        made = loading.load_model(options["model"], dtype=torch.float32, device=cpu)
        llm = LLM(made, **options)
        apart = os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "1") == "1"
        told = {"apart": apart, "claimed": [*claimed], "ended": False, "llm": llm}
        seen.append({**options, **told})
        return llm

    def claim(device: torch.device) -> torch.device:
        claimed.append(device)
        return device

    state = ModuleType("vllm.distributed.parallel_state")
    ended = {"cleanup_dist_env_and_memory": lambda: seen[-1].update(ended=True)}
    state.__dict__.update(ended)
    distributed = ModuleType("vllm.distributed")
    distributed.__dict__.update(parallel_state=state)
    module = ModuleType("vllm")
    parts = {"LLM": start, "SamplingParams": SamplingParams}
    module.__dict__.update(parts, distributed=distributed)
    module.__spec__ = SimpleNamespace(name="vllm")  # type: ignore[assignment]
    for one in (module, distributed, state):
        monkeypatch.setitem(sys.modules, one.__name__, one)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(devices, "claim", claim)
    return seen
