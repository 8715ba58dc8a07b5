"""Pack windows into training rows of bounded length."""

from collections.abc import Sequence


def pack_windows(lengths: Sequence[int], seq_length: int) -> list[list[int]]:
    """Packs windows into as few rows as first-fit decreasing finds.

    The longest window goes first, each into the first row with room for it. The number
    of rows is at most 11/9 of the fewest possible, plus one.

    Args:
      lengths: length of each window in tokens, at least 1.
      seq_length: most tokens a row may hold.

    Returns:
      The windows of each row, by rising index, the rows in the order of their first
      windows. Every window is in one row.

    Raises:
      ValueError: if a window is empty or longer than a row.

    Example:
      >>> pack_windows([3, 6, 2, 5], seq_length=8)
      [[0, 3], [1, 2]]

    References:
      Johnson, "Near-optimal bin packing algorithms", 1973: first-fit decreasing.
    """
    _check_lengths(lengths, seq_length)
    rooms = _Rooms(len(lengths), seq_length)
    rows: list[list[int]] = []
    for window in sorted(range(len(lengths)), key=lambda w: (-lengths[w], w)):
        row = rooms.take_first(lengths[window])
        if row == len(rows):
            rows.append([])
        rows[row].append(window)
    return sorted(sorted(row) for row in rows)


def _check_lengths(lengths: Sequence[int], seq_length: int) -> None:
    for window, length in enumerate(lengths):
        if length > seq_length:
            raise ValueError(
                f"every window must fit into seq_length = {seq_length} tokens, window"
                f" {window} is longer by {length - seq_length}; raise seq_length to"
                f" {max(lengths)}, or prepare with smaller max_tokens"
            )
        if length < 1:
            raise ValueError(
                f"a window must have at least one token, window {window} has {length}"
            )


class _Rooms:
    """Finds the first row with room enough, in logarithmic time.

    A tree of maxima over the rows: node n stands over 2 n and 2 n + 1, and the leaves,
    from `width` on, hold each row's free tokens. Rows not yet opened are all free.
    """

    def __init__(self, rows: int, seq_length: int) -> None:
        self._width = 1 << max(rows - 1, 0).bit_length()
        self._free = [seq_length] * (2 * self._width)

    def take_first(self, length: int) -> int:
        free, node = self._free, 1
        while node < self._width:
            node = 2 * node if free[2 * node] >= length else 2 * node + 1
        row = node - self._width
        free[node] -= length
        while node > 1:
            node //= 2
            free[node] = max(free[2 * node], free[2 * node + 1])
        return row
