"""Scores the slices of a windows folder with one model."""

import contextlib
import dataclasses
import gc
import threading
from collections import Counter
from typing import Any

import pyarrow as pa
import torch

from schemas import files, parquet, scores, windows
from schemas.errors import FusionError, SchemaError
from schemas.plan import Slice
from schemas.scores import Score
from transforms import devices, overlap, scorer
from transforms.functional import counted, rounding
from transforms.scorer import Scorer, ScorerSettings

_LOADING = threading.Lock()
_LOADED: dict[tuple[ScorerSettings, str, str], Scorer] = {}
"""The process's model, at most one."""

_BEHIND = 2
"""Row groups that may wait to be encoded and written."""


def _load(settings: ScorerSettings, model: str, tokens: str) -> Scorer:
    """Loads a scorer, and sees that it is the one that the job is about."""
    made = scorer.load(settings)
    found = scorer.fingerprint_of(settings)
    for what, name, wanted, here in (
        ("model", settings.model, model, found),
        ("tokenizer", made.tokenizer.name, tokens, made.tokenizer.fingerprint),
    ):
        if here != wanted:
            raise SchemaError(
                f"{what} {name} must be the same on every worker as where the job was"
                f" started (fingerprint {wanted}), but here it is another ({here});"
                " give all of them the same files"
            )
    return made


def shared_scorer(settings: ScorerSettings, model: str, tokens: str) -> Scorer:
    """Returns the process's scorer of these settings; loads it once for all threads.

    One whose model has failed for good is let go of, and loaded anew.

    Args:
      settings: the model and how it is run.
      model: fingerprint that the model must have.
      tokens: fingerprint that its tokenizer must have.

    Raises:
      SchemaError: if what lies here is another model or tokenizer; names both.
    """
    key = settings, model, tokens
    with _LOADING:
        if key not in _LOADED or _LOADED[key].engine.broken:
            _let_go()  # before, not after: memory need not hold two
            _LOADED[key] = _load(*key)
        return _LOADED[key]


def _let_go() -> None:
    while _LOADED:
        _LOADED.popitem()[1].engine.close()
    gc.collect()  # a model's parts refer to each other
    torch.cuda.empty_cache()  # nothing happens where CUDA was not used


def unload() -> None:
    """Lets go of the process's model and its GPU, for another model or process."""
    with _LOADING:
        _let_go()
        devices.release()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreSlices:
    """Writes what a model says of each window of a slice, in the order of the windows.

    Attributes:
      windows: the windows folder.
      output: the scores folder.
      settings: the model and how it is run.
      model: fingerprint of the model.
      tokenizer: fingerprint of its tokenizer.
      identity: digest of the settings, the model and the tokenizer.
      max_reject_fraction: share of a slice's windows that may fail.
      overwrite: whether files of other settings are written anew.
    """

    windows: str
    output: str
    settings: ScorerSettings
    model: str
    tokenizer: str
    identity: str
    max_reject_fraction: float = 0.0
    overwrite: bool = False

    @property
    def schema(self) -> pa.Schema:
        """Columns of the files."""
        return scores.schema_of(self.settings.tail_samples)

    @property
    def options(self) -> dict[str, Any]:
        """Options of the writer."""
        return scores.options_of(self.schema)

    def fingerprint(self, piece: Slice) -> str:
        """Digests all that shapes the file of a slice."""
        return files.digest([scores.STAGE, self.identity, piece.digest])

    def load(self) -> None:
        """Loads the model, which the process keeps."""
        shared_scorer(self.settings, self.model, self.tokenizer)

    def fill(self, piece: Slice, tables: parquet.TableWriter) -> None:
        """Scores a slice; a row group of scores for each row group of windows.

        Row groups are read and tokenized ahead of the model, and encoded and written
        behind it, at once.
        """
        model = shared_scorer(self.settings, self.model, self.tokenizer)
        count = Counter[str]()
        errors: list[str] = []

        def write(made: list[Score]) -> None:
            rounded = rounding.round_scores(made)
            tables.write(scores.to_table(rounded, self.schema))

        groups = windows.read_slice(self.windows, piece)
        with (
            contextlib.closing(model.stream(groups)) as stream,
            overlap.behind(write, _BEHIND) as put,
        ):
            for scored in stream:
                put(scored.scores)
                count["windows"] += len(scored.scores)
                count["tokens"] += sum(
                    max(0, len(s.token_ids) - 1) for s in scored.scores
                )
                count["halved_batches"] += scored.halved_batches
                errors += [s.error for s in scored.scores if s.error is not None]
        self._check(piece, errors, count["windows"])
        if self.settings.tail_samples:
            tables.footer["tail_samples"] = self.settings.tail_samples
        tables.footer.update(
            k=self.settings.top_k,
            windows=count["windows"],
            failed=len(errors),
            tokens=count["tokens"],
            halved_batches=count["halved_batches"],
            way=model.engine.layout,
            reduction=model.engine.reducer,
        )

    def give_up(self, piece: Slice, tables: parquet.TableWriter, reason: str) -> None:
        """Writes every window of a slice as failed."""
        k, samples = self.settings.top_k, self.settings.tail_samples
        for group in windows.read_slice(self.windows, piece):
            rows = [
                scores.failed(
                    window.window_id,
                    counted.counted_bytes(len(window.text.encode()), window.loss_spans),
                    reason,
                    k,
                    samples,
                )
                for window in group
            ]
            tables.write(scores.to_table(rows, self.schema))
        if samples:
            tables.footer["tail_samples"] = samples
        tables.footer.update(
            k=k,
            windows=tables.rows,
            failed=tables.rows,
            tokens=0,
            halved_batches=0,
        )

    def release(self) -> None:
        """Lets go of the model."""
        unload()

    def _check(self, piece: Slice, errors: list[str], total: int) -> None:
        if len(errors) > self.max_reject_fraction * total:
            # Digits are places and sizes: without them like errors count as one.
            reasons = Counter("".join(c for c in e if not c.isdigit()) for e in errors)
            raise FusionError(
                f"at most {self.max_reject_fraction:g} of the windows of slice"
                f" {piece.index} may fail, got {len(errors)} of {total}:"
                f" {errors[0]} ({len(reasons)} kinds of error); mend the cause, or"
                " allow a share by --max_reject_fraction"
            )
