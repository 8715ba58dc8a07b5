"""Goes on from many prompts at once, with the likeliest token each time.

    prompts   1 5 6         batch  . . 1 5 6 | 7 8 2      what each goes on with
              1 5 6 7 8            1 5 6 7 8 | 9 2 .      ends at a token to stop at

Prompts of different lengths stand in one batch where a model can be told to pass over
what fills them up: it is masked, and positions are counted without it. In float32 that
changes nothing but the order of sums. Other models (recurrent ones, those whose
positions depend on the longest row of a batch) get prompts of one length at a time.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

PADDED = frozenset(
    {
        *("llama", "mistral", "mixtral", "qwen2", "qwen3", "gpt_neox", "gpt2"),
        *("gemma", "gemma2", "gemma3_text", "phi3", "olmo2", "smollm3", "granite"),
    }
)
"""Architectures, as configurations call them, that pass over masked tokens in front."""

_ROTARY = frozenset({None, "default", "linear", "llama3", "yarn"})
"""Rotary embeddings that do not depend on the longest row, so on a row's neighbors."""

_BATCH = 64
"""Most prompts at once."""

_BATCH_TOKENS = 1 << 15
"""Most tokens of a batch, those to come among them; one prompt may be longer."""


def continuations(
    model: Any, prompts: Sequence[Sequence[int]], most: int, stops: Sequence[int]
) -> list[list[int]]:
    """Goes on from prompts, each till a token to stop at or the most allowed.

    What is written does not depend on the other prompts, but for the rounding of sums.

    Args:
      model: a causal language model, in evaluation mode.
      prompts: token ids, one at least each.
      most: tokens that a prompt is gone on with.
      stops: tokens to stop at.

    Returns:
      The tokens behind each prompt, without the one that it stopped at.
    """
    found: list[list[int]] = [[] for _ in prompts]
    for places in _batches([len(ids) for ids in prompts], most, pads(model)):
        made = _generate(model, [prompts[place] for place in places], most, stops)
        for place, ids in zip(places, made, strict=True):
            end = next((n for n, token in enumerate(ids) if token in stops), len(ids))
            found[place] = ids[:end]
    return found


def pads(model: Any) -> bool:
    """Says whether prompts of different lengths may stand in one batch."""
    config = model.config
    scaling = (
        getattr(config, "rope_parameters", None)
        or getattr(config, "rope_scaling", None)
        or {}
    )
    nested = [one for one in scaling.values() if isinstance(one, dict)]
    kinds = {one.get("rope_type") for one in (scaling, *nested)}
    return config.model_type in PADDED and kinds <= _ROTARY


def _batches(lengths: Sequence[int], most: int, pads: bool) -> Iterator[list[int]]:
    """Yields the places of prompts that go together, the shortest first."""
    group: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda n: lengths[n]):
        longest = lengths[place] + most  # as they come by rising length
        full = len(group) == _BATCH or (len(group) + 1) * longest > _BATCH_TOKENS
        if group and (full or (not pads and lengths[group[0]] != lengths[place])):
            yield group
            group = []
        group.append(place)
    if group:
        yield group


@torch.inference_mode()
def _generate(
    model: Any, prompts: Sequence[Sequence[int]], most: int, stops: Sequence[int]
) -> list[list[int]]:
    """Goes on from a batch, till all of it has ended."""
    from transformers import GenerationConfig  # takes seconds

    longest = max(map(len, prompts))
    fill = [longest - len(ids) for ids in prompts]
    both = list(zip(fill, prompts, strict=True))
    rows = torch.tensor([[0] * n + list(ids) for n, ids in both])  # (b, t)
    real = torch.tensor([[0] * n + [1] * len(ids) for n, ids in both])  # (b, t)
    asked = GenerationConfig(
        do_sample=False,
        max_new_tokens=most,
        eos_token_id=list(stops) or None,
        pad_token_id=stops[0] if stops else 0,
    )
    with _plainly(model):
        made = model.generate(
            rows.to(model.device),
            attention_mask=real.to(model.device),
            generation_config=asked,
        )
    return made[:, longest:].tolist()


@contextlib.contextmanager
def _plainly(model: Any) -> Iterator[None]:
    """Sets aside how a model says it is to generate: penalties, other ends."""
    from transformers import GenerationConfig  # takes seconds

    before = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before
