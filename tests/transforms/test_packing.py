"""Windows that are packed end to end score as they do one by one."""

import copy
import dataclasses
import logging
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from schemas.scores import Score
from tests import causal_models
from tests.bench import bench_score, smollm2
from tests.transforms.scoring import TEXTS, errors, make, window
from transforms import causal, loading, packing, scorer, tokenizer
from transforms.packed_attention import Layout
from transforms.packing import Packed
from transforms.scorer import Scorer, ScorerSettings

PACKED = (
    *("llama", "gemma3", "qwen2", "gpt_neox", "mixtral", "mistral"),
    *("gemma2", "gpt_oss", "opt", "cohere", "phi3"),
)
PADDED = ("mpt", "mamba", "lfm2", "llama4")
WINDOWS = [
    window(text * more, f"{text[:3]} {more}")
    for more in (1, 3)
    for text in (*TEXTS[:6], TEXTS[7])
]


def largest_gap(left: list[Score], right: list[Score]) -> float:
    gaps = [0.0]
    for one, other in zip(left, right, strict=True):
        assert one.error is None is other.error
        assert_array_equal(one.token_ids, other.token_ids)
        for name in ("gold_logprob", "logsumexp", "top_logprobs"):
            gaps.append(float(abs(getattr(one, name) - getattr(other, name)).max()))
    return max(gaps)


@pytest.mark.parametrize("name", [*PACKED, *PADDED])
def test_windows_score_to_a_ten_thousandth_of_a_nat_as_one_by_one(name: str) -> None:
    model, together = make(name)
    alone = Scorer(model, together.tokenizer, batch_tokens=1, packed=False)
    assert together.engine.layout.startswith("packed") == (name in PACKED)
    wanted = [alone.score([one]).scores[0] for one in WINDOWS]
    assert largest_gap(together.score(WINDOWS).scores, wanted) < 1e-4


@pytest.mark.parametrize("name", ["llama", "gemma3", "mixtral"])
def test_bfloat16_is_packed_too(name: str) -> None:
    made = causal_models.tokenizer_of()
    model = causal_models.make(name, made.size).bfloat16()
    together, alone = (Scorer(model, made, packed=packed) for packed in (True, False))
    assert together.engine.layout.startswith("packed")
    wanted = [alone.score([one]).scores[0] for one in WINDOWS]
    for left, right in zip(together.score(WINDOWS).scores, wanted, strict=True):
        assert abs(left.gold_logprob - right.gold_logprob).mean() < 0.1


def watched(model: Any) -> list[torch.Tensor]:
    """Returns what will hold the positions of each packed row that a model reads."""
    seen: list[torch.Tensor] = []

    def note(_: object, __: object, given: dict[str, Any]) -> None:
        if given["position_ids"] is not None:  # else its head runs
            seen.append(given["position_ids"])

    model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    return seen


def test_a_packed_batch_is_one_row_without_padding() -> None:
    model, scorer_ = make()
    seen = watched(model)
    found = scorer_.score(WINDOWS).scores
    tokens = sum(len(score.token_ids) - 1 for score in found)
    assert [tuple(places.shape) for places in seen] == [(1, tokens)]


def test_attention_is_as_it_was_when_nothing_is_packed() -> None:
    model, scorer_ = make("gemma3")
    before = model.config._attn_implementation
    ids = torch.arange(30)[None]
    with torch.inference_mode():
        plain = model(input_ids=ids).logits
        scorer_.score(WINDOWS)
        assert model.config._attn_implementation == before
        assert torch.equal(model(input_ids=ids).logits, plain)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["mistral", "mixtral", "gpt_oss"])
