"""What stands for vLLM: its outputs, in its shapes, from a model of transformers.

The classes have the fields of vLLM's own (0.20 to 0.33), and `LLM` fills them as its
engine does: the token of the prompt first, whatever its rank, then the likeliest by
falling logprob, in float32. Nothing of vLLM is run.
"""

import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from transforms import devices, loading


@dataclasses.dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclasses.dataclass
class FlatLogprobs:
    start_indices: list[int] = dataclasses.field(default_factory=list)
    end_indices: list[int] = dataclasses.field(default_factory=list)
    token_ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    ranks: list[int | None] = dataclasses.field(default_factory=list)
    decoded_tokens: list[str | None] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.start_indices)

    def append(self, entries: list[tuple[int, Logprob]]) -> None:
        self.start_indices.append(len(self.token_ids))
        for token_id, told in entries:
            self.token_ids.append(token_id)
            self.logprobs.append(told.logprob)
            self.ranks.append(told.rank)
            self.decoded_tokens.append(told.decoded_token)
        self.end_indices.append(len(self.token_ids))


@dataclasses.dataclass
class RequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: Any
    outputs: list[Any]
    finished: bool


@dataclasses.dataclass
class SamplingParams:
    prompt_logprobs: int | None = None
    flat_logprobs: bool = False
    max_tokens: int = 16
    temperature: float = 1.0
    detokenize: bool = True


class LLM:
    """Runs a model of transformers over prompts of tokens, one by one."""

    def __init__(self, model: Any, **options: Any) -> None:
        self.model = model
        self.options = options
        self.prompts: list[Any] = []

    def generate(
        self, prompts: Sequence[Any], sampling: SamplingParams, *, use_tqdm: bool
    ) -> list[RequestOutput]:
        assert not use_tqdm
        self.prompts += prompts
        return [
            self._output(str(n), prompt["prompt_token_ids"], sampling)
            for n, prompt in enumerate(prompts)
        ]

    def _output(
        self, name: str, token_ids: list[int], sampling: SamplingParams
    ) -> RequestOutput:
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([token_ids])).logits[0]
        logprobs = logits.float().log_softmax(-1)
        rows = [*entries(token_ids, logprobs, sampling.prompt_logprobs or 0)]
        told: Any = [None, *(dict(row) for row in rows)]
        if sampling.flat_logprobs:
            told = FlatLogprobs()
            for row in ([], *rows):
                told.append(row)
        return RequestOutput(name, None, token_ids, told, [], True)


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
      What each `LLM` was given, and in `gpus` what CUDA would have shown it.
    """
    seen: list[dict[str, Any]] = []
    cpu, second = torch.device("cpu"), torch.device("cuda", 1)

    def start(**options: Any) -> LLM:
        seen.append({**options, "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")})
        made = loading.load_model(options["model"], dtype=torch.float32, device=cpu)
        return LLM(made)

    module = ModuleType("vllm")
    module.__dict__.update(LLM=start, SamplingParams=SamplingParams)
    module.__spec__ = SimpleNamespace(name="vllm")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(devices, "claim", lambda d: second if d.type == "cuda" else d)
    return seen
