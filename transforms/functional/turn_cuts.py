"""Cuts rendered dialogues into windows: between turns where that fits.

    | turn 1 | turn 2 | turn 3        | turn 4 |     turns begin before a user's words
    | window          | window | window        |     the third is longer than a window

Put end to end the windows are the text. A round that is too long for a window is cut
between its turns (question and answer, what a tool says) where these fit; a turn that
is too long for a window of its own as running text is, but not within a control token.
"""

import functools
import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence

from transforms.functional import windows

_CHARS_A_TOKEN = 64  # a window of more characters a token is cut shorter


def cut_turns(
    text: str,
    borders: Sequence[int],
    whole: Sequence[tuple[int, int]],
    count: Callable[[int, int], int],
    *,
    weaker: Sequence[int] = (),
    max_tokens: int,
    max_bytes: int | None = None,
) -> Iterator[tuple[int, int]]:
    """Cuts a rendered dialogue, front to back.

    Args:
      text: the rendering.
      borders: characters that rounds begin at, rising.
      whole: characters [start, stop) of control tokens, rising.
      count: counts the tokens of the characters [start, stop), of the tokenizer that
        has most of them, without start token and EOS.
      weaker: characters that other turns begin at, rising; windows end there only
        where no round fits.
      max_tokens: tokens that a window may hold, with them.
      max_bytes: bytes that a window may hold; None for no limit.

    Yields:
      Start and stop of each window.

    Raises:
      ValueError: if the limits are too small for any text.
      FusionError: if one character alone is over a limit.
    """
    budget = max_tokens - windows.FRAME_TOKENS

    @functools.cache  # each turn is asked for twice
    def size(start: int, stop: int) -> int:
        # Of what is far too long not even the tokens are counted.
        far = stop - start > _CHARS_A_TOKEN * max_tokens
        return max_tokens if far else count(start, stop)

    def fits(start: int, stop: int) -> bool:
        if max_bytes is not None and len(text[start:stop].encode()) > max_bytes:
            return False
        return size(start, stop) <= budget

    def last_that_fits(start: int, stops: Sequence[int]) -> int | None:
        guess = _farthest(start, stops, size, budget)
        fitting = (n for n in reversed(range(guess)) if fits(start, stops[n]))
        return next(fitting, None)

    stops = [border for border in borders if 0 < border < len(text)] + [len(text)]
    start = 0
    while start < len(text):
        rounds = stops[bisect_right(stops, start) :]
        place = last_that_fits(start, rounds)
        if place is not None:
            stop = rounds[place]
        else:
            low, high = bisect_right(weaker, start), bisect_left(weaker, rounds[0])
            turns = [*weaker[low:high], rounds[0]]
            place = last_that_fits(start, turns)
            whole_turns = start if place is None else turns[place]
            end = turns[0 if place is None else place + 1]
            stop = whole_turns
            if place is None or not fits(whole_turns, end):
                within = _cut_within(
                    text,
                    start,
                    end,
                    whole,
                    count,
                    max_tokens=max_tokens,
                    max_bytes=max_bytes,
                )
                stop = max(whole_turns, within)
        yield start, stop
        start = stop


def _farthest(
    start: int, stops: Sequence[int], size: Callable[[int, int], int], budget: int
) -> int:
    """Counts the turns that fit a window by the sum of their tokens; at least one.

    Args:
      start: where the window begins.
      stops: where turns end from there on.
      size: counts tokens.
      budget: tokens that a window may hold.
    """
    total = 0
    for place, (begin, stop) in enumerate(itertools.pairwise([start, *stops])):
        total += size(begin, stop)
        if total > budget:
            return max(1, place)
    return len(stops)


def _cut_within(
    text: str,
    start: int,
    end: int,
    whole: Sequence[tuple[int, int]],
    count: Callable[[int, int], int],
    *,
    max_tokens: int,
    max_bytes: int | None,
) -> int:
    """Finds where a window ends that begins at `start`, within a turn."""

    def count_piece(piece: str) -> int:
        return count(start, start + len(piece))

    end = min(end, start + _CHARS_A_TOKEN * max_tokens)
    while True:
        part = text[start:end]
        pieces = windows.cut_document(part, [count_piece], max_tokens, max_bytes)
        stop = start + len(next(pieces))
        place = bisect_right(whole, (stop,)) - 1
        if place < 0 or not whole[place][0] < stop < whole[place][1]:
            return stop
        if whole[place][0] <= start:
            return stop  # a token longer than any window: text then
        end = whole[place][0]
