r"""Tokenizes by the longest token that fits, from the left: RWKV's World vocabulary.

Its file holds a token a line: the id, a Python literal of text or bytes, and its length
in bytes::

    66 'A' 1
    21031 b'\xe4\xb8' 2

Id 0 is the end of a text and has no line. No library has this tokenizer: what merges
pairs cannot always find the longest token.
"""

import ast
from collections import defaultdict
from collections.abc import Iterable, Sequence


def read_vocabulary(lines: Iterable[str]) -> list[bytes | None]:
    """Reads the bytes of each id; None where there is no token.

    Raises:
      ValueError: if a line is no token, or its length is not what it says.
    """
    found: dict[int, bytes] = {}
    for number, line in enumerate(lines, 1):
        try:
            index, _, rest = line.strip().partition(" ")
            literal, _, length = rest.rpartition(" ")
            value = ast.literal_eval(literal)
            piece = value.encode() if isinstance(value, str) else value
            if not isinstance(piece, bytes) or len(piece) != int(length):
                raise ValueError(f"{literal} has not {length} bytes")
            found[int(index)] = piece
        except (SyntaxError, ValueError) as error:
            raise ValueError(
                f"line {number} of the vocabulary must be an id, a literal and its"
                f" length in bytes ({error}); fetch the file again"
            ) from error
    return [found.get(index) for index in range(1 + max(found, default=-1))]


class LongestMatch:
    """Finds the longest tokens of a vocabulary.

    Args:
      token_bytes: the bytes of each id; None where there is no token.

    Raises:
      ValueError: if some byte is no token by itself, so that a text may have none.
    """

    def __init__(self, token_bytes: Sequence[bytes | None]) -> None:
        self._ids = {piece: i for i, piece in enumerate(token_bytes) if piece}
        lengths: defaultdict[bytes, set[int]] = defaultdict(set)
        for piece in self._ids:
            lengths[piece[:2]].add(len(piece))
        # of the tokens that begin with two bytes; the longest is tried first
        self._lengths = {
            head: sorted(each, reverse=True) for head, each in lengths.items()
        }
        lacking = [b for b in range(256) if bytes([b]) not in self._ids]
        if lacking:
            raise ValueError(
                f"every byte must be a token, but {lacking[0]:#04x} is none; fetch the"
                " vocabulary again"
            )

    def encode(self, raw: bytes) -> list[int]:
        """Returns the ids of the longest tokens, one behind the other."""
        ids, start, known = [], 0, self._ids
        while start < len(raw):
            for length in self._lengths.get(raw[start : start + 2], ()):
                found = known.get(raw[start : start + length])
                if found is not None:
                    break
            else:
                length = 1
                found = known[raw[start : start + 1]]
            ids.append(found)
            start += length
        return ids
