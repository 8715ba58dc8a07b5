"""How far scores of windows that share a batch are from a model's own, one by one.

    python -m tests.bench.equality [--page]

Windows of one to some hundred tokens are scored together, as `fusebeam score` does, in
float32; and each is read by transformers alone, whose logits are made logprobs in
float64. The largest difference of any position is told, by architecture: tiny models of
random weights, whose logits are spread over several nats, and SmolLM2 where its file is
there. `--page` writes the table into docs/results.md.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from examples import comparison, results
from schemas.scores import Score
from schemas.windows import Window
from tests import causal_models
from tests.bench import bench_score, smollm2
from tests.transforms import scoring
from transforms import allocator, loading, tokenizer
from transforms.packing import Padded
from transforms.scorer import Scorer

PAGE = "docs/results.md"
PART = "equality"
MOST_NATS = 1e-4
HEADS = ("model", "windows lie", "tokens", "gold", "log-sum-exp", "kept", "met")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gaps:
    """The largest differences from a model's own float64 logprobs, in nats.

    Attributes:
      gold: of the token that comes next.
      logsumexp: of all logits.
      kept: of the entries that are kept: from their ids', and from the model's own
        likeliest, rank by rank.
    """

    gold: float
    logsumexp: float
    kept: float

    @property
    def worst(self) -> float:
        """The largest of all; NaN where any is."""
        return float(np.max([self.gold, self.logsumexp, self.kept]))


def gaps(model: Any, found: Sequence[Score]) -> Gaps:
    """Compares scores with what a model says of each window alone.

    Args:
      model: of transformers, on the CPU.
      found: scores with entries at every rank, none of which failed.
    """
    worst = np.zeros((len(found), 3))
    for into, score in zip(worst, found, strict=True):
        logits, logprobs = scoring.dense_logprobs(model, score)
        total, kept = score.logsumexp, score.top_logprobs
        assert total is not None
        rows = np.arange(len(logprobs))
        best = -np.sort(-logprobs, axis=1)[:, : kept.shape[1]]
        given = np.take_along_axis(logprobs, score.top_ids.astype(np.int64), axis=1)
        into[0] = abs(score.gold_logprob - logprobs[rows, score.token_ids[1:]]).max()
        into[1] = abs(total - (logits - logprobs)[:, 0]).max()
        into[2] = max(abs(kept - best).max(), abs(kept - given).max())
    gold, logsumexp, kept = worst.max(axis=0)
    return Gaps(gold=float(gold), logsumexp=float(logsumexp), kept=float(kept))


def models() -> Iterator[tuple[str, Any, Scorer, list[Window]]]:
    """Yields name, model, what scores it, and windows for it."""
    texts = [
        scoring.window(text * more, f"{place} {more}")
        for more in (1, 3)
        for place, text in enumerate(scoring.TEXTS)
        if len(text) * more <= causal_models.CONTEXT or more == 1
    ]
    for name in sorted(causal_models.CAUSAL):
        yield (name, *scoring.make(name), texts)
    if (path := smollm2.find()) is not None:
        cpu = torch.device("cpu")
        model = loading.load_model(str(path), dtype=torch.float32, device=cpu)
        made = Scorer(model, tokenizer.load(str(path)))
        yield "SmolLM2-135M", model, made, bench_score.cut(0, 0, 24)


def line(name: str, model: Any, ready: Scorer, windows: Sequence[Window]) -> list[str]:
    """Scores windows, and makes a model's line of the table."""
    found = ready.score(windows).scores
    apart = gaps(model, found)
    way = getattr(ready.engine, "way", None)
    return [
        name,
        f"padded ({way.why})" if isinstance(way, Padded) else ready.engine.layout,
        f"{sum(len(score.gold_logprob) for score in found):,}",
        f"{apart.gold:.1e}",
        f"{apart.logsumexp:.1e}",
        f"{apart.kept:.1e}",
        "yes" if apart.worst <= MOST_NATS else "**no**",
    ]


def main(argv: Sequence[str]) -> None:
    """Compares all, and prints the table or writes it into the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.equality")
    parser.add_argument("--page", action="store_true", help=f"write into {PAGE}")
    chosen = parser.parse_args(argv)
    allocator.keep_large_blocks()
    table = comparison.table(HEADS, [line(*given) for given in models()])
    made = results.about(sys.argv[1:], "tests.bench.equality")
    text = f"{table}\n\n{comparison.made_line(made)}"
    print(text)
    if chosen.page:
        results.write_page(PAGE, text, PART)


if __name__ == "__main__":
    main(sys.argv[1:])
