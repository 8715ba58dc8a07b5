"""Cuts documents into windows that fit every model.

The windows of a document, put end to end, are the document, byte for byte: pieces are
cut out of its text and never decoded from tokens. A window holds at most `max_tokens`
tokens of every tokenizer, the start token and EOS included, and at most `max_bytes`
bytes.

Work and memory for each window depend on the window alone: texts much longer than it
are never tokenized, so a document of 100 MB costs 1,000 times one of 100 kB.
"""

import hashlib
import unicodedata
from collections.abc import Callable, Iterator, Sequence

from schemas.errors import FusionError

FRAME_TOKENS = 2
"""Start token and EOS, which are counted for every window."""

_FULL = 0.7  # of the budget: a piece that holds more is not made longer
_SLACK = 0.97  # of what a guess says, so that most guesses fit
_SHRINK = (0.97, 0.9, 0.7, 0.5)  # at most this much of a piece that was too long
_GROWTHS = 3  # longer guesses for a window
_CHARS_A_TOKEN = 16  # bounds the first guess for the window behind a run of spaces
_SEQUENCE_CHARS = 16  # how far back to look for the start of a combining sequence


def window_id(doc_id: str, byte_start: int, text: str) -> str:
    """Hashes what a window holds and where it stands.

    Each part goes in behind its length, so that no two windows are read alike.

    Args:
      doc_id: the document's name.
      byte_start: offset of the window in the document, in bytes.
      text: the window's text.

    Returns:
      32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in (doc_id.encode(), byte_start.to_bytes(8, "little"), text.encode()):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def cut_document(
    text: str,
    counters: Sequence[Callable[[str], int]],
    max_tokens: int,
    max_bytes: int | None = None,
) -> Iterator[str]:
    """Cuts a document into windows, front to back.

    A window ends behind the last line end of its last quarter, if there is one, else
    before the last white space of it, else between two characters; a character is
    never split, and neither are a line end of two characters and a letter with its
    combining marks, unless nothing else is left.

    Args:
      text: the document.
      counters: for each tokenizer, a function that counts the tokens of a text,
        without start token and EOS.
      max_tokens: tokens that a window may hold of any tokenizer, with them.
      max_bytes: bytes that a window may hold; None for no limit.

    Yields:
      The windows, none for an empty document.

    Raises:
      ValueError: if the limits are too small for any text.
      FusionError: if one character alone is over a limit, or is not Unicode text.
    """
    if max_tokens <= FRAME_TOKENS:
        raise ValueError(
            f"max_tokens must be over {FRAME_TOKENS} (start token and EOS count), "
            f"got {max_tokens}"
        )
    if max_bytes is not None and max_bytes < 4:
        raise ValueError(f"max_bytes must be 4 or more, got {max_bytes}")
    budget = max_tokens - FRAME_TOKENS
    limit = len(text) * 4 if max_bytes is None else max_bytes
    start, guess = 0, 4 * budget
    while start < len(text):
        piece, tokens = _fill(text, start, guess, counters, budget, limit)
        yield piece
        start += len(piece)
        # the next window has probably about as many characters a token
        per_token = min(len(piece) / max(tokens, 1), _CHARS_A_TOKEN)
        guess = max(1, int(per_token * budget * _SLACK))


def _fill(
    text: str,
    start: int,
    guess: int,
    counters: Sequence[Callable[[str], int]],
    budget: int,
    max_bytes: int,
) -> tuple[str, int]:
    """Finds a piece that fits and is not much shorter than it could be.

    Returns:
      The piece and its tokens.
    """
    best, best_tokens = "", 0
    growths = shrinks = 0
    bound = len(text) - start + 1  # pieces from this length on are too long
    while True:
        piece = _cut(text, start, min(guess, bound - 1), max_bytes)
        if len(piece) <= len(best):
            return best, best_tokens
        tokens = _most_tokens(piece, counters, budget)
        if tokens > budget:
            if len(piece) == 1:
                raise _unfit(text, start, tokens, budget)
            bound = len(piece)
            share = min(_SLACK * budget / tokens, _SHRINK[min(shrinks, 3)])
            guess = max(1, int(share * bound))
            shrinks += 1
            continue
        best, best_tokens = piece, tokens
        ended = start + len(piece) == len(text)
        if ended or tokens >= _FULL * budget or growths == _GROWTHS:
            return best, best_tokens
        guess = int(len(piece) * min(_SLACK * budget / max(tokens, 1), 4)) + 1
        growths += 1


def _most_tokens(
    piece: str, counters: Sequence[Callable[[str], int]], budget: int
) -> int:
    """Counts a piece's tokens of the finest tokenizer; stops at one over budget."""
    most = 0
    for count in counters:
        most = max(most, count(piece))
        if most > budget:
            break
    return most


def _cut(text: str, start: int, chars: int, max_bytes: int) -> str:
    """Cuts out at most `chars` characters and `max_bytes` bytes at a good border."""
    piece = text[start : start + chars]
    try:
        raw = piece.encode()
    except UnicodeEncodeError as error:
        raise FusionError(
            "a document must be Unicode text, got half of a surrogate pair at "
            f"character {start + error.start}; decode its file as UTF-8"
        ) from error
    if len(raw) > max_bytes:
        piece = raw[:max_bytes].decode(errors="ignore")
    stop = start + len(piece)
    return piece if stop == len(text) else piece[: _border(piece, text[stop])]


def _border(piece: str, following: str) -> int:
    """Finds where to end a piece that `following` comes after, in [1, its length]."""
    low = len(piece) - len(piece) // 4
    line_end = piece.rfind("\n", low)
    if line_end >= 0:
        return line_end + 1
    if following.isspace() and not piece[-1].isspace():
        return len(piece)
    tail = piece[low:]
    words = tail.rstrip()
    if len(words) == len(tail):  # no white space at the end: drop the last word
        head, *last = tail.rsplit(maxsplit=1) or [""]
        words = head if last else ""
    if words:
        return low + len(words)
    return _character_border(piece, following)


def _character_border(piece: str, following: str) -> int:
    """Steps back to where no combining sequence is split, if that is near."""
    right = following
    for at in range(len(piece), max(len(piece) - _SEQUENCE_CHARS, 0), -1):
        left = piece[at - 1]
        if not _belongs(left, right):
            return at
        right = left
    return len(piece)


def _belongs(left: str, right: str) -> bool:
    """Tells whether two characters should stay together (roughly UAX 29)."""
    return (
        unicodedata.category(right).startswith("M")
        or "\u200d" in (left, right)  # zero-width joiner
        or left + right == "\r\n"
        or "\u1160" <= right <= "\u11ff"  # vowels and finals of Hangul syllables
        or "\U0001f3fb" <= right <= "\U0001f3ff"  # skin tones
        or (_is_regional(left) and _is_regional(right))  # flags
    )


def _is_regional(letter: str) -> bool:
    return "\U0001f1e6" <= letter <= "\U0001f1ff"


def _unfit(text: str, start: int, tokens: int, budget: int) -> FusionError:
    at = len(text[:start].encode())
    return FusionError(
        f"every character must fit a window, but the one at byte {at} has {tokens} "
        f"tokens and max_tokens leaves {budget}; raise max_tokens to "
        f"{tokens + FRAME_TOKENS} or more"
    )
