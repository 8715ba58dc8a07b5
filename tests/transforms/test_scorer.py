import functools
import os
import pydoc_data.topics
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from schemas import scores
from tests import causal_models, real_tokenizers, snippets, tiny_tokenizers
from tests.transforms.scoring import (
    TEXTS,
    WINDOWS,
    assert_close,
    dense_logprobs,
    errors,
    gpu_is_full,
    host_is_full,
    limit_tokens,
    make,
    window,
)
from transforms import causal, logits, scorer, tokenizer
from transforms.functional import batches
from transforms.scorer import Scorer, ScorerSettings


@pytest.mark.parametrize("name", causal_models.MAIN)
def test_a_window_scores_in_a_batch_as_it_does_alone(name: str) -> None:
    scorer_ = make(name)[1]
    together = scorer_.score(WINDOWS).scores
    for one, score in zip(WINDOWS, together, strict=True):
        assert score.window_id == one.window_id
        assert_close(score, scorer_.score([one]).scores[0])


@pytest.mark.parametrize("name", causal_models.MAIN)
def test_logsumexp_gold_and_kept_logprobs_are_those_of_the_dense_logits(name: str):
    model, scorer_ = make(name, top_k=7)
    for score in scorer_.score(WINDOWS).scores:
        raw, dense = dense_logprobs(model, score)
        rows = np.arange(len(dense))
        assert_allclose(score.gold_logprob, dense[rows, score.token_ids[1:]], atol=1e-4)
        peak = raw.max(1)
        total = peak + np.log(np.exp(raw - peak[:, None]).sum(1))
        assert_allclose(score.logsumexp, total, atol=1e-4)
        order = np.argsort(-raw, axis=1, kind="stable")[:, :7]
        assert_array_equal(score.top_ids, order)
        kept = np.take_along_axis(dense, order, 1)
        assert_allclose(score.top_logprobs, kept, rtol=2**-11, atol=1e-4)


def test_small_chunks_of_positions_give_what_one_gives(monkeypatch) -> None:
    whole = make()[1].score(WINDOWS).scores
    monkeypatch.setattr(logits, "positions_at_once", lambda *_: 3)
    for left, right in zip(whole, make()[1].score(WINDOWS).scores, strict=True):
        assert_close(left, right)


def test_ids_behind_the_tokenizers_have_mass_but_are_never_kept() -> None:
    model, padded = make(padding=64, top_k=40)
    size = padded.tokenizer.size
    would_be_kept = 0
    for score in padded.score(WINDOWS).scores:
        raw, dense = dense_logprobs(model, score)
        assert raw.shape[1] == size + 64
        would_be_kept += (raw.argmax(1) >= size).sum()
        assert score.top_ids.max() < size
        order = np.argsort(-raw[:, :size], axis=1, kind="stable")[:, :40]
        assert_array_equal(score.top_ids, order)
        kept = np.take_along_axis(dense, order, 1)
        assert_allclose(score.top_logprobs, kept, rtol=2**-11, atol=1e-4)
    assert would_be_kept > 0


def test_a_token_without_a_logit_fails_its_window_alone() -> None:
    made = causal_models.tokenizer_of()
    highest = [made.encode(w.text).token_ids.max() for w in WINDOWS]
    model = causal_models.make("llama", int(max(highest)))
    found = Scorer(model, made).score(WINDOWS).scores
    failed = [p for p, top in enumerate(highest) if top == max(highest)]
    assert errors(found) == failed
    assert "token ids must be below" in found[failed[0]].error


def test_with_fewer_ids_than_k_rows_end_in_minus_one() -> None:
    made = causal_models.tokenizer_of()
    found = make(top_k=made.size + 3)[1].score(WINDOWS[:2]).scores
    for score in found:
        assert_array_equal(score.top_ids[:, made.size :], -1)
        assert_array_equal(score.top_logprobs[:, made.size :], -np.inf)
        assert_allclose(np.exp(score.top_logprobs).sum(1), 1, atol=1e-3)


def test_without_top_k_the_cost_is_the_same() -> None:
    full, bare = (make(top_k=k)[1].score(WINDOWS).scores for k in (10, 0))
    for left, right in zip(full, bare, strict=True):
        assert right.top_ids.shape == (len(left.token_ids) - 1, 0)
        assert_allclose(left.nll_nats, right.nll_nats, rtol=1e-5)


