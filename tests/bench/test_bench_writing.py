import numpy as np
import pytest

from schemas.scores import Score
from tests.bench import bench_score, bench_writing, smollm2

K = bench_score.TOP_K


def said(positions: int = 500) -> list[Score]:
    """Makes what a model might say of a window."""
    rng = np.random.default_rng(0)
    logits = -np.sort(-2 * rng.standard_normal((positions, 40)), axis=1)
    total = np.log(np.exp(logits).sum(axis=1))
    logprobs = (logits - total[:, None])[:, :K].astype(np.float32)
    return [
        Score(
            window_id="",
            token_ids=np.arange(positions + 1, dtype=np.int32),
            byte_ends=np.arange(positions + 1, dtype=np.int32),
            top_ids=rng.integers(0, 300, (positions, K)).astype(np.int32),
            top_logprobs=logprobs,
            logsumexp=total.astype(np.float32),
            gold_logprob=logprobs[:, 3],
            nll_nats=None,
            n_bytes=positions,
        )
    ]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "find", lambda: None)
    monkeypatch.setattr(bench_score, "LAYERS", 1)
    monkeypatch.setattr(bench_score, "SLICES", 1)
    monkeypatch.setattr(bench_score, "GROUPS", 1)
    monkeypatch.setattr(bench_score, "GROUP_WINDOWS", 2)
    monkeypatch.setattr(bench_writing, "GROUPS", 3)
    monkeypatch.setattr(bench_writing, "GROUP_WINDOWS", 4)
    monkeypatch.setattr(bench_writing, "ROUNDS", 1)
    monkeypatch.setattr(bench_writing, "BATCH_ROWS", 3)
    monkeypatch.setattr(bench_writing, "known", said)


@pytest.mark.usefixtures("small")
def test_a_slice_is_read_and_written_without_its_model() -> None:
    found = bench_writing.run()
    assert len({row["name"] for row in found}) == len(found) == 3
    assert all(row["value"] > 0 for row in found)
