r"""fusebeam inspect: show windows, scores or fused rows as text.

For windows, the text, and its tokens where a tokenizer is named. For scores, by what
the slices were computed, and one line a position: the bytes and the text of the token
that came next, its cost in bits, and the likeliest tokens with their probabilities;
then, where tokens were drawn from the rest, its mass and these. For fused rows one line
a position, too, of the fused distribution, with the source that weighs most in each
window, what every source weighs, costs and speaks about, and behind the last token of
each chunk what that chunk costs the source, in bits. For co-occurrences of tokens, the
pairs of a file from the most frequent on. For a merged model, its tensors and how each
was made. For a folder that holds such folders, the commands that show them.

Tokens stand in quotes, with \n and the like escaped, and \xNN for a byte that is no
UTF-8 by itself. Control characters of a text are escaped, new lines and tabs apart.
"""

import argparse
import itertools
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from pipelines import escapes, scored, ways
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
from schemas.arrays import ByteEnds
from schemas.errors import SchemaError
from schemas.fused import FusedRow
from schemas.scores import Score
from schemas.windows import Window
from train.merge import plan as merges
from train.merge import report
from transforms import tokenizer
from transforms.functional import codec, counted, ranks, tail, weigh
from transforms.tokenizer import Tokenizer

MERGED = "merge"
"""The stage of a merged model's manifest; `train.merge` names it too."""

_DIM, BOLD, RED, _GREEN, _OFF = (f"\x1b[{n}m" for n in (2, 1, 31, 32, 0))
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
            return self.paint(text, RED)
        return self.paint(text, _GREEN) if bits <= _CHEAP_BITS else text

    def window(self, window: Window) -> Iterator[str]:
        """Shows a window: where it stands, what of it counts, and its text."""
        n_bytes = len(window.text.encode())
        start = window.byte_start
        counts = ""
        if window.loss_spans is not None:
            size = counted.counted_bytes(n_bytes, window.loss_spans)
            counts = f"  {size} bytes count"
        yield self.paint(
            f"window {window.window_id}  document {escapes.one_line(window.doc_id)}"
            f"  bytes {start}-{start + n_bytes}{' (its last)' * window.ends_document}"
            f"  domain {escapes.one_line(window.domain or windows.DEFAULT_DOMAIN)}"
            f"{counts}",
            BOLD,
        )
        yield escapes.plain(window.text)

    def tokens(self, window: Window, own: Tokenizer) -> Iterator[str]:
        """Shows the tokens of a window, a line for each, with their byte spans."""
        made = own.encode_window(window.text, window.eos_follows, window.control_spans)
        for m, (start, stop) in enumerate(itertools.pairwise(made.byte_ends), 1):
            token_id = int(made.token_ids[m])
            yield f"{f'{start}-{stop}':>11}  {shown(own, token_id):<18} {token_id:>6}"

    def score(
        self, window: Window, score: Score, own: Tokenizer, top: int
    ) -> Iterator[str]:
        """Shows what a model says of a window, a line for each position."""
        yield next(self.window(window))
        if score.error is not None:
            yield self.paint(f"failed: {escapes.one_line(score.error)}", RED)
            return
        yield (
            f"{score.bits_per_byte:.3f} bits per byte over {score.n_bytes} bytes"
            if score.n_bytes
            else "no byte of it counts"
        )
        rest = tail.rest_mass(score)
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
            if score.sampled_ids is not None:
                found = [shown(own, int(i)) for i in score.sampled_ids[t] if i >= 0]
                kept.append(f"rest {rest[t]:.3f} {' '.join(found)}".rstrip())
            yield self._line(span, text, bits, kept)

    def row(
        self,
        row: FusedRow,
        rows: codec.Distributions,
        own: Tokenizer,
        sources: Sequence[str],
        ends: Mapping[str, ByteEnds],
        *,
        top: int,
    ) -> Iterator[str]:
        """Shows a packed row: its windows, and what was fused at each position.

        Args:
          row: the row.
          rows: its distributions.
          own: the target's tokenizer.
          sources: names of the columns of the row's weights.
          ends: by window, where its tokens end.
          top: entries shown of a position.
        """
        starts = itertools.accumulate([0, *row.segment_lengths.tolist()])
        nats = zip(row.chunk_ends.tolist(), row.chunk_logprobs.tolist(), strict=True)
        spent = {end: -logprob / np.log(2) for end, logprob in nats}
        for segment, (start, stop) in enumerate(itertools.pairwise(starts)):
            yield self.paint(
                f"window {row.window_ids[segment]}  tokens {start}-{stop}  domain"
                f" {escapes.one_line(row.domains[segment] or windows.DEFAULT_DOMAIN)}"
                f"  from {taught(row, segment, sources)}",
                BOLD,
            )
            yield from said(row, segment, sources)
            own_ends = ends[row.window_ids[segment]]
            for p in range(start, stop - 1):
                span = f"{own_ends[p - start]}-{own_ends[p - start + 1]}"
                gold = int(row.input_ids[p + 1])
                bits, kept = _position(rows, p, gold, own, top)
                chunk = f"chunk {spent[p + 1]:.2f}" if p + 1 in spent else None
                kept = [*kept, chunk] if chunk else kept
                yield self._line(span, shown(own, gold), bits, kept)

    def _line(self, place: str, text: str, bits: float, kept: Sequence[str]) -> str:
        cost = "     -" if np.isnan(bits) else f"{bits:6.2f}"
        rest = self.paint("  ".join(kept) or "no distribution", _DIM)
        return f"{place:>11}  {self.token(f'{text:<18}', bits)} {cost}  {rest}"