@pytest.mark.parametrize("kind", ["unigram", "byte_level"])
def test_start_token_stands_in_front_and_eos_where_a_document_ends(kind: str) -> None:
    scorer_ = make(kind=kind)[1]
    made = scorer_.tokenizer
    assert (made.bos_id is None) == (kind == "byte_level")
    for one, score in zip(WINDOWS, scorer_.score(WINDOWS).scores, strict=True):
        plain = made.encode(one.text)
        behind = [made.eos_id] if one.ends_document else []
        start = made.eos_id if made.bos_id is None else made.bos_id
        assert_array_equal(score.token_ids, [start, *plain.token_ids, *behind])
        n_bytes = len(one.text.encode())
        assert_array_equal(
            score.byte_ends, [0, *plain.byte_ends, *[n_bytes] * len(behind)]
        )
        text_only = slice(len(plain.token_ids) if one.text else 0)
        costs = -score.gold_logprob[text_only]
        assert score.nll_nats == pytest.approx(costs.sum(dtype=np.float64))
        assert score.n_bytes == n_bytes


def test_control_spans_make_control_tokens() -> None:
    scorer_ = make()[1]
    text = "</s>the</s>"
    plain, chat, _ = (
        score.token_ids
        for score in scorer_.score(
            [window(text), window(text, control_spans=(0, 4)), window("the")]
        ).scores
    )
    eos = scorer_.tokenizer.eos_id
    assert eos not in plain
    assert chat[1] == eos
    assert list(chat).count(eos) == 1


def test_costs_of_loss_spans_that_meet_at_token_borders_add_up() -> None:
    scorer_ = make()[1]
    whole = scorer_.score([window(TEXTS[0])]).scores[0]
    middle, end = int(whole.byte_ends[4]), int(whole.byte_ends[-1])
    left, right, both = (
        scorer_.score([window(TEXTS[0], loss_spans=spans)]).scores[0]
        for spans in ((0, middle), (middle, end), (0, middle, middle, end))
    )
    costs = -whole.gold_logprob[:4]
    assert left.nll_nats == pytest.approx(costs.sum(), rel=1e-5)
    assert left.nll_nats + right.nll_nats == pytest.approx(whole.nll_nats, rel=1e-5)
    assert both.nll_nats == pytest.approx(whole.nll_nats, rel=1e-5)
    assert (left.n_bytes, left.n_bytes + right.n_bytes) == (middle, whole.n_bytes)


def test_the_same_slice_gives_the_same_bytes() -> None:
    first, second = (make()[1].score(WINDOWS).scores for _ in range(2))
    assert scores.to_table(first).equals(scores.to_table(second))


def test_threads_that_share_a_scorer_get_what_each_would_alone() -> None:
    scorer_ = make()[1]
    alone = scores.to_table(scorer_.score(WINDOWS).scores)
    found: list[Any] = []

    def work() -> None:
        found.append(scores.to_table(scorer_.score(WINDOWS).scores))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [table.equals(alone) for table in found] == [True] * 4


def test_no_windows_give_no_scores() -> None:
    scored = make()[1].score([])
    assert scored.scores == []
    assert scored.halved_batches == 0


@pytest.mark.parametrize("fail", [gpu_is_full, host_is_full])
def test_batches_that_do_not_fit_are_halved_and_score_the_same(fail) -> None:
    many = [window(text, i) for i, text in enumerate(TEXTS[:2] * 8)]
    undisturbed = make()[1].score(many)
    assert undisturbed.halved_batches == 0
    model, scorer_ = make()
    limit_tokens(model, 40, fail)
    scored = scorer_.score(many)
    assert scored.halved_batches > 0
    for left, right in zip(undisturbed.scores, scored.scores, strict=True):
        assert_close(left, right)


def test_batches_known_not_to_fit_are_not_tried_again() -> None:
    model, scorer_ = make(batch_tokens=200)
    refused = []
    limit_tokens(model, 100, lambda: (refused.append(1), gpu_is_full()))
    scored = scorer_.score([window(TEXTS[0], i) for i in range(40)])
    assert scored.halved_batches > 2
    assert len(refused) <= 2


