import contextlib
import dataclasses
import os
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from schemas import files
from schemas.errors import FusionError, SchemaError
from tests import causal_models, vllm_outputs
from tests.transforms.scoring import WINDOWS, make, window
from tests.vllm_outputs import ColumnLogprobs, FlatLogprobs, Logprob, SamplingParams
from transforms import scorer, vllm_engine
from transforms.adapters import Parts
from transforms.engine import Row, Runs
from transforms.functional.nucleus import Nucleus
from transforms.loading import Loading
from transforms.scorer import Scorer, ScorerSettings
from transforms.vllm_engine import VllmEngine

RECORDED: list[dict[int, float] | None] = [
    None,
    {15043: -7.584228515625, 917: -2.512939214706421},
    {29892: -1.4937736988067627},
    {590: -1.8308428525924683, 306: -1.3464678525924683},
    {1024: -0.11963547021150589},
    {338: -0.01794273406267166},
]
"""Of Llama-2-7b with prompt_logprobs=1, as vllm-project/vllm issue 2043 records it."""


def engine(llm: Any, *, asked: int = 10, flat: bool = True, **more: Any) -> VllmEngine:
    sampling = SamplingParams(prompt_logprobs=asked, flat_logprobs=flat)
    fields = {"width": 10**6, "longest": None, "n_ids": 10**6, "batch_tokens": 64}
    return VllmEngine(llm, sampling, **{**fields, "top_k": asked, **more})


def row(*token_ids: int) -> Row:
    empty = np.zeros((len(token_ids) - 1, 0))
    return Row(place=0, token_ids=np.array(token_ids, np.int32), chances=empty)


def told(answer: Any) -> Any:
    """Returns what stands for a vLLM that says one thing, whatever it is asked."""
    output = SimpleNamespace(prompt_logprobs=answer)
    return SimpleNamespace(generate=lambda prompts, *_, **__: [output] * len(prompts))


