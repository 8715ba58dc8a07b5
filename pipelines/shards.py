"""Proves fused rows, for `verify`, by the windows and scores that they were made of."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pipelines import maps
from schemas import (
    cooccurrences,
    files,
    fused,
    manifest,
    parquet,
    plan,
    scores,
    windows,
)
from schemas.errors import SchemaError
from schemas.manifest import Manifest
from schemas.plan import Slice
from schemas.scores import Score
from schemas.windows import Window
from transforms import fuse, joined, rows
from transforms.functional import chunks, tail
from transforms.slices import QUARANTINED
from transforms.sources import Source
from transforms.strategies import Aligner


def check(folder: str, made: Manifest) -> str:
    """Checks that every window that the target scored stands in one row, once.

    Its tokens and every figure beside them must be those of the scores: what each
    source gives it, how much of it each covers, and the chosen source's chunks. The
    distributions themselves have a checksum of their own.

    Raises:
      SchemaError: at the first window that differs; names file, window and column.
    """
    source = manifest.origin(folder, made, "windows")
    manifest.check_input(folder, made, "windows", source, windows.STAGE)
    named = {"target": manifest.origin(folder, made, "target")}
    for entry in made.origins["sources"]:
        name, _, stored = entry.partition("=")
        named[name] = files.resolve(folder, stored)
    for name, at in named.items():
        manifest.check_input(folder, made, f"scores:{name}", at, scores.STAGE)
    kept = failed = 0
    for piece in plan.read(source):
        done, lost = _check_file(_Shard(folder, made, piece, source, named))
        kept, failed = kept + done, failed + lost
    manifest.check_count(folder, made, "windows", kept)
    manifest.check_count(folder, made, "failed", failed)
    return f"{kept:,} windows fused + {failed:,} failed = all of {source}"


class _Shard:
    """A file of fused rows, and what it was made of.

    Args:
      folder: the fused folder.
      made: its manifest.
      piece: the slice.
      windows: the windows folder.
      named: the scores folder of the target and of each source.
    """

    def __init__(
        self,
        folder: str,
        made: Manifest,
        piece: Slice,
        windows: str,
        named: Mapping[str, str],
    ) -> None:
        self.path = files.join(folder, piece.output)
        self._windows, self._piece = windows, piece
        footer = parquet.footer(self.path)
        models = {
            name: _source(folder, name, at, footer["eos_ids"].get(name))
            for name, at in named.items()
        }
        self.given_up = QUARANTINED in footer
        self.sources = [models[name] for name in footer["sources"]]
        self.target = models["target"]
        self.aligner = Aligner(
            folder=files.join(folder, fuse.MAPS),
            target=self.target,
            strategy=made.settings["strategy"],
            reference=made.settings["reference"],
        )

    def read(self) -> Iterator[tuple[Window, Score, list[Score]]]:
        """Yields each window with what the target and the candidates say of it."""
        at = [one.scores for one in (self.target, *self.sources)]
        for window, (target, *said) in joined.read(self._windows, self._piece, at):
            yield window, target, [tail.join_draws(one) for one in said]


def _source(folder: str, name: str, at: str, eos_id: int | None) -> Source:
    counted = files.join(folder, fuse.MAPS, maps.COUNTS, name)
    counts = None
    if manifest.present(counted):
        counts = manifest.read(counted, cooccurrences.STAGE).fingerprint
    tokenizer = manifest.read(at, scores.STAGE).inputs["tokenizer"]
    return Source(
        name=name, scores=at, tokenizer=tokenizer, eos_id=eos_id, counts=counts
    )


def _check_file(shard: _Shard) -> tuple[int, int]:
    """Checks one file; returns how many windows it holds, and how many failed."""
    found = dict(_segments(shard.path))
    kept = failed = 0
    for window, target, said in shard.read():
        if target.error is not None or shard.given_up:
            failed += 1
            continue
        if (own := found.pop(window.window_id, None)) is None:
            raise SchemaError(
                f"{shard.path} must hold each window that the target scored, it lacks"
                f" {window.window_id}"
            )
        kept += 1
        for name, wanted in _figures(shard, window, target, said, own).items():
            if not _equal(own[name], wanted):
                raise SchemaError(
                    f"{shard.path}: window {window.window_id} must have the {name} that"
                    " its scores give, it has others; fuse again with --overwrite"
                )
    if found:
        raise SchemaError(
            f"{shard.path} must hold windows that the target scored alone, it holds"
            f" {next(iter(found))}"
        )
    return kept, failed


def _equal(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, np.ndarray) and wanted.dtype.kind == "f":
        return np.array_equal(found, wanted, equal_nan=True)
    return bool(np.array_equal(found, wanted))


def _figures(
    shard: _Shard,
    window: Window,
    target: Score,
    said: list[Score],
    own: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns what the columns of a window's segment must hold."""
    pairs = list(zip(shard.sources, said, strict=True))
    used = [shard.aligner.transfer(window, target, *pair).used for pair in pairs]
    nats = [np.nan if one.nll_nats is None else one.nll_nats for one in said]
    weights = own["weights"]
    cut = rows.cut_chosen(window, target, pairs, weights, shard.target)
    return {
        "input_ids": target.token_ids,
        "domains": window.domain,
        "loss_mask": np.append(rows.loss_positions(window, target), False),
        "n_bytes": target.n_bytes,
        "source_logprobs": -np.array(nats),
        "source_coverage": np.mean(used, axis=1).astype(np.float32),
        "chunk_ends": cut.ends,
        "chunk_logprobs": chunks.round_logprobs(cut.logprobs),
    }


def _segments(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each window of a file with its share of the columns.

    Raises:
      SchemaError: if a window stands there twice.
    """
    seen = set()
    for row in (row for group in fused.read(path) for row in group):
        stops = np.cumsum(row.segment_lengths)
        starts = stops - row.segment_lengths
        cuts = np.searchsorted(row.chunk_ends, np.append(starts, stops[-1:]))
        for g, name in enumerate(row.window_ids):
            if name in seen:
                raise SchemaError(f"{path} must hold window {name} once, it does twice")
            seen.add(name)
            tokens = slice(starts[g], stops[g])
            own = slice(cuts[g], cuts[g + 1])
            yield (
                name,
                {
                    "input_ids": row.input_ids[tokens],
                    "domains": row.domains[g],
                    "loss_mask": row.loss_mask[tokens],
                    "weights": row.weights[g],
                    "n_bytes": row.n_bytes[g],
                    "source_logprobs": row.source_logprobs[g],
                    "source_coverage": row.source_coverage[g],
                    "chunk_ends": row.chunk_ends[own] - starts[g],
                    "chunk_logprobs": row.chunk_logprobs[own],
                },
            )
