"""Byte spans of tokens, in numpy.

Spans tile the text: token m covers the bytes [ends[m - 1], ends[m]), with ends[-1]
read as 0, and the last end is the number of bytes.
"""

import numpy as np
from jaxtyping import Int64

from schemas.arrays import ByteEnds
from schemas.errors import AlignmentError


def ends_from_lengths(lengths: Int64[np.ndarray, " n"], prefix: int) -> ByteEnds:
    """Sums up token lengths when the tokens' bytes, joined, are the text's.

    Args:
      lengths: bytes each token stands for.
      prefix: bytes of the first token that are not in the text: 1 where the
        tokenizer put a space in front of it, else 0.

    Returns:
      The end offset of each token.
    """
    return (np.cumsum(lengths) - prefix).astype(np.int32)


def char_borders(text: str) -> Int64[np.ndarray, " c"]:
    """Returns the byte offset of every character border, both ends included.

    >>> char_borders("aä😀").tolist()
    [0, 1, 3, 7]
    """
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + sum((codes > last).astype(np.int64) for last in (0x7F, 0x7FF, 0xFFFF))
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(widths)])


def uncovered_chars(
    starts: Int64[np.ndarray, " n"], stops: Int64[np.ndarray, " n"], chars: int
) -> list[tuple[int, int, int]]:
    """Finds the characters that no token covers.

    Args:
      starts: first character of each token, never falling.
      stops: character behind each token.
      chars: characters of the text.

    Returns:
      For each gap [start, stop): the character where the group of tokens in front
      of it starts (`start` itself at the text's beginning), start, stop.
    """
    reach = np.maximum.accumulate(np.concatenate([np.zeros(1, np.int64), stops]))
    following = np.concatenate([starts, np.full(1, chars, np.int64)])
    firsts = starts[_group_firsts(starts, stops)]
    gaps = []
    for at in np.flatnonzero(following > reach):
        start, stop = int(reach[at]), int(following[at])
        group = np.searchsorted(firsts, start, side="left") - 1
        gaps.append((int(firsts[group]) if group >= 0 else start, start, stop))
    return gaps


def ends_from_offsets(
    starts: Int64[np.ndarray, " n"],
    stops: Int64[np.ndarray, " n"],
    borders: Int64[np.ndarray, " c"],
    lengths: Int64[np.ndarray, " n"],
) -> ByteEnds:
    """Computes spans from the character offsets that a tokenizer reports.

    Tokens that share a character form a group; a group reaches up to the next one::

        chars   |  h  |     😀      |  !  |
        tokens  |  h  | f0 | 9f98 | 80 | ! |     one group of three
        ends       1    2     4     5    6

    Inside a group the tokens' own lengths are used where they add up to the group's
    bytes. Where a normalizer changed them, they say nothing about the text, and the
    last token of the group takes its bytes.

    Args:
      starts: first character of each token, never falling.
      stops: character behind each token.
      borders: byte offset of every character border, from `char_borders`.
      lengths: bytes each token stands for, 0 where unknown.

    Returns:
      The end offset of each token.

    Raises:
      AlignmentError: if `starts` fall.
    """
    if len(starts) == 0:
        return np.zeros(0, np.int32)
    if (np.diff(starts) < 0).any():
        at = int(np.flatnonzero(np.diff(starts) < 0)[0]) + 1
        raise AlignmentError(
            "a tokenizer must report its tokens in the order of the text, but token "
            f"{at} starts at character {starts[at]} and the one before it at "
            f"{starts[at - 1]}; leave this model out"
        )
    firsts = _group_firsts(starts, stops)
    sizes = np.diff(np.append(firsts, len(starts)))
    lows = borders[starts[firsts]]
    highs = np.append(lows[1:], borders[-1])
    exact = np.add.reduceat(lengths, firsts) == highs - lows
    total = np.cumsum(lengths)
    before = total[firsts] - lengths[firsts]
    ends = np.repeat(lows, sizes)
    ends += np.where(np.repeat(exact, sizes), total - np.repeat(before, sizes), 0)
    ends[firsts + sizes - 1] = highs
    return ends.astype(np.int32)


def _group_firsts(
    starts: Int64[np.ndarray, " n"], stops: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, " g"]:
    """Returns the first token of each run of tokens that share characters."""
    reach = np.maximum.accumulate(np.concatenate([np.zeros(1, np.int64), stops]))[:-1]
    return np.flatnonzero(starts >= reach)
