"""Which of several streams a sample is of: a function of its number and the weights."""

from collections.abc import Sequence
from fractions import Fraction


class Interleave:
    """Mixes streams by weight, evenly and without a draw.

    Stream 1 has the share w = w[1] / (w[1] + w[2] + ...), and sample i is of it where
    floor(i w) steps up; what is left is mixed of the other streams in the same way::

        i               0  1  2  3  4  5  6  7  8  9       weights 0.3 and 0.7
        floor(0.3 i)    0  0  0  0  1  1  1  2  2  2  3
        stream          2  2  2  1  2  2  1  2  2  1

    So of any n samples from the first on, a stream has its share to within as many
    samples as there are streams; each is read in its order and without a gap; and no
    more than the number of samples seen is needed to go on.
    """

    def __init__(self, weights: Sequence[Fraction]) -> None:
        """Takes a weight above 0 for each stream."""
        rest = [sum(weights[i:], Fraction(0)) for i in range(len(weights))]
        self._shares = [
            (share.numerator, share.denominator)
            for share in map(Fraction, weights, rest)
        ]

    def place(self, number: int) -> tuple[int, int]:
        """Returns the stream that a sample is of, and its number in that stream.

        Example:
          >>> mix = Interleave([Fraction(3), Fraction(7)])
          >>> [mix.place(i) for i in range(4)]
          [(1, 0), (1, 1), (1, 2), (0, 0)]
        """
        rest = number
        for stream, (part, whole) in enumerate(self._shares[:-1]):
            before = rest * part // whole
            if (rest + 1) * part // whole > before:
                return stream, before
            rest -= before
        return len(self._shares) - 1, rest


def exact(weights: Sequence[float]) -> list[Fraction]:
    """Returns weights as they are written: 0.1 is a tenth, not what a float holds."""
    return [Fraction(repr(float(weight))) for weight in weights]