def test_a_broken_token_breaks_its_own_windows_alone(name: str, value: float) -> None:
    model, scorer_ = make(name)
    before = scorer_.score(WINDOWS).scores
    token = scorer_.tokenizer.encode_middle("何")[-1]
    model.get_input_embeddings().weight.data[token] = value
    broken = [p for p, s in enumerate(before) if token in s.token_ids[:-1]]
    after = scorer_.score(WINDOWS).scores
    assert errors(after) == broken
    sound = [p for p in range(len(WINDOWS)) if p not in broken]
    kept = [[found[p] for p in sound] for found in (before, after)]
    assert largest_gap(*kept) < 1e-4


def test_windows_beyond_where_rotary_embeddings_change_are_alone() -> None:
    model, scorer_ = make("phi3")
    batches = watched(model)
    found = scorer_.score(WINDOWS).scores
    seen = [int((places == 0).sum()) for places in batches]
    lengths = [len(score.token_ids) - 1 for score in found]
    assert max(lengths) > 40 > min(lengths)
    assert sum(seen) == len(WINDOWS)
    assert seen.count(1) >= sum(length > 40 for length in lengths)
    assert max(seen) > 1


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("mpt", "its attention is not AttentionInterface's"),
        ("mamba", "its attention is not AttentionInterface's"),
        ("lfm2", "windows differ by"),
        ("llama4", "a layer sees 4 of 54 tokens"),
    ],
)
def test_what_is_padded_is_told_once_with_the_reason(
    name: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    packing._tell.cache_clear()
    with caplog.at_level(logging.WARNING):
        make(name)
        make(name)
    told = [r.message for r in caplog.records if r.name == packing.__name__]
    assert len(told) == 1
    assert "padded" in told[0]
    assert why in told[0]


Spoil = Callable[[Any, torch.Tensor, dict[str, Any]], torch.Tensor]


def spoiled(spoil: Spoil, size: float = 1.0) -> packing.Way:
    """Says how a Llama is run whose layers' attention comes out spoiled."""
    model = causal_models.make("llama", 200)
    for weight in model.parameters():
        weight.data *= size
    attend = model.model.layers[0].self_attn.forward

    def forward(**given: Any) -> Any:
        out, weights = attend(**given)
        return spoil(out, given["hidden_states"], given), weights

    model.model.layers[0].self_attn.forward = forward
    with torch.inference_mode():
        return packing.choose(causal.Halves(model))


def leak(out: torch.Tensor, states: torch.Tensor, _: Any) -> torch.Tensor:
    before = states.cumsum(1) / torch.arange(1, out.shape[1] + 1)[:, None]
    return out + 1e-3 * before


def count(out: torch.Tensor, _: torch.Tensor, given: Any) -> torch.Tensor:
    return out + 0.01 * torch.arange(out.shape[1])[:, None]


def leave(out: torch.Tensor, _: torch.Tensor, __: Any) -> torch.Tensor:
    return out


@pytest.mark.parametrize("size", [1.0, 0.05])
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (leak, "windows (feel|differ)"),  # a state that runs on from window to window
        (count, "windows differ"),  # positions that do not begin anew
        (leave, None),
    ],
)
def test_the_trial_finds_small_faults(
    spoil: Spoil, why: str | None, size: float
) -> None:
    way = spoiled(spoil, size)
    if why is None:
        assert isinstance(way, Packed)
    else:
        assert isinstance(way, packing.Padded)
        assert why.partition("(")[0] in way.why


def test_the_trial_finds_what_windows_feel_where_it_is_less_than_they_differ() -> None:
    def whisper(out: torch.Tensor, states: torch.Tensor, _: Any) -> torch.Tensor:
        return out + 8e-6 * states.cumsum(1)

    way = spoiled(whisper)
    assert isinstance(way, packing.Padded)
    assert "windows feel others" in way.why


