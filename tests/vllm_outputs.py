"""What stands for vLLM: its outputs, in its shapes, from a model of transformers.

The classes have the fields of vLLM's own (0.20 to 0.33), and `LLM` fills them as its
engine does: the token of the prompt first, whatever its rank, then the likeliest by
falling logprob, in float32. Nothing of vLLM is run.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch


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


class SamplingParams:
    def __init__(self, **options: Any) -> None:
        self.options = options


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
            self._output(str(n), prompt["prompt_token_ids"], sampling.options)
            for n, prompt in enumerate(prompts)
        ]

    def _output(
        self, name: str, token_ids: list[int], options: dict[str, Any]
    ) -> RequestOutput:
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([token_ids])).logits[0]
        logprobs = logits.float().log_softmax(-1)
        rows = [*entries(token_ids, logprobs, options["prompt_logprobs"])]
        told: Any = [None, *(dict(row) for row in rows)]
        if options.get("flat_logprobs"):
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
