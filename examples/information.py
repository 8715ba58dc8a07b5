"""What a strategy keeps of what a source knows, in bits.

A window's text is coded one target token after the other. With g the token that comes::

    a(t) = -log2 p(g)    p: the row that the strategy gives position t, of the source
    u(t) = -log2 u(g)    u(v) = (count of v + 1) / (all counts + vocabulary): knows the
                         target's tokens, but nothing of the text in front
    s    = the source's own bits of the text, by its own tokens

A strategy uses a source row at some positions only. There it saves u(t) - a(t) against
one who knows nothing; of what the source itself would have saved it keeps

    kept = sum over used positions of (u - a)  /  (sum over all positions of u - s)

which is 1 where nothing is lost, and less where rows are not used or say less. Where a
row keeps no mass that is known to be g's, its tail is shared out among all tokens that
it does not keep, by u; and nothing counts as less likely than `LEAST`, as a row may
have no tail. The EOS stays out: it has no bytes.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from transforms.functional import weigh
from transforms.functional.project import Projected
from transforms.functional.transfer import TokenRows

LEAST = 2.0**-24
"""No token counts as less likely: 24 bits."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """Sums over windows; bits are float, all others counts.

    Attributes:
      windows: measured.
      positions: of the target's tokens but the EOS.
      used: positions where a source row is used.
      n_bytes: of all windows.
      used_bytes: of the tokens at used positions.
      aligned_bits: a, over used positions.
      source_bits_there: the source's own, over the bytes of used positions; a token's
        bits spread evenly over its bytes.
      source_bits: s.
      unigram_bits_there: u, over used positions.
      unigram_bits: u, over all.
    """

    windows: int = 0
    positions: int = 0
    used: int = 0
    n_bytes: int = 0
    used_bytes: int = 0
    aligned_bits: float = 0.0
    source_bits_there: float = 0.0
    source_bits: float = 0.0
    unigram_bits_there: float = 0.0
    unigram_bits: float = 0.0

    @property
    def coverage(self) -> float:
        """Share of the positions where a source row is used."""
        return self.used / self.positions if self.positions else math.nan

    @property
    def aligned(self) -> float:
        """Bits per byte of the rows that are used, over their tokens."""
        return self.aligned_bits / self.used_bytes if self.used_bytes else math.nan

    @property
    def own_there(self) -> float:
        """The source's own bits per byte, over the same bytes."""
        return self.source_bits_there / self.used_bytes if self.used_bytes else math.nan

    @property
    def own(self) -> float:
        """The source's own bits per byte, over all."""
        return self.source_bits / self.n_bytes if self.n_bytes else math.nan

    @property
    def kept(self) -> float:
        """Share kept of what the source saves; NaN where it saves nothing."""
        saves = self.unigram_bits - self.source_bits
        saved = self.unigram_bits_there - self.aligned_bits
        return saved / saves if saves > 0 else math.nan


def total(parts: Iterable[Figures]) -> Figures:
    """Adds figures up."""
    rows = [dataclasses.asdict(part) for part in parts]
    names = [field.name for field in dataclasses.fields(Figures)]
    return Figures(**{name: sum(row[name] for row in rows) for name in names})


def unigram(windows: Iterable[np.ndarray], vocabulary: int) -> np.ndarray:
    """Returns u(v), float64 (vocabulary,).

    Args:
      windows: token ids of each, start token in front, which does not count.
      vocabulary: ids of the tokenizer.
    """
    counts: Counter[int] = Counter()
    for token_ids in windows:
        counts.update(token_ids[1:].tolist())
    found = np.ones(vocabulary)
    found[list(counts)] += list(counts.values())
    return found / found.sum()


def measure_window(
    rows: Projected,
    used: np.ndarray,
    *,
    source: TokenRows,
    target: TokenRows,
    ends_with_eos: Sequence[bool],
    shares: np.ndarray,
) -> Figures:
    """Measures what one strategy keeps of one window.

    Args:
      rows: what it says of each of t positions.
      used: (t,) whether that comes from a source row.
      source: its tokens and what it gave them.
      target: its tokens.
      ends_with_eos: whether the source's tokens end with its EOS; and the target's.
      shares: u, from `unigram`.
    """
    text = slice(0, len(target.token_ids) - 1 - ends_with_eos[1])
    gold = target.token_ids[1:][text]
    used, width = used[text], np.diff(target.byte_ends)[text]
    bits = -np.log2(shares[gold])
    return Figures(
        windows=1,
        positions=len(gold),
        used=int(used.sum()),
        n_bytes=int(target.byte_ends[-1]),
        used_bytes=int(width[used].sum()),
        aligned_bits=float(_row_bits(rows, gold, shares)[used].sum()),
        source_bits_there=float(_own_bits(source, target, ends_with_eos)[used].sum()),
        source_bits=float(_text_nats(source, ends_with_eos[0]).sum() / np.log(2.0)),
        unigram_bits_there=float(bits[used].sum()),
        unigram_bits=float(bits.sum()),
    )


def _text_nats(source: TokenRows, ends_with_eos: bool) -> np.ndarray:
    """Nats of every token but the EOS."""
    stop = len(source.gold_logprob) - ends_with_eos
    return -source.gold_logprob[:stop].astype(np.float64)


def _own_bits(
    source: TokenRows, target: TokenRows, ends_with_eos: Sequence[bool]
) -> np.ndarray:
    """The source's own bits of each target token's bytes, EOS apart."""
    theirs, mine = (
        one.byte_ends[: len(one.byte_ends) - eos]
        for one, eos in zip((source, target), ends_with_eos, strict=True)
    )
    gold = -_text_nats(source, ends_with_eos[0])
    costs = weigh.position_costs(mine, theirs, gold, eos=False)
    return np.nan_to_num(costs) * np.diff(mine)


def _row_bits(rows: Projected, gold: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Bits of the tokens that came, by the rows."""
    count = len(gold)
    kept = rows.ids[:count] >= 0
    known = np.where(kept, shares[np.where(kept, rows.ids[:count], 0)], 0.0)
    others = np.maximum(1.0 - known.sum(axis=1), shares[gold])
    of_tail = rows.tail[:count] * shares[gold] / others
    said = np.exp(rows.gold_logprob[:count])
    return -np.log2(np.maximum(np.where(np.isnan(said), of_tail, said), LEAST))