@pytest.mark.parametrize(
    ("named", "sees", "why"),
    [
        (40, 40, None),
        (None, 40, "sees 40 of 54 tokens, and not by .* names .none."),
        (30, 40, "sees 40 of 54 tokens, and not by .* names .30."),
        (40, None, "sees 54 of 54 tokens, and not by .* names .40."),
    ],
)
def test_a_window_too_wide_to_be_tried_is_compared_layer_by_layer_with_what_it_sees(
    named: int | None,
    sees: int | None,
    why: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packing, "_TRIAL_FLOPS", {})
    model = causal_models.make("mistral", 200)
    model.config.sliding_window = sees
    first = model.model.layers[0].self_attn
    first.config = copy.deepcopy(model.config)
    first.config.sliding_window = named
    with torch.inference_mode():
        way = packing.choose(causal.Halves(model))
    if why is None:
        assert isinstance(way, Packed)
    else:
        assert isinstance(way, packing.Padded)
        assert re.search(why, way.why)


def test_a_sliding_window_is_tried_where_it_cuts() -> None:
    lengths: list[tuple[int, ...]] = []
    model = causal_models.make("gemma3", 200)
    run = Packed.run

    def note(self: Packed, rows: Any, layout: Layout, **more: Any) -> torch.Tensor:
        lengths.append(layout.lengths)
        return run(self, rows, layout, **more)

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(Packed, "run", note)
        packing.choose(causal.Halves(model))
    assert max(max(one) for one in lengths) > 8


def test_a_layer_that_asks_for_more_than_in_the_trial_is_told_with_the_cure() -> None:
    model, scorer_ = make()
    attend = model.model.layers[0].self_attn.forward

    def forward(**given: Any) -> Any:
        return attend(**{**given, "attention_mask": torch.ones(1, 1, 1, 1)})

    model.model.layers[0].self_attn.forward = forward
    with pytest.raises(ValueError, match=r"a layer asks for a mask .*--pad"):
        scorer_.score(WINDOWS)


def test_a_layer_that_goes_round_attention_inside_windows_is_told() -> None:
    model, scorer_ = make()
    attend = model.model.layers[0].self_attn.forward

    def forward(**given: Any) -> Any:
        return given["hidden_states"], None

    model.model.layers[0].self_attn.forward = forward
    with pytest.raises(ValueError, match=r"asked for attention .* times .*--pad"):
        scorer_.score(WINDOWS)
    model.model.layers[0].self_attn.forward = attend
    assert not errors(scorer_.score(WINDOWS).scores)


def test_a_broken_token_does_not_keep_a_model_from_being_packed() -> None:
    model = causal_models.make("llama", 200)
    with torch.no_grad():
        model.get_input_embeddings().weight[
            packing._words(causal.Halves(model), 0, 6)[3]
        ] = torch.nan
    with torch.inference_mode():
        assert isinstance(packing.choose(causal.Halves(model)), Packed)


def test_a_folder_is_padded_where_that_is_asked_for(models: dict[str, str]) -> None:
    asked = ScorerSettings(model=models["llama"], device="cpu", tune_allocator=False)
    assert scorer.load(asked).engine.layout.startswith("packed")
    assert scorer.load(dataclasses.replace(asked, pad=True)).engine.layout == "padded"


def test_lack_of_memory_in_the_trial_is_not_taken_for_a_model_that_cannot() -> None:
    model = causal_models.make("llama", 200)
    halves = causal.Halves(model)

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.base_model.register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        packing.choose(halves)


@pytest.mark.slow
@pytest.mark.registry
def test_smollm2_scores_packed_as_it_does_one_by_one() -> None:
    path = smollm2.find()
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("smollm2 must be there")
        pytest.skip("smollm2 is not there")
    cpu = torch.device("cpu")
    model = loading.load_model(str(path), dtype=torch.float32, device=cpu)
    made = tokenizer.load(str(path))
    given = bench_score.cut(0, 0, 24)
    packed, alone = Scorer(model, made), Scorer(model, made, packed=False)
    assert packed.engine.layout.startswith("packed")
    wanted = [alone.score([one]).scores[0] for one in given]
    assert largest_gap(packed.score(given).scores, wanted) < 1e-4
