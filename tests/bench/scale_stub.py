"""Scores windows without a model: a real tokenizer, made-up rows.

What is around the model is the product's own: the plan, the slices, the writer, the
manifest. The rows of a window are a pure function of its id and the model's name, are
as hard to compress as real ones, and hold the token that comes next as a model of
middling wits would: mostly in front, once in a thousand not at all.
"""

import functools

import numpy as np

from pipelines import stage
from pipelines.score import ScoreConfig
from schemas import manifest, parquet, plan, scores, settings, windows
from schemas.manifest import Manifest
from schemas.plan import Slice
from schemas.scores import Score
from schemas.windows import Window
from transforms import tokenizer
from transforms.functional import rounding
from transforms.score import ScoreSlices
from transforms.scorer import ScorerSettings
from transforms.tokenizer import Encoding, Tokenizer

_TABLE = 4096  # distributions to draw from
_GOLD_IN_FRONT = 0.5


@functools.lru_cache(maxsize=1)
def _tokenizer(place: str) -> Tokenizer:
    return tokenizer.load(place)


@functools.lru_cache(maxsize=1)
def _distributions(k: int) -> np.ndarray:
    """Returns logprobs of k entries by falling logprob, a row a distribution."""
    probs = np.random.default_rng(0).dirichlet(np.full(4 * k, 0.2), _TABLE)
    kept = np.sort(probs, axis=1)[:, ::-1][:, :k]
    return np.log(np.maximum(kept, 1e-7)).astype(np.float32)


@functools.lru_cache(maxsize=1)
def _order(size: int) -> np.ndarray:
    return np.random.default_rng(size).permutation(size).astype(np.int32)


def make_score(window: Window, found: Encoding, k: int, size: int) -> Score:
    """Makes up what a model of `size` ids says of a window."""
    n = len(found.token_ids) - 1
    rng = np.random.default_rng([int(window.window_id, 16), size])
    logprobs = _distributions(k)[rng.integers(0, _TABLE, n)]
    logprobs = logprobs - rng.exponential(0.2, (n, 1)).astype(np.float32)
    # Ranks that rise by drawn steps never meet, so that a row's ids are distinct.
    steps = rng.integers(1, size // (k + 1), (n, k))
    ids = _order(size)[steps.cumsum(axis=1) - 1]
    places = rng.geometric(_GOLD_IN_FRONT, n) - 1
    gold = found.token_ids[1:]
    gold_logprob = _put_gold(ids, logprobs, gold, places)
    return Score(
        window_id=window.window_id,
        token_ids=found.token_ids,
        byte_ends=found.byte_ends,
        top_ids=ids,
        top_logprobs=logprobs,
        logsumexp=rng.normal(15, 3, n).astype(np.float32),
        gold_logprob=gold_logprob,
        nll_nats=-float(gold_logprob.sum(dtype=np.float64)),
        n_bytes=len(window.text.encode()),
    )


def _put_gold(
    ids: np.ndarray, logprobs: np.ndarray, gold: np.ndarray, places: np.ndarray
) -> np.ndarray:
    """Puts the gold ids at their places in their rows; returns their logprobs.

    A place behind the last is one that is not kept.
    """
    k, rows = ids.shape[1], np.arange(len(ids))
    found = ids == gold[:, None]
    there = found.any(axis=1)
    kept = there | (places < k)
    places = np.where(kept, np.minimum(places, k - 1), k - 1)
    # Where gold was drawn too, it trades places with what stands at its own.
    ids[rows[there], found.argmax(axis=1)[there]] = ids[rows[there], places[there]]
    ids[rows[kept], places[kept]] = gold[kept]
    return np.where(kept, logprobs[rows, places], logprobs[:, -1] - np.float32(1))


class StubSlices(ScoreSlices):
    """Does what `ScoreSlices` does, but for the model."""

    def load(self) -> None:
        """There is no model to load."""

    def fill(self, piece: Slice, tables: parquet.TableWriter) -> None:
        """Makes up the scores of a slice, all of them before the first is written."""
        groups = list(windows.read_slice(self.windows, piece))
        every = [window for group in groups for window in group]
        own, k = _tokenizer(self.settings.model), self.settings.top_k
        found = own.encode_windows(
            [window.text for window in every], [w.ends_document for w in every]
        )
        made = [
            make_score(window, encoding, k, own.size)
            for window, encoding in zip(every, found, strict=True)
        ]
        start = 0
        for group in groups:
            stop = start + len(group)
            rounded = rounding.round_scores(made[start:stop])
            tables.write(scores.to_table(rounded, self.schema))
            start = stop
        tables.footer.update(
            k=k,
            windows=len(made),
            failed=0,
            tokens=sum(len(s.token_ids) - 1 for s in made),
            halved_batches=0,
        )


def score_windows(config: ScoreConfig, *, finish: bool = True) -> Manifest | None:
    """Scores as `pipelines.score` does; without `finish` as if killed at the end."""
    own = _tokenizer(config.model)
    inputs = {
        "windows": manifest.read(config.windows, windows.STAGE).fingerprint,
        "model": f"stub of {own.fingerprint}",
        "tokenizer": own.fingerprint,
    }
    shaped = {"top_k": config.top_k}
    if stage.whole(config.output, scores.STAGE, shaped, inputs, overwrite=False):
        return manifest.read(config.output, scores.STAGE)
    work = StubSlices(
        windows=config.windows,
        output=config.output,
        settings=ScorerSettings(model=config.model, top_k=config.top_k),
        model=inputs["model"],
        tokenizer=inputs["tokenizer"],
        identity=stage.identity(scores.STAGE, shaped, inputs),
    )

    def describe() -> Manifest:
        return stage.finish(
            config.output,
            scores.STAGE,
            settings=shaped,
            inputs=inputs,
            origins={
                "windows": config.windows,
                "model": config.model,
                "tokenizer": config.model,
            },
            names=[piece.output for piece in plan.read(config.windows)],
            count=lambda footers: stage.total(footers, "windows", "failed", "tokens"),
        )

    whole = stage.do_slices(
        "score", work, config.windows, config.slices, [], describe=describe
    )
    return describe() if whole and finish else None


def main(argv: list[str]) -> None:
    """Scores by the flags of `fusebeam score`; with `--unfinished` writes no manifest.

    That is what is there when a launcher is killed once all slices are done.
    """
    flags = [word for word in argv if word != "--unfinished"]
    config = settings.parse_flags(ScoreConfig, flags, prog="scale_stub", description="")
    score_windows(config, finish=flags == argv)
