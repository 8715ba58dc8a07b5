"""Sizes and errors of scores and fused rows, by vocabulary, and peers' encodings.

    python -m tests.bench.formats [--page]

On real outputs: of SmolLM2, and of models that are made here with vocabularies of 8k,
32k and 152k (`small_models`); all are kept in `.cache/bench`, without which they take
some ten minutes on two quiet cores. Errors are KL(stored ‖ original) over the kept
entries and the tail, the mean over positions: of scores, of fused rows coded from exact
scores, and of the chain, fused rows coded from scores that were stored. Sizes of scores
are of the whole file, of fused rows of all columns: the footer's table of ranks, which
a slice's millions of tokens share, would weigh too much on these few. `--page` writes
the tables into docs/results.md.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from examples import comparison, results
from schemas import parquet, scores
from schemas.scores import Score
from tests.bench import divergence, fused_files, peers, said, small_models
from tests.bench import smollm2 as real
from tests.bench.bench_codec import column_bytes, read_rows
from transforms import allocator
from transforms.functional import codec, ranks, rounding
from transforms.functional.codec import Distributions
from transforms.functional.nucleus import Nucleus

PAGE = "docs/results.md"
PART = "formats"
KEPT: tuple[tuple[int, Nucleus | None], ...] = (
    (10, None),
    (64, None),
    (10, Nucleus(top_p=0.95, min_k=2)),
    (64, Nucleus(top_p=0.95, min_k=4)),
)
AIMS = {8_192: (30, 21), 32_000: (30, 21), 49_152: (30, 21), 151_665: (30, 29)}
"""Bytes a token at k = 10, of scores and of fused rows, by size of the vocabulary."""
MOST_NATS = 1.5e-4
HEADS = ("model", "k", "kept", "scores", "KL", "fused", "KL", "KL of the chain", "met")
PEERS = (
    "FuseLLM",
    "DistillKit, exact",
    "DistillKit, 16 exact, 6 terms",
    "Megatron-LM",
    "MaxText",
    "nested lists",
    "NeMo-Aligner",
)
ROWS = 20_000
"""Positions that peers' encodings are tried on, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model's name, the size of its vocabulary, and what it says."""

    name: str
    size: int
    scored: list[Score]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one way to keep a model's outputs comes to; bytes a token, nats."""

    kept: float
    scores_bytes: float
    scores_nats: float
    fused_bytes: float
    fused_nats: float
    chain_nats: float


def models() -> Iterator[Model]:
    """Yields the models, the smallest vocabulary first."""
    made = [
        Model(
            name=f"{name}, {small_models.size_of(name):,}",
            size=small_models.size_of(name),
            scored=small_models.scored(name),
        )
        for name in small_models.names()
    ]
    if found := real.scored():
        name = f"SmolLM2-135M, {real.SIZE:,}"
        made.append(Model(name=name, size=real.SIZE, scored=found))
    yield from sorted(made, key=lambda model: model.size)


def measure(model: Model, k: int, chosen: Nucleus | None) -> Figures:
    """Writes a model's outputs as scores and as fused rows, and reads them again."""
    exact = [said.cut(score, k, chosen) for score in model.scored]
    stored = rounding.round_scores(exact)
    tokens = sum(len(score.gold_logprob) for score in exact)
    kept = np.concatenate([score.top_logprobs for score in exact])
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/scores.parquet"
        write_scores(path, stored, k)
        scores_bytes = os.path.getsize(path) / tokens
        read = [score for group in scores.read(path) for score in group]
        again = np.concatenate([score.top_logprobs for score in read])
        fused_bytes, rows = fuse(f"{folder}/fused.parquet", exact, model.size)
        _, chained = fuse(f"{folder}/fused.parquet", stored, model.size)
    original = distributions(exact)
    return Figures(
        kept=float(np.isfinite(kept).sum(axis=1).mean()),
        scores_bytes=scores_bytes,
        scores_nats=float(divergence.of_logprobs(again, kept).mean()),
        fused_bytes=fused_bytes,
        fused_nats=_error(rows, original),
        chain_nats=_error(chained, original),
    )


def write_scores(path: str, found: Sequence[Score], k: int) -> None:
    """Writes a scores file, a row group."""
    footer = {"fingerprint": "", "tokens": None, "k": k}
    options = scores.WRITER_OPTIONS
    with parquet.writer(path, scores.SCHEMA, footer, **options) as tables:
        tables.write(scores.to_table(found))


