"""What runs a model on rows of tokens: memory, order, batches."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from tests import causal_models
from transforms import engine, logits
from transforms.engine import Engine, Row

ROOT = Path(__file__).parent.parent.parent

MEASURE = """
import json, sys
import numpy as np, torch
from tests import causal_models
from transforms.engine import Engine, Row

def told(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(l.split()[1]) * 1024 for l in lines if l.startswith(name))

def row(place, n):
    ids = np.arange(n + 1, dtype=np.int32) * 97 % WIDTH
    return Row(place=place, token_ids=ids, chances=np.zeros((n, 0)))

WIDTH, TOKENS = 262_144, 768
name, dtype, k = sys.argv[1], sys.argv[2], int(sys.argv[3])
causal_models.CONTEXT = 4096
model = causal_models.make(name, WIDTH).to(getattr(torch, dtype))
model.config.max_position_embeddings = 4096
engine = Engine(model, n_ids=WIDTH, top_k=k, batch_tokens=4096)
list(engine.run([row(0, 3)]))  # what is made once, is made
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = told("VmRSS")
(ran,) = engine.run([row(0, TOKENS // 2), row(1, TOKENS // 2)])
print(json.dumps({
    "extra": told("VmHWM") - before,
    "whole": TOKENS * WIDTH * 4,
    "finite": bool(all(piece.finite.all() for piece in ran.kept)),
    "way": engine.way.name,
}))
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="asks Linux for the peak"
)
@pytest.mark.parametrize(
    ("name", "dtype", "k"),
    [
        ("llama", "float32", 100),
        pytest.param("llama", "bfloat16", 10, marks=pytest.mark.slow),
        # caps its logits
        pytest.param("gemma2", "float32", 10, marks=pytest.mark.slow),
    ],
)
def test_logits_of_any_vocabulary_take_less_than_700_megabytes(
    name: str, dtype: str, k: int
) -> None:
    words = [sys.executable, "-c", MEASURE, name, dtype, str(k)]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["finite"]
    assert found["way"].startswith("packed")
    assert found["extra"] < 0.7e9 < found["whole"]


@given(
    st.sampled_from([50, 1000, 32_000, 151_936, 262_144, 1_000_000, 500_000_000]),
    st.sampled_from([0, 1, 10, 100, 10_000]),
)
def test_positions_at_once_fit(width: int, k: int) -> None:
    for kind in ("cpu", "cuda"):
        found = logits.positions_at_once(width, k, torch.device(kind))
        assert found >= 1
        assert found * 8 * width <= 0.65e9 or found == 1
        assert found <= logits.positions_that_fit(width, k)


def rows(lengths: list[int], width: int = 200) -> list[Row]:
    return [
        Row(
            place=place,
            token_ids=(np.arange(n + 1) * 31 % width).astype(np.int32),
            chances=np.zeros((n, 0)),
        )
        for place, n in enumerate(lengths)
    ]


def test_a_model_that_cannot_be_cut_runs_in_smaller_batches(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logits, "positions_that_fit", lambda *_: 30)
    engine._tell_uncut.cache_clear()
    with caplog.at_level(logging.WARNING):
        ready = Engine(causal_models.make("opt", 200), n_ids=200)
    assert "batches are of 30 tokens at most" in caplog.text
    found = [len(ran.rows) for ran in ready.run(rows([10] * 7))]
    assert found == [3, 3, 1]


def test_packed_rows_come_back_in_order_and_as_soon_as_they_are_known() -> None:
    ready = Engine(causal_models.make("llama", 200), n_ids=200, batch_tokens=20)
    asked: list[int] = []

    def lazily() -> Iterator[Row]:
        for row in rows([10] * 12):
            asked.append(row.place)
            yield row

    known = []
    for ran in ready.run(lazily()):
        known += [row.place for row in ran.rows]
        # two batches are under way, and one row says that the last is full
        assert len(asked) <= len(known) + 2 + 1
    assert known == list(range(12))


@pytest.mark.parametrize("budget", [1, 20, 45, 10_000])
@pytest.mark.parametrize("name", ["llama", "mpt"])
def test_each_row_runs_once_whatever_the_batches(name: str, budget: int) -> None:
    lengths = [7, 30, 1, 30, 12, 2, 20, 9]
    model = causal_models.make(name, 200)
    ready = Engine(model, n_ids=200, batch_tokens=budget)
    found = [row.place for ran in ready.run(rows(lengths)) for row in ran.rows]
    assert sorted(found) == list(range(len(lengths)))
    if name == "llama":
        assert found == list(range(len(lengths)))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(
    shutil.which("g++") is None and "CI" not in os.environ,
    reason="torch compiles by g++",
)
@pytest.mark.parametrize("name", ["gemma3", "mpt"])
def test_a_compiled_model_scores_alike(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Processes that compile at once find each other's half-written libraries.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model, lengths = causal_models.make(name, 200), [7, 30, 1, 30, 12, 2, 20, 9]
    plain, compiled = (
        Engine(model, n_ids=190, batch_tokens=40, compiled=compiled)
        for compiled in (False, True)
    )
    pairs = zip(plain.run(rows(lengths)), compiled.run(rows(lengths)), strict=True)
    for one, other in pairs:
        for left, right in zip(one.kept, other.kept, strict=True):
            assert left is not None
            assert right is not None
            assert_array_equal(left.top_ids, right.top_ids)
            assert_allclose(left.gold_logprob, right.gold_logprob, atol=1e-4)
            assert_allclose(left.logsumexp, right.logsumexp, atol=1e-4)
