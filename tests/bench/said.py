"""What models say of windows: kept in a cache, cut down, and laid out for files."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from schemas.scores import Score
from tests.bench.ngram import Outputs
from transforms.functional import nucleus
from transforms.functional.nucleus import Nucleus

_BY_TOKEN = ("token_ids", "byte_ends")
_BY_POSITION = ("top_ids", "top_logprobs", "logsumexp", "gold_logprob")
_FLAT = (*_BY_TOKEN, *_BY_POSITION)


def cached(path: Path, make: Callable[[], Sequence[Score]]) -> list[Score]:
    """Reads scores from a file, which is made first where it is not there."""
    if not path.exists():
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        columns: dict[str, Any] = {
            n: np.concatenate([getattr(s, n) for s in made]) for n in _FLAT
        }
        columns["lengths"] = np.array([len(score.token_ids) for score in made])
        np.savez_compressed(path, **columns)
    with np.load(path) as found:
        tokens = np.cumsum(found["lengths"])[:-1]
        positions = np.cumsum(found["lengths"] - 1)[:-1]
        pieces = {n: np.split(found[n], tokens) for n in _BY_TOKEN}
        pieces |= {n: np.split(found[n], positions) for n in _BY_POSITION}
    rows: list[dict[str, Any]] = [
        {name: pieces[name][number] for name in _FLAT}
        for number in range(len(tokens) + 1)
    ]
    return [
        Score(
            window_id=f"{number:032x}",
            nll_nats=-float(row["gold_logprob"].sum(dtype=np.float64)),
            n_bytes=int(row["byte_ends"][-1]),
            **row,
        )
        for number, row in enumerate(rows)
    ]


def cut(score: Score, k: int, chosen: Nucleus | None = None) -> Score:
    """Keeps the first k entries of each position, and of them the nucleus."""
    ids, logprobs = score.top_ids[:, :k], score.top_logprobs[:, :k]
    if chosen is not None:
        drop = nucleus.outside(np.exp(logprobs.astype(np.float64)), chosen)
        ids = np.where(drop, np.int32(-1), ids)
        logprobs = np.where(drop, np.float32(-np.inf), logprobs)
    return dataclasses.replace(score, top_ids=ids, top_logprobs=logprobs)


def outputs(found: Sequence[Score]) -> Outputs:
    """Lays out what a model says as rows to fuse; a window's last keeps nothing."""
    columns = [_positions(score) for score in found]
    return Outputs(
        lengths=np.array([len(score.token_ids) for score in found]),
        **{name: np.concatenate([c[name] for c in columns]) for name in columns[0]},
    )


def _positions(score: Score) -> dict[str, np.ndarray]:
    n, k = len(score.token_ids), score.top_ids.shape[1]
    ids = np.full((n, k), -1, np.int32)
    probs, tail = np.zeros((n, k), np.float32), np.zeros(n, np.float32)
    ids[:-1] = score.top_ids
    probs[:-1] = np.exp(score.top_logprobs)
    tail[:-1] = np.maximum(0, 1 - probs[:-1].sum(1, dtype=np.float64))
    return {
        "token_ids": score.token_ids,
        "counts": (ids >= 0).sum(axis=1).astype(np.int32),
        "ids": ids,
        "probs": probs,
        "tail": tail,
    }