class Columns(vllm_outputs.LLM):
    """Tells of prompts in columns."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().generate(*args, **kwargs)
        for one in outputs:
            one.prompt_logprobs = ColumnLogprobs(one.prompt_logprobs)
        return outputs


@pytest.mark.parametrize("shape", ["flat", "columns", "dicts"])
@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_scores_are_those_of_transformers_but_for_the_log_sum_exp(
    name: str, shape: str
) -> None:
    # Ids that the tokenizer does not have are told, as vLLM does, and not kept.
    model, other = make(name, padding=40, top_k=7)
    tokens = other.tokenizer
    more = {"width": tokens.size + 40, "n_ids": tokens.size, "top_k": 7}
    kind = Columns if shape == "columns" else vllm_outputs.LLM
    made = engine(kind(model), asked=47, flat=shape != "dicts", **more)
    found = Scorer(None, tokens, top_k=7, engine=made).score(WINDOWS)
    assert found.halved_batches == found.too_large == 0
    for one, score in zip(found.scores, other.score(WINDOWS).scores, strict=True):
        assert one.logsumexp is None
        assert one.error is None
        for field in ("window_id", "token_ids", "byte_ends", "top_ids", "n_bytes"):
            assert_array_equal(getattr(one, field), getattr(score, field))
        assert_allclose(one.gold_logprob, score.gold_logprob, atol=1e-5)
        assert_allclose(one.nll_nats, score.nll_nats, rtol=1e-5)
        assert_allclose(one.top_logprobs, score.top_logprobs, atol=1e-5)


def test_what_a_real_vllm_said_is_read() -> None:
    answer = [one and {i: Logprob(p) for i, p in one.items()} for one in RECORDED]
    (ran,) = engine(told(answer), asked=1).run([row(1, 15043, 29892, 590, 1024, 338)])
    (kept,) = ran.kept
    assert kept.top_ids[:, 0].tolist() == [917, 29892, 306, 1024, 338]
    likeliest = [max(one.values()) for one in RECORDED if one]
    assert_array_equal(kept.top_logprobs[:, 0], np.float32(likeliest))
    gold = [next(iter(one.values())) for one in RECORDED if one]
    assert_array_equal(kept.gold_logprob, np.float32(gold))
    assert kept.logsumexp is None


def test_ties_go_by_rising_id_and_a_gold_token_beside_the_top_is_not_kept() -> None:
    ties = {9: Logprob(-1.0, 1), 4: Logprob(-1.0, 2), 6: Logprob(-1.5, 3)}
    aside = {8: Logprob(-7.0, 40), 2: Logprob(-0.5, 1), 1: Logprob(-0.75, 2)}
    (ran,) = engine(told([None, ties, aside]), asked=2).run([row(0, 6, 8)])
    assert ran.kept[0].top_ids.tolist() == [[4, 9], [2, 1]]
    assert ran.kept[0].gold_logprob.tolist() == [-1.5, -7.0]


def test_entries_outside_the_nucleus_are_not_kept() -> None:
    answer = [None, {6: Logprob(-0.1), 5: Logprob(-3.0), 4: Logprob(-4.0)}]
    asked: dict[str, Any] = {"asked": 3, "chosen": Nucleus(top_p=0.95)}
    (ran,) = engine(told(answer), **asked).run([row(0, 5)])
    assert ran.kept[0].top_ids.tolist() == [[6, 5, -1]]
    assert ran.kept[0].top_logprobs[0, 2] == -np.inf


def test_a_gold_token_does_not_take_the_place_of_an_id_that_is_none() -> None:
    padded = {3: Logprob(-9.0, 70), 99: Logprob(-0.5, 1), 5: Logprob(-1.0, 2)}
    (ran,) = engine(told([None, padded]), asked=2, n_ids=90).run([row(0, 3)])
    assert ran.kept[0].top_ids.tolist() == [[5, -1]]
    assert ran.kept[0].gold_logprob.tolist() == [-9.0]


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_a_window_whose_numbers_are_not_finite_fails_alone(bad: float) -> None:
    tokens = causal_models.tokenizer_of()
    model = causal_models.make("llama", tokens.size)
    llm = vllm_outputs.LLM(model)
    spoilt = WINDOWS[2]

    def generate(prompts: Any, sampling: Any, *, use_tqdm: bool) -> Any:
        outputs = llm.generate(prompts, sampling, use_tqdm=use_tqdm)
        for output in outputs:
            if output.prompt_token_ids == ids.tolist():
                flat = output.prompt_logprobs
                flat.logprobs[flat.start_indices[2]] = bad
        return outputs

    made = engine(SimpleNamespace(generate=generate), top_k=0)
    ids = tokens.encode_window(spoilt.text, spoilt.eos_follows).token_ids
    found = Scorer(None, tokens, top_k=0, engine=made).score(WINDOWS).scores
    failed = [one for one in found if one.error is not None]
    assert [one.window_id for one in failed] == [spoilt.window_id]
    assert "non-finite logits at position 1" in str(failed[0].error)


def test_all_rows_are_run_in_groups_of_bounded_size() -> None:
    model, other = make("llama")
    sizes: list[int] = []
    llm = vllm_outputs.LLM(model)

    def generate(prompts: Any, sampling: Any, *, use_tqdm: bool) -> Any:
        sizes.append(sum(len(one["prompt_token_ids"]) - 1 for one in prompts))
        return llm.generate(prompts, sampling, use_tqdm=use_tqdm)

    made = engine(SimpleNamespace(generate=generate), batch_tokens=1)
    many = [window(one.text, n) for n, one in enumerate(WINDOWS * 3)]
    found = Scorer(None, other.tokenizer, engine=made).score(many).scores
    assert [one.window_id for one in found] == [one.window_id for one in many]
    longest = max(len(one.token_ids) for one in found)
    assert len(sizes) > 1
    assert max(sizes) < vllm_engine._AT_ONCE + longest


@pytest.mark.parametrize(
    ("answer", "law"),
    [
        (None, r"tell of all 3 tokens of a prompt, but tells of 0"),
        ([None, {1: Logprob(-1.0)}], r"tell of all 3 tokens of a prompt, .* of 2"),
        ([None, {1: Logprob(-1.0)}, {5: Logprob(-1.0)}], r"none of token 2 of 3"),
        (FlatLogprobs([0, 0], [0, 1], [1], [-1.0], [1], [None]), r"tells of 2"),
        ([], r"but tells of 0"),
    ],
)
def test_an_answer_that_is_not_whole_is_refused(answer: Any, law: str) -> None:
    with pytest.raises(SchemaError, match=law + r".* the extra vllm names|" + law):
        list(engine(told(answer)).run([row(0, 1, 2)]))


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Puts a stand-in where vLLM is imported; returns what it was given and saw."""
    return vllm_outputs.stand_in(monkeypatch)


def test_a_settings_backend_loads_vllm_with_what_it_must_be_told(
    vllm: list[dict[str, Any]],
    models: dict[str, str],
) -> None:
    settings = ScorerSettings(
        model=models["llama"], backend="vllm", device="cuda", top_k=4, batch_tokens=99
    )
    made = scorer.load(settings)
    (given,) = vllm
    width = files.read_json(f"{models['llama']}/config.json")["vocab_size"]
    spare = min(8, width - made.tokenizer.size)
    assert given["claimed"] == [torch.device("cuda", 0)]  # which it takes
    assert not given["apart"]
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in os.environ
    assert given["model"] == models["llama"]
    assert given["dtype"] == "bfloat16"
    assert given["max_num_batched_tokens"] == given["max_num_seqs"] == 99
    assert given["max_logprobs"] == 4 + spare
    assert not given["enable_prefix_caching"]
    assert not given["trust_remote_code"]
    assert given["load_format"] == "safetensors"
    sampling = made.engine._sampling
    assert sampling.prompt_logprobs == 4 + spare
    assert sampling.max_tokens == 1
    cpu = dataclasses.replace(
        settings, backend="transformers", device="cpu", dtype="float32"
    )
    wanted = scorer.load(cpu).score(WINDOWS).scores
    for one, other in zip(made.score(WINDOWS).scores, wanted, strict=True):
        assert_array_equal(one.top_ids, other.top_ids)


