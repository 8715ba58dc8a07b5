"""Sums, differences and products of whole numbers, written digit by digit.

A small model learns steps of one digit where it would not learn whole numbers. There
is no space around the signs: a step is as few tokens as can be.
"""

from collections.abc import Iterator


def addition(a: int, b: int) -> str:
    """Adds two numbers, digit by digit from the last.

    >>> addition(36, 14)
    '36+14: 6+4=10,3+1+1=5 so 50.'
    """
    steps, carried = [], 0
    for x, y in _pairs(a, b):
        rest = "+1" if carried else ""
        steps.append(f"{x}+{y}{rest}={x + y + carried}")
        carried = (x + y + carried) // 10
    return f"{a}+{b}: {','.join(steps)} so {a + b}."


def subtraction(a: int, b: int) -> str:
    """Takes a number from one that is not smaller, digit by digit from the last.

    >>> subtraction(83, 27)
    '83-27: 13-7=6,8-2-1=5 so 56.'
    """
    steps, owed = [], 0
    for x, y in _pairs(a, b):
        rest = "-1" if owed else ""
        lent = 10 if x < y + owed else 0
        steps.append(f"{x + lent}-{y}{rest}={x + lent - y - owed}")
        owed = int(lent > 0)
    return f"{a}-{b}: {','.join(steps)} so {a - b}."


def product(a: int, b: int) -> str:
    """Multiplies by one digit, with zeros behind it or not.

    >>> product(47, 6)
    '47*6: 7*6=42,4*6=24+4=28 so 282.'
    >>> product(4, 60)
    '4*6: 4*6=24 so 24. 4*60=240.'
    >>> product(35, 100)
    '35*100=3500.'
    """
    digit = int(str(b).rstrip("0"))
    if digit > 9:
        raise ValueError(f"b must be of one digit and zeros, got {b}")
    whole = f"{a}*{b}={a * b}."
    if digit == 1:
        return whole
    steps, carried = [], 0
    for x, _ in _pairs(a, 0):
        more = f"+{carried}={x * digit + carried}" if carried else ""
        steps.append(f"{x}*{digit}={x * digit}{more}")
        carried = (x * digit + carried) // 10
    work = f"{a}*{digit}: {','.join(steps)} so {a * digit}."
    return work if b == digit else f"{work} {whole}"


def _pairs(a: int, b: int) -> Iterator[tuple[int, int]]:
    """Yields digits of both, the last first, as many as the longer one has."""
    for place in range(max(len(str(a)), len(str(b)))):
        yield a // 10**place % 10, b // 10**place % 10
