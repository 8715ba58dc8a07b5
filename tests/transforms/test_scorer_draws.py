from collections.abc import Sequence

import numpy as np

from schemas import scores
from schemas.scores import Score
from tests import causal_models
from tests.transforms.scoring import (
    TEXTS,
    WINDOWS,
    dense_logprobs,
    gpu_is_full,
    limit_tokens,
    make,
    window,
)
from transforms.functional import tail


def draws(found: Sequence[Score]) -> list[list[list[int]]]:
    return [score.sampled_ids.tolist() for score in found]


def test_the_mean_over_many_windows_draws_is_the_dense_row() -> None:
    model, scorer_ = make(padding=64, top_k=4, tail_samples=5)
    size, many = scorer_.tokenizer.size, 300
    found = scorer_.score([window(TEXTS[1], i) for i in range(many)]).scores
    _, logprobs = dense_logprobs(model, found[0])
    mean = np.zeros((len(logprobs), size))
    for score in found:
        joined = tail.join_draws(score)
        rows, columns = np.nonzero(joined.top_ids >= 0)
        ids = joined.top_ids[rows, columns]
        mean[rows, ids] += np.exp(joined.top_logprobs[rows, columns])
        gold = score.token_ids[1:]
        mean[np.arange(len(gold)), gold] = many * np.exp(score.gold_logprob)
    probs = np.exp(logprobs[:, :size])
    rest = tail.rest_mass(found[0])[:, None]
    assert rest.min() > 0.05
    deviation = np.sqrt(probs * np.maximum(rest - probs, 0) / (5 * many))
    # one draw of 1,500 too many
    assert (abs(mean / many - probs) < 5.5 * deviation + rest / 1500 + 1e-6).all()


def test_draws_are_of_what_is_neither_kept_nor_next() -> None:
    for score in make(top_k=4, tail_samples=6)[1].score(WINDOWS).scores:
        known = np.column_stack([score.top_ids, score.token_ids[1:]])
        assert score.sampled_ids.shape == (len(known), 6)
        assert not (score.sampled_ids[:, :, None] == known[:, None, :]).any()


def test_draws_change_nothing_else() -> None:
    plain, drawn = (make(tail_samples=r)[1].score(WINDOWS).scores for r in (0, 5))
    assert [score.sampled_ids for score in plain] == [None] * len(plain)
    assert scores.to_table(plain).equals(scores.to_table(drawn))


def test_draws_are_the_same_whatever_the_batch() -> None:
    alone = make(tail_samples=7, batch_tokens=1)[1].score(WINDOWS)
    for tokens in (50, 5000):
        together = make(tail_samples=7, batch_tokens=tokens)[1].score(WINDOWS[::-1])
        assert draws(together.scores[::-1]) == draws(alone.scores)


def test_windows_of_equal_text_have_draws_of_their_own() -> None:
    scorer_ = make(tail_samples=7)[1]
    one, other = draws(scorer_.score([window("a b", 1), window("a b", 2)]).scores)
    assert one != other


def test_draws_of_halved_batches_are_those_of_whole_ones() -> None:
    many = [window(text, i) for i, text in enumerate(TEXTS[:2] * 8)]
    undisturbed = make(tail_samples=3)[1].score(many)
    model, scorer_ = make(tail_samples=3)
    limit_tokens(model, 40, gpu_is_full)
    scored = scorer_.score(many)
    assert scored.halved_batches > 0
    assert draws(scored.scores) == draws(undisturbed.scores)


def test_a_window_that_fails_has_no_draws() -> None:
    long = window("x y" * causal_models.CONTEXT)
    (found,) = make(kind="byte_level", tail_samples=3)[1].score([long]).scores
    assert found.error is not None
    assert found.sampled_ids.shape == (0, 3)