def test_a_window_that_does_not_fit_alone_fails_alone() -> None:
    model, scorer_ = make()
    longest = max(len(s.token_ids) - 1 for s in scorer_.score(WINDOWS).scores)
    limit_tokens(model, longest - 1, gpu_is_full)
    found = scorer_.score(WINDOWS).scores
    lengths = [len(s.token_ids) - 1 for s in make()[1].score(WINDOWS).scores]
    assert errors(found) == [p for p, n in enumerate(lengths) if n == longest]
    assert "memory" in found[errors(found)[0]].error


def test_an_error_other_than_lack_of_memory_is_raised() -> None:
    model, scorer_ = make()

    def fail() -> None:
        raise RuntimeError("device-side assert triggered")

    limit_tokens(model, 0, fail)
    with pytest.raises(RuntimeError, match="device-side"):
        scorer_.score(WINDOWS)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_fails_its_window_alone(value: float) -> None:
    model, scorer_ = make()
    before = scorer_.score(WINDOWS).scores
    token = scorer_.tokenizer.encode_middle("何")[-1]
    broken = [p for p, s in enumerate(before) if token in s.token_ids[:-1]]
    assert 0 < len(broken) < len(WINDOWS)
    model.get_input_embeddings().weight.data[token] = value
    after = scorer_.score(WINDOWS).scores
    assert errors(after) == broken
    assert "non-finite logits" in after[broken[0]].error
    for place in set(range(len(WINDOWS))) - set(broken):
        assert_close(after[place], before[place])


def test_a_token_that_breaks_everything_breaks_no_window_by_padding_it() -> None:
    model, scorer_ = make(batch_tokens=10000, packed=False)
    text = "the quick brown fox isn't lazy " * 3
    pair = [window(text, 0), window(text[:-2], 1)]
    before = scorer_.score(pair).scores
    lengths = [len(score.token_ids) - 1 for score in before]
    assert len(batches.plan_batches(lengths, 10000)) < len(set(lengths)) == 2
    used = np.concatenate([score.token_ids for score in before])
    weight = model.get_input_embeddings().weight
    unused = np.setdiff1d(np.arange(len(weight)), used)
    weight.data[torch.from_numpy(unused)] = np.nan
    assert errors(scorer_.score(pair).scores) == []


def test_the_position_of_a_logit_that_is_not_finite_is_named() -> None:
    model, scorer_ = make()
    before = scorer_.score(WINDOWS).scores[3]
    token = int(before.token_ids[4])

    def spoil(_: object, __: object, kwargs: dict[str, Any], output: Any) -> None:
        output.last_hidden_state[kwargs["input_ids"] == token] = np.nan

    model.base_model.register_forward_hook(spoil, with_kwargs=True)
    found = scorer_.score(WINDOWS).scores[3]
    positions = len(before.token_ids) - 1
    assert f"non-finite logits at position 4 of {positions}" in found.error


def test_one_infinite_logit_fails_a_window_and_a_masked_id_does_not() -> None:
    model, scorer_ = make("gpt_neox", padding=3)
    head = model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(len(head.weight)))
    head.bias.data[-3:] = -np.inf
    assert errors(scorer_.score(WINDOWS).scores) == []
    head.bias.data[-1] = np.inf
    assert errors(scorer_.score(WINDOWS).scores) == list(range(len(WINDOWS)))


def test_a_window_longer_than_the_context_fails_alone_and_names_the_cure() -> None:
    scorer_ = make(kind="byte_level")[1]
    long = window("x y" * causal_models.CONTEXT, "long")
    found = scorer_.score([*WINDOWS, long]).scores
    assert errors(found) == [len(WINDOWS)]
    assert f"context of {causal_models.CONTEXT} tokens" in found[-1].error
    assert "max_tokens" in found[-1].error


def test_a_window_as_long_as_the_context_is_scored() -> None:
    scorer_ = make(kind="byte_level")[1]
    fitting = window("9" * (causal_models.CONTEXT - 1))  # a token a digit, and BOS
    longer = window(fitting.text + "99")
    found = scorer_.score([fitting, longer]).scores
    assert len(found[0].token_ids) == causal_models.CONTEXT
    assert errors(found) == [1]