def _position(
    rows: codec.Distributions, p: int, gold: int, own: Tokenizer, top: int
) -> tuple[float, list[str]]:
    """Returns what the next token costs at a position, and the entries as text."""
    count = rows.counts[p]
    ids, probs = rows.ids[p, :count], rows.probs[p, :count]
    pairs = zip(ids[:top], probs[:top], strict=True)
    kept = [f"{shown(own, int(i))} {q:.3f}" for i, q in pairs]
    if count:
        kept.append(f"tail {rows.tail[p]:.3f}")
    found = probs[ids == gold]
    return float(-np.log2(found[0])) if found.size else float("nan"), kept


def said(row: FusedRow, segment: int, sources: Sequence[str]) -> Iterator[str]:
    """Yields a line for each source: what it weighs, costs, and speaks about."""
    width = max(map(len, sources))
    for s, name in enumerate(sources):
        yield (
            f"  {name:<{width}}  weight {row.weights[segment, s]:.3f}"
            f"  {_cost(row, segment, s):.3f} bits per byte"
            f"  {row.source_coverage[segment, s]:.1%} of positions"
        )


def _cost(row: FusedRow, segment: int, source: int) -> float:
    nats = -float(row.source_logprobs[segment, source])
    return weigh.bits_per_byte(nats, int(row.n_bytes[segment]))


def taught(row: FusedRow, segment: int, sources: Sequence[str]) -> str:
    """Names the source that weighs most in a segment, its cost, and how much it says.

    Of equals the first, whose chunks the row holds.
    """
    weights = row.weights[segment]
    if not weights.any():
        return "no source"
    best = int(weights.argmax())
    cost = _cost(row, segment, best)
    share = float(row.source_coverage[segment, best])
    return f"{sources[best]} ({cost:.3f} bits per byte, {share:.1%} of positions)"


def shown(own: Tokenizer, token_id: int) -> str:
    """Writes a token visibly: its text quoted, or the id of a control token."""
    piece = own.token_bytes[token_id] if 0 <= token_id < own.size else None
    if piece is None:
        names = {own.bos_id: "<BOS>", own.eos_id: "<EOS>"}
        return names.get(token_id, f"<{token_id}>")
    return escapes.quoted(piece)


def lines(
    folder: str, page: Page, *, skip: int, count: int, top: int, tokens: str | None
) -> Iterator[str]:
    """Yields the lines that show `count` windows or rows of a folder, from `skip`.

    Raises:
      FileNotFoundError: if there is no finished folder at or below it.
      SchemaError: if it is finished, but holds no windows, scores or fused rows.
    """
    if not manifest.present(folder):
        yield from below(folder)
        return
    stage = files.read_json(files.join(folder, manifest.NAME)).get("stage")
    if stage not in VIEWS:
        raise SchemaError(
            f"{folder} must hold windows, scores, co-occurrences, fused rows or a"
            " merged model"
        )
    views = VIEWS[stage](folder, page, top, tokens)
    chosen = itertools.islice(views, skip, skip + count)
    first = next(chosen, None)
    if first is None:
        total = sum(entry.rows for entry in manifest.read(folder, stage).files)
        yield f"{folder} ends before: it holds {total:,}, of which {skip:,} are skipped"
        return
    if told := ways.spoken(manifest.read(folder, stage).counts):
        yield page.paint(told, _DIM)
    yield from first
    for view in chosen:
        yield from view


