"""Tokens of windows for a model to read."""

from collections.abc import Iterator, Sequence

from schemas.errors import AlignmentError
from schemas.windows import Window
from transforms.tokenizer import Encoding, Tokenizer


def encode(tokenizer: Tokenizer, windows: Sequence[Window]) -> list[Encoding | str]:
    """Tokenizes windows, those without control tokens together.

    Args:
      tokenizer: the model's.
      windows: any.

    Returns:
      The tokens of each window, or why they do not tile its bytes.
    """
    plain = [w for w in windows if not w.control_spans]
    batch = iter(_encode_plain(tokenizer, plain))
    return [
        _encode_chat(tokenizer, window) if window.control_spans else next(batch)
        for window in windows
    ]


def _encode_plain(
    tokenizer: Tokenizer, windows: Sequence[Window]
) -> Iterator[Encoding | str]:
    """Tokenizes windows together; where one of them fails, in two halves."""
    try:
        yield from tokenizer.encode_windows(
            [window.text for window in windows],
            [window.eos_follows for window in windows],
        )
    except AlignmentError as error:
        if len(windows) == 1:
            yield str(error)
            return
        middle = len(windows) // 2
        yield from _encode_plain(tokenizer, windows[:middle])
        yield from _encode_plain(tokenizer, windows[middle:])


def _encode_chat(tokenizer: Tokenizer, window: Window) -> Encoding | str:
    try:
        return tokenizer.encode_window(
            window.text, window.eos_follows, window.control_spans
        )
    except AlignmentError as error:
        return str(error)
