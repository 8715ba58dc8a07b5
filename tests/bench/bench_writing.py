"""`fusebeam score` without its model: how fast one process reads and writes.

All that the command does with slices is done, but a row of tokens is answered at once,
by what a model has said of other tokens (`tests.bench.small_models`). So the rate is
that above which a GPU would wait: of one slice, and of several at once, as threads of a
runner do them, which share the model. Most of it is the compressor's, beside Python.
What may hold Python's lock bounds the rate of a process on any machine: of it CPU
seconds are counted, those of numpy included, which lets go of the lock at times; in the
same run for windows that are rounded one by one.
"""

import contextlib
import itertools
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from schemas import files
from schemas.plan import Slice
from schemas.scores import Score
from schemas.windows import Window
from tests.bench import bench_score, rows, said, small_models
from tests.bench.bench_score import AROUND, TOP_K, Setup
from tests.bench.spent import Spent
from transforms import encodings, logits, slices
from transforms.engine import Ran, Row
from transforms.functional import rounding
from transforms.logits import Kept

GROUPS = 6
GROUP_WINDOWS = 256
ROUNDS = 3
NUMBER = 100
"""Of the slice, behind those of `bench_score`."""
BATCH_ROWS = 128
AT_ONCE = 2
"""Slices that are done at once: a processor each."""
FASTEST = 300_000
"""Tokens/s of the fastest model that is to be served."""
FREE = ("write",)
"""Parts in which Python's lock is let go."""


def run() -> list[dict[str, Any]]:
    """Measures and returns the benchmark's rows."""
    with bench_score.prepared() as setup, answered(setup, known()) as says:
        pieces = [
            bench_score.write_slice(
                setup.work.windows, NUMBER + place, groups=GROUPS, count=GROUP_WINDOWS
            )
            for place in range(AT_ONCE)
        ]
        timed(setup, pieces, 1)  # warms up
        counted = says.total
        by_turns, at_once = [], []
        for _ in range(ROUNDS):
            by_turns.append(counted / timed(setup, pieces, 1))
            at_once.append(counted / timed(setup, pieces, AT_ONCE))
        with mock.patch.object(rounding, "round_scores", one_by_one()):
            old = spent(setup, pieces)
        new = spent(setup, pieces)
        read_s = tokenized(setup)
    one, many = (float(np.median(rates)) for rates in (by_turns, at_once))
    held = {way: locked(found) / counted for way, found in (("old", old), ("new", new))}
    return [
        rows.ratio_at_least(
            1.0,
            f"score without a model, k = {TOP_K}, {AT_ONCE} slices at once",
            many,
            "tokens/s",
            against=f"one after the other, {one:,.0f} tokens/s",
            ratio=many / one,
        ),
        rows.at_most(
            1e6 / FASTEST,
            "score without a model: what may hold Python's lock",
            held["new"] * 1e6,
            "us/token",
            against=f"windows rounded one by one, {held['old'] * 1e6:.2f} us/token",
            ratio=held["new"] / held["old"],
        ),
        rows.at_least(
            FASTEST,
            "windows tokenized, all processors",
            counted / AT_ONCE / read_s,
            "tokens/s",
        ),
    ]


def known() -> list[Score]:
    """Returns what a model says of some text."""
    return [said.cut(one, TOP_K) for one in small_models.scored("bpe")]


class Says:
    """Answers rows with what is known, from the first position on, again and again.

    Attributes:
      total: positions that were answered.
    """

    width = 1 << 31
    longest = None
    layout = reducer = "no model"
    broken = False

    def __init__(self, found: list[Score]) -> None:
        names = ("top_ids", "top_logprobs", "logsumexp", "gold_logprob")
        columns = {n: np.concatenate([getattr(s, n) for s in found]) for n in names}
        self._positions = len(columns["gold_logprob"])
        self._columns = {n: np.concatenate([c, c]) for n, c in columns.items()}
        self.total = 0
        self._lock = threading.Lock()

    def run(self, given: Iterable[Row]) -> Iterator[Ran]:
        """Answers rows in batches."""
        rows_left = iter(given)
        while batch := list(itertools.islice(rows_left, BATCH_ROWS)):
            yield self._answer(batch)

    def close(self) -> None:
        """Holds nothing."""

    def _answer(self, batch: list[Row]) -> Ran:
        ends = np.cumsum([len(row) for row in batch])
        size = int(ends[-1])
        with self._lock:
            start = self.total % self._positions
            self.total += size
        kept = Kept(
            finite=np.ones(size, np.bool_),
            sampled_ids=np.empty((size, 0), np.int32),
            **{n: c[start : start + size] for n, c in self._columns.items()},
        )
        return Ran(rows=batch, kept=logits.split(kept, ends), halved=0)


@contextlib.contextmanager
def answered(setup: Setup, found: list[Score]) -> Iterator[Says]:
    """Puts what is known in the place of the model."""
    says = Says(found)
    with mock.patch.object(setup.ready, "engine", says):
        yield says


def one_by_one() -> Any:
    """Returns what rounds windows one by one."""
    together = rounding.round_scores
    return lambda made: [rounded for one in made for rounded in together([one])]


def timed(setup: Setup, pieces: Sequence[Slice], at_once: int) -> float:
    """Scores slices; returns the seconds."""
    start = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda piece: slices.make(setup.work, piece), pieces))
    taken = time.perf_counter() - start
    for piece in pieces:
        Path(files.join(setup.work.output, piece.output)).unlink()
    return taken


def spent(setup: Setup, pieces: Sequence[Slice]) -> Spent:
    """Scores slices; returns the CPU's seconds of each part."""
    counts = Spent(tell=time.thread_time)
    with counts.watching_all([(slices, "make", "all else"), *AROUND]):
        timed(setup, pieces, 1)
    return counts


def locked(counts: Spent) -> float:
    """Sums up the seconds of all parts in which Python's lock may be held."""
    return sum(s for (_, part), s in counts.seconds.items() if part not in FREE)


def tokenized(setup: Setup) -> float:
    """Tokenizes as many windows as a slice has; returns the seconds."""
    made: list[list[Window]] = [
        bench_score.cut(NUMBER, place, GROUP_WINDOWS) for place in range(GROUPS)
    ]
    start = time.perf_counter()
    for group in made:
        encodings.encode(setup.ready.tokenizer, group)
    return time.perf_counter() - start
