from collections.abc import Sequence
from typing import Any

import hypothesis
import pytest
import torch
import transformers
from hypothesis import strategies as st

from train.search import greedy

VOCABULARY, MOST = 40, 7
PROMPTS = [
    [(n + s) % 37 + 3 for n in range(k, 3 * k + 1)]
    for s, k in enumerate((9, 1, 4, 4, 12, 2))
]
"""Of 3 to 25 tokens, in no order; two are as long as each other."""

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
    "tie_word_embeddings": False,
}
OTHER: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 6},
    "gemma2": {"sliding_window": 6, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 6, "query_pre_attn_scalar": 8},
    "mixtral": {"num_local_experts": 4},
    "mamba": {"state_size": 4},
}


def small(kind: str, **more: Any) -> Any:
    torch.manual_seed(3)
    sizes = {**SIZES, **OTHER.get(kind, {}), **more}
    config = transformers.AutoConfig.for_model(kind, **sizes)
    made = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in made.parameters():  # what is drawn near 0 repeats one token
            weight.mul_(1 if weight.dim() == 1 else 1.5)
    return made


def alone(model: Any, ids: Sequence[int], most: int, stops: Sequence[int]) -> list[int]:
    """Goes on from one prompt, a token at a time, without a cache or a batch."""
    made: list[int] = []
    for _ in range(most):
        with torch.no_grad():
            logits = model(torch.tensor([[*ids, *made]]), use_cache=False).logits
        made.append(int(logits[0, -1].argmax()))
        if made[-1] in stops:
            return made[:-1]
    return made


@pytest.mark.parametrize("kind", [*sorted(greedy.PADDED), "mamba", "mpt", "bloom"])
def test_prompts_go_on_together_as_each_does_alone(kind: str) -> None:
    model = small(kind)
    assert greedy.pads(model) == (kind in greedy.PADDED)
    free = [alone(model, ids, MOST, ()) for ids in PROMPTS]
    assert greedy.continuations(model, PROMPTS, MOST, ()) == free
    assert len(set(map(tuple, free))) > 3  # none of the models says always the same
    stops = (free[0][3], free[1][-1])
    wanted = [alone(model, ids, MOST, stops) for ids in PROMPTS]
    assert greedy.continuations(model, PROMPTS, MOST, stops) == wanted
    assert min(map(len, wanted)) < MOST


def test_rotary_embeddings_that_grow_with_the_longest_row_keep_rows_apart() -> None:
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = small("llama", rope_parameters=dynamic, max_position_embeddings=8)
    assert not greedy.pads(model)
    wanted = [alone(model, ids, 1, ()) for ids in PROMPTS]
    assert greedy.continuations(model, PROMPTS, 1, ()) == wanted


@pytest.fixture(scope="module")
def llama() -> Any:
    return small("llama")


@hypothesis.settings(max_examples=12, derandomize=True)
@hypothesis.given(
    prompts=st.lists(
        st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=20),
        min_size=1,
        max_size=6,
    ),
    stops=st.sets(st.integers(0, VOCABULARY - 1), max_size=8),
)
def test_what_one_prompt_goes_on_with_is_of_no_other(
    llama: Any, prompts: list[list[int]], stops: set[int]
) -> None:
    ends = sorted(stops)
    wanted = [alone(llama, ids, 5, ends) for ids in prompts]
    assert greedy.continuations(llama, prompts, 5, ends) == wanted


def test_a_batch_ends_when_all_of_it_has(llama: Any) -> None:
    free = [alone(llama, ids, 1, ()) for ids in PROMPTS]
    stops = sorted({ids[0] for ids in free})
    passes: list[int] = []
    hook = llama.register_forward_hook(lambda *_: passes.append(1))
    try:
        assert greedy.continuations(llama, PROMPTS, 30, stops) == [[]] * len(PROMPTS)
    finally:
        hook.remove()
    assert len(passes) == 1


def test_batches_hold_few_tokens_and_all_prompts(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = greedy.continuations(llama, PROMPTS, MOST, ())
    shapes: list[tuple[int, ...]] = []
    generate = llama.generate

    def note(rows: torch.Tensor, **more: Any) -> Any:
        shapes.append(tuple(rows.shape))
        return generate(rows, **more)

    monkeypatch.setattr(llama, "generate", note)
    monkeypatch.setattr(greedy, "_BATCH_TOKENS", 30)
    assert greedy.continuations(llama, PROMPTS, MOST, ()) == wanted
    assert [rows for rows, _ in shapes] == [2, 1, 1, 1, 1]  # the last is longer alone
    assert all(rows * (t + MOST) <= 30 for rows, t in shapes[:-1])
    monkeypatch.setattr(greedy, "_BATCH_TOKENS", 1 << 15)
    monkeypatch.setattr(greedy, "_BATCH", 4)
    shapes.clear()
    assert greedy.continuations(llama, PROMPTS, MOST, ()) == wanted
    assert [rows for rows, _ in shapes] == [4, 2]


def test_how_a_model_says_it_generates_does_not_count(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = greedy.continuations(llama, PROMPTS, MOST, ())
    own = transformers.GenerationConfig(
        repetition_penalty=9.0,
        eos_token_id=wanted[0][0],
        suppress_tokens=[wanted[1][0]],
    )
    monkeypatch.setattr(llama, "generation_config", own)
    assert greedy.continuations(llama, PROMPTS, MOST, ()) == wanted
    assert llama.generation_config is own