def below(folder: str) -> Iterator[str]:
    """Yields the commands that show the finished folders below a folder."""
    found = []
    for path in files.find(folder, manifest.NAME):
        stage = files.read_json(path).get("stage")
        if stage in VIEWS:
            found.append(
                f"fusebeam inspect {shlex.quote(files.parent(path))}  # {stage}"
            )
    if not found:
        raise FileNotFoundError(
            f"{folder} must be a finished windows, scores or fused folder, or hold one;"
            " it does not"
        )
    yield f"{folder} is no stage's own folder; below it are"
    yield from found


_Views = Iterator[Iterator[str]]


def _windows(folder: str, page: Page, top: int, tokens: str | None) -> _Views:
    """Yields the lines of each window; of its tokens, where a tokenizer is named."""
    own = tokenizer.load(tokens) if tokens else None
    for window in windows.read_all(folder, plan.read(folder)):
        more = page.tokens(window, own) if own else ()
        yield itertools.chain(page.window(window), more)


def _scores(folder: str, page: Page, top: int, tokens: str | None) -> _Views:
    found = manifest.read(folder, scores.STAGE)
    own = tokenizer.load(tokens or found.origins["tokenizer"])
    for window, score in scored.pairs(
        folder, manifest.origin(folder, found, "windows")
    ):
        yield page.score(window, score, own, top)


def _rows(folder: str, page: Page, top: int, tokens: str | None) -> _Views:
    found = manifest.read(folder, fused.STAGE)
    target = manifest.origin(folder, found, "target")
    made = manifest.read(target, scores.STAGE)
    own = tokenizer.load(tokens or made.origins["tokenizer"])
    for entry in found.files:
        path = files.join(folder, entry.name)
        footer = parquet.footer(path)
        table = ranks.load_ranks(footer["ranks"])
        ends = {
            score.window_id: score.byte_ends
            for group in scores.read(files.join(target, entry.name))
            for score in group
        }
        for group in fused.read(path):
            for row in group:
                rows = codec.decode_rows(row.distribution, row.input_ids, table)
                yield page.row(row, rows, own, footer["sources"], ends, top=top)


def _pairs(folder: str, page: Page, top: int, tokens: str | None) -> _Views:
    """Yields a line for each pair of tokens, the most frequent of a file first."""
    found = manifest.read(folder, cooccurrences.STAGE)
    (source,) = found.origins["sources"]
    places = (
        files.resolve(folder, source.partition("=")[2]),
        manifest.origin(folder, found, "target"),
    )
    theirs, ours = map(scored.tokenizer_of, places)
    for entry in found.files:
        parts = list(cooccurrences.read(files.join(folder, entry.name)))
        ids, targets, counts = map(np.concatenate, zip(*parts, strict=True))
        for row in np.argsort(-counts, kind="stable"):
            pair = shown(theirs, int(ids[row])), shown(ours, int(targets[row]))
            yield iter([f"{counts[row]:>9,}  {pair[0]:<18}  {pair[1]}"])


def _tensors(folder: str, page: Page, top: int, tokens: str | None) -> _Views:
    """Yields a line for each tensor of a merged model."""
    found = manifest.read(folder, MERGED)
    names = [*found.settings["models"], "base"]
    for shard in merges.read(folder):
        for tensor in shard.tensors:
            yield iter(["  ".join([*report.cells(tensor, names), shard.file])])


VIEWS: dict[str, Callable[[str, Page, int, str | None], _Views]] = {
    windows.STAGE: _windows,
    scores.STAGE: _scores,
    fused.STAGE: _rows,
    cooccurrences.STAGE: _pairs,
    MERGED: _tensors,
}


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.lstrip("-").isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"must be a number of at least {least}, got {text!r}"
            )
        return int(text)

    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="fusebeam inspect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("folder", help="a windows, scores or fused folder, or one that holds such")
    add("--skip", type=_at_least(0), default=0, help="windows or rows to skip")
    add("--count", type=_at_least(1), default=1, help="how many to show")
    add("--top", type=_at_least(1), default=5, help="entries shown a position")
    add(
        "--tokenizer",
        metavar="MODEL",
        help="of windows: show their tokens too; else where it lies now, if it moved",
    )
    add("--color", choices=("auto", "always", "never"), default="auto")
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