def test_a_window_leaves_room_for_the_token_that_vllm_makes(
    vllm: list[dict[str, Any]], models: dict[str, str]
) -> None:
    made = scorer.load(
        ScorerSettings(model=models["llama"], backend="vllm", device="cuda")
    )
    context = vllm[0]["max_model_len"]
    fits, too_long = (window("a" * n) for n in (1, 4 * context))
    found = made.score([fits, too_long]).scores
    assert found[0].error is None
    assert f"fit the model's context of {context - 2} tokens" in str(found[1].error)


def test_what_only_transformers_does_is_refused(models: dict[str, str]) -> None:
    fields: dict[str, Any] = {"model": models["llama"], "backend": "vllm"}
    with pytest.raises(ValueError, match="tail_samples must be 0 with backend vllm"):
        ScorerSettings(**fields, tail_samples=2)
    with pytest.raises(ValueError, match="must have a GPU, and the device is cpu"):
        ScorerSettings(**fields, device="cpu")
    with pytest.raises(ValueError, match=r"got cuda:1; .* CUDA_VISIBLE_DEVICES"):
        ScorerSettings(**fields, device="cuda:1")
    with pytest.raises(ValueError, match="threads must be left out with backend vllm"):
        ScorerSettings(**fields, threads=2)
    for name, value in (
        ("adapter", "a"),
        ("quantization", "fp8"),
        ("device_map", "auto"),
    ):
        how = Loading(**{name: value})
        with pytest.raises(ValueError, match=f"{name} must be left out with backend"):
            ScorerSettings(**fields, loading=how)
    with pytest.raises(ValueError, match="no_kernels must be left out with backend"):
        ScorerSettings(**fields, kernels=False)
    for name in ("compile", "pad", "share_device"):
        with pytest.raises(ValueError, match=f"{name} must be left out with backend"):
            ScorerSettings(**{**fields, name: True})


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("CUDA error: an illegal\nmemory access"), r"\(RuntimeError: C"),
        (torch.OutOfMemoryError("2 GiB"), r"2 GiB\).* with a smaller --batch_tokens"),
    ],
)
def test_a_model_that_has_failed_is_broken_and_asked_no_more(
    error: Exception, told: str
) -> None:
    asked: list[int] = []

    def generate(prompts: Any, *_: Any, **__: Any) -> Any:
        asked.append(len(prompts))
        raise error

    made = engine(SimpleNamespace(generate=generate))
    assert not made.broken
    law = "vLLM must score 2 windows at once, but failed "
    with pytest.raises(FusionError, match=law + r"\(.*" + told.lstrip(r"\(")) as caught:
        list(made.run([row(0, 1), row(0, 1)]))
    assert caught.value.__cause__ is error
    assert made.broken
    with pytest.raises(FusionError, match="it failed in another thread"):
        list(made.run([row(0, 1)]))
    assert asked == [2]  # halves would ask again


def test_threads_ask_one_after_the_other() -> None:
    inside, most, both = threading.Lock(), [0], threading.Barrier(2)

    def generate(prompts: Any, *_: Any, **__: Any) -> Any:
        most[0] += not inside.acquire(blocking=False)
        time.sleep(0.05)  # for the other to come, if it could
        with contextlib.suppress(RuntimeError):
            inside.release()
        answer = [None, {1: Logprob(-0.5, 1)}]
        return [SimpleNamespace(prompt_logprobs=answer)] * len(prompts)

    made = engine(SimpleNamespace(generate=generate), asked=1)

    def ask() -> list[Any]:
        both.wait()
        return list(made.run([row(0, 1)]))

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(ask) for _ in range(2)]
    assert [len(future.result()) for future in futures] == [1, 1]
    assert most == [0]


def test_a_model_that_is_let_go_of_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = vllm_outputs.stand_in(monkeypatch)
    ended.append({})
    llm = vllm_outputs.LLM(causal_models.make("llama", 50))
    made, held = engine(llm), weakref.ref(llm)
    del llm
    assert held() is not None
    made.close()
    assert held() is None
    assert made.broken
    assert ended == [{"ended": True}]
    with pytest.raises(FusionError, match="it was let go of"):
        list(made.run([row(0, 1)]))


def test_models_that_vllm_is_not_given_are_refused(tmp_path: Path) -> None:
    options: dict[str, Any] = {"dtype": torch.float32}
    sizes = {"n_ids": 9, "top_k": 2, "batch_tokens": 9}
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"GGUF")
    for parts, law in (
        (Parts(model=str(gguf)), r"got the GGUF file m\.gguf"),
        (Parts(model=str(tmp_path), adapter="a"), "a whole model, and a is an adapter"),
    ):
        with pytest.raises(ValueError, match=law):
            vllm_engine.load(parts, **options, **sizes)


def test_without_vllm_the_extra_is_named(models: dict[str, str]) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fusebeam\[vllm\]'"):
        vllm_engine.load(
            Parts(model=models["llama"]),
            dtype=torch.float32,
            n_ids=9,
            top_k=2,
            batch_tokens=9,
        )


def test_vllm_and_transformers_have_one_interface() -> None:
    assert isinstance(engine(told(None)), Runs)
    assert isinstance(make("llama")[1].engine, Runs)
