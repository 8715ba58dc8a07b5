"""fusebeam inspect: show windows, scores or fused rows as text.

For scores, one line a position: the bytes and the text of the token that came next, its
cost in bits, and the likeliest tokens with their probabilities. For fused rows the same
of the fused distribution, with the source that weighs most in each window.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from schemas import files, fused, manifest, parquet, plan, scores, windows
from schemas.errors import SchemaError
from schemas.fused import FusedRow
from schemas.scores import Score
from schemas.windows import Window
from transforms import tokenizer
from transforms.functional import codec, ranks
from transforms.tokenizer import Tokenizer

_DIM, _BOLD, _RED, _GREEN, _OFF = (f"\x1b[{n}m" for n in (2, 1, 31, 32, 0))
_CHEAP_BITS, _DEAR_BITS = 2.0, 8.0


class Page:
    """Writes text, in color on a terminal."""

    def __init__(self, color: bool) -> None:
        self._color = color

    def paint(self, text: str, code: str) -> str:
        """Colors a text, where there is color."""
        return f"{code}{text}{_OFF}" if self._color else text

    def token(self, text: str, bits: float) -> str:
        """Colors a token by its cost: cheap green, dear red."""
        if bits >= _DEAR_BITS:
            return self.paint(text, _RED)
        return self.paint(text, _GREEN) if bits <= _CHEAP_BITS else text

    def window(self, window: Window) -> Iterator[str]:
        """Shows a window: where it stands, and its text."""
        n_bytes = len(window.text.encode())
        start = window.byte_start
        yield self.paint(
            f"window {window.window_id}  document {window.doc_id}  bytes"
            f" {start}-{start + n_bytes}{' (its last)' * window.ends_document}"
            f"  domain {window.domain or windows.DEFAULT_DOMAIN}",
            _BOLD,
        )
        yield window.text

    def score(
        self, window: Window, score: Score, own: Tokenizer, top: int
    ) -> Iterator[str]:
        """Shows what a model says of a window, a line for each position."""
        yield next(self.window(window))
        if score.error is not None:
            yield self.paint(f"failed: {score.error}", _RED)
            return
        yield f"{score.bits_per_byte:.3f} bits per byte over {score.n_bytes} bytes"
        for t, logprob in enumerate(score.gold_logprob):
            bits = float(-logprob / np.log(2))
            span = f"{score.byte_ends[t]}-{score.byte_ends[t + 1]}"
            text = shown(own, int(score.token_ids[t + 1]))
            kept = [
                f"{shown(own, int(i))} {np.exp(p):.3f}"
                for i, p in zip(
                    score.top_ids[t, :top], score.top_logprobs[t, :top], strict=True
                )
                if i >= 0
            ]
            yield self._line(span, text, bits, kept)

    def row(
        self,
        row: FusedRow,
        rows: codec.Distributions,
        own: Tokenizer,
        sources: Sequence[str],
        top: int,
    ) -> Iterator[str]:
        """Shows a packed row: its windows, and what was fused at each position."""
        starts = itertools.accumulate([0, *row.segment_lengths.tolist()])
        for segment, (start, stop) in enumerate(itertools.pairwise(starts)):
            weights = row.weights[segment]
            best = sources[int(weights.argmax())] if weights.any() else "no source"
            yield self.paint(
                f"window {row.window_ids[segment]}  tokens {start}-{stop}  domain"
                f" {row.domains[segment] or windows.DEFAULT_DOMAIN}  from {best}",
                _BOLD,
            )
            for p in range(start, stop - 1):
                count = rows.counts[p]
                kept = [
                    f"{shown(own, int(i))} {q:.3f}"
                    for i, q in zip(
                        rows.ids[p, : min(top, count)],
                        rows.probs[p, : min(top, count)],
                        strict=True,
                    )
                ]
                gold = int(row.input_ids[p + 1])
                probs = rows.probs[p, :count][rows.ids[p, :count] == gold]
                bits = float(-np.log2(probs[0])) if probs.size else float("nan")
                if count:
                    kept.append(f"tail {rows.tail[p]:.3f}")
                yield self._line(str(p), shown(own, gold), bits, kept)

    def _line(self, place: str, text: str, bits: float, kept: Sequence[str]) -> str:
        cost = "     -" if np.isnan(bits) else f"{bits:6.2f}"
        rest = self.paint("  ".join(kept) or "no distribution", _DIM)
        return f"{place:>11}  {self.token(f'{text:<18}', bits)} {cost}  {rest}"


def shown(own: Tokenizer, token_id: int) -> str:
    """Writes a token visibly: its text quoted, or the id of a control token."""
    piece = own.token_bytes[token_id] if token_id < own.size else None
    if piece is None:
        names = {own.bos_id: "<BOS>", own.eos_id: "<EOS>"}
        return names.get(token_id, f"<{token_id}>")
    return repr(piece.decode(errors="backslashreplace"))


def lines(
    folder: str, page: Page, *, skip: int, count: int, top: int, tokens: str | None
) -> Iterator[str]:
    """Yields the lines that show `count` windows or rows of a folder, from `skip`.

    Raises:
      SchemaError: if it is not a finished windows, scores or fused folder.
    """
    stage = files.read_json(files.join(folder, manifest.NAME)).get("stage")
    if stage == windows.STAGE:
        made = windows.read_all(folder, plan.read(folder))
        for window in itertools.islice(made, skip, skip + count):
            yield from page.window(window)
    elif stage == scores.STAGE:
        found = manifest.read(folder, stage)
        own = tokenizer.load(tokens or found.origins["tokenizer"])
        pairs = _scored(folder, manifest.origin(folder, found, "windows"))
        for window, score in itertools.islice(pairs, skip, skip + count):
            yield from page.score(window, score, own, top)
    elif stage == fused.STAGE:
        found = manifest.read(folder, stage)
        scored = manifest.origin(folder, found, "target")
        target = manifest.read(scored, scores.STAGE)
        own = tokenizer.load(tokens or target.origins["tokenizer"])
        for row, rows, sources in itertools.islice(
            _decoded(folder, found), skip, skip + count
        ):
            yield from page.row(row, rows, own, sources, top)
    else:
        raise SchemaError(f"{folder} must hold windows, scores or fused rows")


def _scored(folder: str, source: str) -> Iterator[tuple[Window, Score]]:
    for piece in plan.read(source):
        found = scores.read(files.join(folder, piece.output))
        for group, scored in zip(windows.read_slice(source, piece), found, strict=True):
            yield from zip(group, scored, strict=True)


def _decoded(
    folder: str, found: manifest.Manifest
) -> Iterator[tuple[FusedRow, codec.Distributions, list[str]]]:
    for entry in found.files:
        path = files.join(folder, entry.name)
        footer = parquet.footer(path)
        table = ranks.load_ranks(footer["ranks"])
        for group in fused.read(path):
            for row in group:
                rows = codec.decode_rows(row.distribution, row.input_ids, table)
                yield row, rows, footer["sources"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="fusebeam inspect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", help="a windows, scores or fused folder")
    parser.add_argument("--skip", type=int, default=0, help="windows or rows to skip")
    parser.add_argument("--count", type=int, default=1, help="how many to show")
    parser.add_argument("--top", type=int, default=5, help="entries shown a position")
    parser.add_argument("--tokenizer", help="where it lies now, if it has moved")
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto")
    given = parser.parse_args(sys.argv[1:] if argv is None else argv)
    color = given.color == "always" or (given.color == "auto" and sys.stdout.isatty())
    for line in lines(
        given.folder,
        Page(color),
        skip=given.skip,
        count=given.count,
        top=given.top,
        tokens=given.tokenizer,
    ):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