def distributions(found: Sequence[Score]) -> list[Distributions]:
    """Lays scores out as the rows that are fused of them, exactly."""
    return [rows for _, rows, _ in fused_files.packed_rows(said.outputs(found))]


def fuse(
    path: str, found: Sequence[Score], size: int
) -> tuple[float, list[Distributions]]:
    """Codes and writes rows of one source; returns bytes a token, and what is read."""
    packed = list(fused_files.packed_rows(said.outputs(found)))
    table = ranks.rank_by_frequency(fused_files.frequencies(packed, size))
    frames = [codec.encode_rows(rows, ids, table) for ids, rows, _ in packed]
    fused_files.write(path, packed, frames, table)
    tokens = sum(int((rows.counts > 0).sum()) for _, rows, _ in packed)
    return column_bytes(path) / tokens, list(read_rows(path))


def _error(stored: list[Distributions], original: list[Distributions]) -> float:
    pairs = zip(stored, original, strict=True)
    return float(np.concatenate([divergence.of_rows(*pair) for pair in pairs]).mean())


def rows_of(model: Model) -> Iterator[list[str]]:
    """Yields the lines of a model in the table of our own formats."""
    for k, chosen in KEPT:
        found = measure(model, k, chosen)
        keep = "all" if chosen is None else f"top-p {chosen.top_p}, {chosen.min_k} up"
        nats = (found.scores_nats, found.fused_nats, found.chain_nats)
        yield [
            model.name,
            str(k),
            f"{keep}: {found.kept:.1f}" if chosen else keep,
            f"{found.scores_bytes:.2f}",
            f"{nats[0]:.2e}",
            f"{found.fused_bytes:.2f}",
            f"{nats[1]:.2e}",
            f"{nats[2]:.2e}",
            _met(model.size, k, chosen, found),
        ]


def _met(size: int, k: int, chosen: Nucleus | None, found: Figures) -> str:
    exact = max(found.scores_nats, found.fused_nats) <= MOST_NATS
    if k != 10 or chosen is not None:
        return "yes" if exact else "**no**"
    sizes = (found.scores_bytes, found.fused_bytes)
    small = all(a <= b for a, b in zip(sizes, AIMS[size], strict=True))
    return "yes" if exact and small else "**no**"


def peers_of(model: Model, k: int) -> list[str]:
    """Makes a model's line in the table of peers' encodings, bytes a token."""
    every = [said.cut(score, k) for score in model.scored]
    ids = np.concatenate([score.top_ids for score in every])[:ROWS]
    logprobs = np.concatenate([score.top_logprobs for score in every])[:ROWS]
    fits = model.size <= peers.MEGATRON_SIZE
    fit = peers.distillkit(k, model.size, exact=16, terms=6) if k > 16 else None
    values = (
        peers.fusellm(k),
        peers.distillkit(k, model.size),
        fit,
        peers.megatron(ids, logprobs) if fits else None,
        peers.varints(ids),
        peers.nested_lists(ids, logprobs),
        peers.json_lines(ids, logprobs),
    )
    told = ["cannot" if i == 3 and v is None else v for i, v in enumerate(values)]
    return [model.name, str(k), *map(_figure, told)]


def _figure(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")


def page(found: Sequence[Model]) -> str:
    """Writes both tables."""
    ours = [line for model in found for line in rows_of(model)]
    theirs = [peers_of(model, k) for model in found for k in (10, 64)]
    return "\n\n".join(
        [
            "Bytes a token, all columns; KL in nats:",
            comparison.table(HEADS, ours),
            "What peers' encodings of the same entries take, bytes a token, token ids"
            " and all else of a row apart:",
            comparison.table(("model", "k", *PEERS), theirs),
            comparison.made_line(results.about(sys.argv[1:], "tests.bench.formats")),
        ]
    )


def main(argv: Sequence[str]) -> None:
    """Measures all, and prints the tables or writes them into the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.formats")
    parser.add_argument("--page", action="store_true", help=f"write into {PAGE}")
    chosen = parser.parse_args(argv)
    allocator.keep_large_blocks()
    text = page(list(models()))
    print(text)
    if chosen.page:
        results.write_page(PAGE, text, PART)


if __name__ == "__main__":
    main(sys.argv[1:])