def test_a_window_whose_tokens_do_not_tile_it_fails_alone(tmp_path: Path) -> None:
    made = tokenizer.load(str(tiny_tokenizers.save(tiny_tokenizers.lossy(), tmp_path)))
    scorer_ = Scorer(causal_models.make("llama", made.size), made)
    words = ["one", "two words", "three", "fo\x00ur", "five"]
    found = scorer_.score([window(text, i) for i, text in enumerate(words)]).scores
    assert errors(found) == [1, 3]
    assert "must tile" in found[1].error
    assert found[1].n_bytes == len(words[1])
    for place in (0, 2, 4):
        alone = scorer_.score([window(words[place])]).scores[0]
        assert_close(found[place], alone)


def test_errors_do_not_quote_the_text() -> None:
    scorer_ = make(kind="byte_level")[1]
    found = scorer_.score([window("secret words " * causal_models.CONTEXT)]).scores
    assert "secret" not in found[0].error


@pytest.mark.parametrize("name", ["llama", "neox"])
def test_a_folder_is_loaded_and_scored(models: dict[str, str], name: str) -> None:
    settings = ScorerSettings(
        model=models[name], top_k=3, device="cpu", tune_allocator=False
    )
    found = scorer.load(settings).score(WINDOWS).scores
    assert errors(found) == []
    assert found[0].top_ids.shape == (len(found[0].token_ids) - 1, 3)


def test_a_tokenizer_of_its_own_may_be_named(models: dict[str, str]) -> None:
    made = functools.partial(
        ScorerSettings, model=models["neox"], device="cpu", tune_allocator=False
    )
    own, other = (
        scorer.load(made(tokenizer=path)).tokenizer for path in (None, models["llama"])
    )
    assert own.fingerprint == tokenizer.load(models["neox"]).fingerprint
    assert other.fingerprint == tokenizer.load(models["llama"]).fingerprint


def test_resolved_settings_leave_nothing_to_the_machine() -> None:
    found = scorer.resolved(ScorerSettings(model="m", device="cpu", threads=3))
    assert found == {"device": "cpu", "dtype": "float32", "threads": 3}
    found = scorer.resolved(ScorerSettings(model="m", device="cpu", dtype="bfloat16"))
    assert found["dtype"] == "bfloat16"
    assert found["threads"] == torch.get_num_threads()


@pytest.mark.parametrize("field", ["top_k", "tail_samples", "batch_tokens", "threads"])
def test_settings_out_of_range_are_refused_by_name(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        ScorerSettings(model="m", **{field: -1})


@pytest.mark.slow
@pytest.mark.registry
def test_smollm2_scores_prose_as_its_dense_logits_do() -> None:
    if reason := real_tokenizers.missing().get("smollm2"):
        if os.environ.get("CI"):
            pytest.fail(f"smollm2: {reason}")
        pytest.skip(f"smollm2: {reason}")
    path = str(real_tokenizers.available()["smollm2"])
    device = causal.choose_device("cpu")
    model = causal.load_model(path, dtype=torch.float32, device=device)
    scorer_ = Scorer(model, tokenizer.load(path), top_k=16)
    manual = pydoc_data.topics.topics["assert"][:900]
    texts = [manual, snippets.CODE, snippets.LANGUAGES["fr"]]
    found = scorer_.score([window(t, i) for i, t in enumerate(texts)]).scores
    for score in found:
        raw, dense = dense_logprobs(model, score)
        rows = np.arange(len(dense))
        assert_allclose(score.gold_logprob, dense[rows, score.token_ids[1:]], atol=1e-3)
        order = np.argsort(-raw, axis=1, kind="stable")[:, :16]
        assert (score.top_ids == order).mean() > 0.999  # near ties may swap
        kept = np.take_along_axis(dense, order, 1)
        assert_allclose(score.top_logprobs, kept, rtol=2**-11, atol=1e-3)
    assert found[0].bits_per_byte < 1.2


def test_what_runs_on_this_machine_needs_its_device_here(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    asked = ScorerSettings(model="m", device="cuda", dtype="bfloat16")
    assert scorer.resolved_for_workers(asked)["device"] == "cuda"
    with pytest.raises(ValueError, match=r"device cuda must be there.*--device=cpu"):
        scorer.resolved(asked)
