"""Questions whose answers are worked in lines: sums, conversions of units, programs.

A maker makes the item of a skill, or of two. What is alike in the items of all splits,
how many steps there are and of what kind, comes from one generator, the shape; numbers,
units and functions come from another. `examples.skills` draws numbers again until all
that is worked out lies in the split that is wanted, and the shape stays: so a split
whose share is small has items of as many steps as any other.
"""

import dataclasses
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping

from examples import conversions, digits, problems
from examples.problems import Unit
from train.sandbox import Call

MARK = "Answer:"
"""What the last line of a response begins with: behind it stands the answer."""

SHARES: Mapping[str, int] = {"base": 55, "fusion": 20, "search": 10, "report": 15}
"""Splits of all that can be worked out, and their hundredths."""

_LET = "Let k be that."
_PAUSE = ("Keep it.", "Note it.", _LET)
_PAUSES = 0.3  # share of the sentences behind which there is one of these
_LETTERS = "abcdefghijkl"
"""What sentences are told apart by, in the order of the work."""
_BACK = 0.25  # share of the conversions that go back
_ASKS = (
    ("Write solve(numbers)", ". Return"),
    ("Give solve(numbers)", ", which returns"),
)
"""How a program is asked for: what the work says again, and how it goes on."""
_MOST_K = 999


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A question, how it is worked, and what tells a right answer.

    Attributes:
      skill: of `MAKERS`.
      prompt: what is asked.
      response: the work, with the answer as last line.
      answer: a number, or a function of one line.
      calls: of that function; none where the answer is a number.
      expected: what each call returns.
    """

    skill: str
    prompt: str
    response: str
    answer: str
    calls: tuple[Call, ...] = ()
    expected: tuple[int | list[int], ...] = ()


def place(work: str) -> str:
    """Returns the split of a line that works on numbers, or of a function's text."""
    hundredth = int.from_bytes(hashlib.sha256(work.encode()).digest()[:8], "big") % 100
    for split, share in SHARES.items():
        hundredth -= share
        if hundredth < 0:
            return split
    raise AssertionError(f"shares must be 100 together, they are {SHARES}")


@dataclasses.dataclass(slots=True)
class Work:
    """An item in the making: sentences, the work of each, and the value so far.

    Attributes:
      shape: says which steps there are, and where there are pauses.
      numbers: says with which numbers and units.
      wanted: the split in which all that is worked out must lie.
    """

    shape: random.Random
    numbers: random.Random
    wanted: str
    value: int = 0
    asked: list[str] = dataclasses.field(default_factory=list)
    lines: list[str] = dataclasses.field(default_factory=list)
    fits: bool = True

    @property
    def letter(self) -> str:
        """What the next sentence begins with."""
        return f"{_LETTERS[len(self.asked)]})"

    def pause(self) -> None:
        """Says the value once more, now and then, so that steps have no fixed place."""
        if self.shape.random() < _PAUSES:
            self._tell(self.shape.choice(_PAUSE))

    def take(self, value: int, what: str = "") -> None:
        """Begins with a value, of what unit; another may be taken before, in vain."""
        if self.shape.random() < _PAUSES:
            self.value = _number(self.shape, self.numbers)
            self._tell(f"Take {self.value}.")
        self.value = value
        self._tell(f"Take {value} {what}." if what else f"Take {value}.")
        self.pause()

    def let(self) -> None:
        """Calls the value k from now on."""
        self._tell(_LET)
        self.pause()

    def operate(self) -> None:
        """Adds or subtracts; what is too small to be subtracted from is added to."""
        if self.shape.random() < 0.5 or self.value <= 10:
            n = self.numbers.randint(2, 99)
            self._work(f"Add {n}.", digits.addition(self.value, n))
            self.value += n
        else:
            n = self.numbers.randint(2, min(99, self.value - 1))
            self._work(f"Subtract {n}.", digits.subtraction(self.value, n))
            self.value -= n
        self.pause()

    def convert(self, unit: Unit) -> None:
        """Turns a unit into its other."""
        factor = int(unit.factor)
        work = f"*{factor}. {digits.product(self.value, factor)}"
        self._work(f"Turn {unit.name} to {unit.other}.", work)
        self.value *= factor
        self.pause()

    def take_away(self, unit: Unit) -> None:
        """Turns a unit's other back into it, where that takes zeros away."""
        value = self.value // int(unit.factor)
        work = f"/{unit.factor}. {self.value}/{unit.factor}={value}."
        self._work(f"Turn {unit.other} to {unit.name}.", work)
        self.value = value
        self.pause()

    def item(self, skill: str) -> Item | None:
        """Returns what is made, whose answer is the value; None if it does not fit."""
        if not self.fits:
            return None
        return Item(
            skill=skill,
            prompt=" ".join(self.asked),
            response="\n".join((*self.lines, f"{MARK} {self.value}")),
            answer=str(self.value),
        )

    def _work(self, sentence: str, work: str) -> None:
        """Asks for something that works on numbers."""
        self.fits = self.fits and place(work) == self.wanted
        self._say(sentence, work)

    def _tell(self, sentence: str) -> None:
        """Asks for what the value is, or for what it is called."""
        self._say(sentence, f"{self.value}.")

    def _say(self, sentence: str, work: str) -> None:
        """Asks for something, and works it: a line says the sentence again."""
        sentence = f"{self.letter} {sentence}"
        self.asked.append(sentence)
        self.lines.append(f"{sentence[:-1]}: {work}")


def _number(shape: random.Random, numbers: random.Random) -> int:
    """Returns a number of one or two digits, or of three."""
    few = shape.random() < 0.6
    return numbers.randint(2, 99) if few else numbers.randint(100, 999)


def _noun(work: Work) -> str:
    """Returns the name of a unit, or none: so it is no sign of a conversion."""
    told = work.shape.random() < 0.5
    return work.numbers.choice(conversions.UNITS).name if told else ""


def _arithmetic(work: Work) -> Item | None:
    """One to three operations."""
    times = work.shape.randint(1, 3)
    work.take(_number(work.shape, work.numbers), _noun(work))
    for _ in range(times):
        work.operate()
    return work.item("arithmetic")


def _units(work: Work) -> Item | None:
    """A conversion, one after another, or one back."""
    kind, value = work.shape.random(), _number(work.shape, work.numbers)
    if kind < _BACK:
        unit = work.numbers.choice(conversions.ZEROS)
        work.take(value * int(unit.factor), unit.other)
        work.take_away(unit)
    elif kind < 2 * _BACK:  # there are few, so of all numbers
        unit, other = work.numbers.choice(conversions.CHAINS)
        work.take(work.numbers.randint(2, 999), unit.name)
        work.convert(unit)
        work.convert(other)
    else:
        unit = work.numbers.choice(conversions.UNITS)
        work.take(value, unit.name)
        work.convert(unit)
    return work.item("units")


def _arithmetic_units(work: Work) -> Item | None:
    """A conversion before or behind an operation."""
    first = work.shape.random() < 0.5
    unit = work.numbers.choice(conversions.UNITS if first else conversions.SMALL)
    work.take(work.numbers.randint(2, 49), unit.name)
    if first:
        work.operate()
    work.convert(unit)
    if not first:
        work.operate()
    return work.item("arithmetic+units")


def _programs(work: Work) -> Item | None:
    """A function that changes some numbers of a list, and sums, lists or counts them.

    The number that changes them is told as such, or as k, which is taken before.
    """
    named = work.shape.random() < 0.7
    work.value = _number(work.shape, work.numbers)
    if named:
        work.take(work.value, _noun(work))
        work.let()
    return _asked(work, "programs", "k" if named else "")


def _units_programs(work: Work) -> Item | None:
    """The number is what a conversion comes to."""
    unit = work.numbers.choice(conversions.SMALL)
    work.take(work.numbers.randint(2, 49), unit.name)
    work.convert(unit)
    return _by_k(work, "units+programs")


def _arithmetic_programs(work: Work) -> Item | None:
    """The number is what an operation comes to."""
    work.take(work.numbers.randint(2, 49), _noun(work))
    work.operate()
    return _by_k(work, "arithmetic+programs")


def _by_k(work: Work, skill: str) -> Item | None:
    """Asks for a function by k, of which no other k returns the same."""
    work.let()
    return _asked(work, skill, "k") if work.fits else None


def _asked(work: Work, skill: str, called: str) -> Item | None:
    """Asks for a function, behind what the work has so far."""
    function = Function(work.shape, work.numbers, called)
    if place(function.text(work.value)) != work.wanted:
        return None
    if called and "+" in skill and not function.needs(work.value):
        return None
    return function.item(work, skill)


class Function:
    """A function that is asked for; what changes the numbers has a number in it.

    One by k never counts values: of k times the numbers, say, there are as many for
    every k.

    Args:
      shape: says how it is asked for.
      numbers: makes all other choices.
      called: what the words call that number; empty for its digits.
    """

    def __init__(
        self, shape: random.Random, numbers: random.Random, called: str
    ) -> None:
        self._called = called
        self._ask = shape.choice(_ASKS)
        by_k = bool(called)
        self._change = numbers.choice(range(by_k, len(problems.changes(1))))
        self._condition = numbers.choice(problems.conditions(numbers.randint(2, 12)))
        kinds = problems.REDUCTIONS[:2] if by_k else problems.REDUCTIONS
        self._reduction = numbers.choice(kinds)
        few = [[numbers.randint(1, 40) for _ in range(6)] for _ in range(2)]
        self._given = [*few, [], [*range(-9, 150)], [*range(499, _MOST_K)]]
        self._kept = [[*filter(self._condition.apply, some)] for some in self._given]

    def returns(self, k: int) -> Iterator[int | list[int]]:
        """Yields what it returns of each list, if the number is k."""
        change = problems.changes(k)[self._change]
        for some in self._kept:
            yield self._reduction[2]([*map(change.apply, some)])

    def needs(self, k: int) -> bool:
        """Says whether every other number to 999 makes it return something else."""
        wanted = [*self.returns(k)]
        return not any(
            all(a == b for a, b in zip(wanted, self.returns(other), strict=True))
            for other in range(1, _MOST_K + 1)
            if other != k
        )

    def text(self, k: int) -> str:
        """Returns its text, if the number is k."""
        change = problems.changes(k)[self._change]
        inner = f"{change.code} for x in numbers if {self._condition.code}"
        return f"def solve(numbers): return {self._reduction[1].format(inner)}"

    def item(self, work: Work, skill: str) -> Item:
        """Returns the item that asks for it, behind what the work has so far."""
        change = problems.changes(work.value, self._called)[self._change]
        asks, returns = f"{work.letter} {self._ask[0]}", self._ask[1]
        words, condition = self._reduction[0], self._condition
        ask = f"{asks}{returns} {words} {change.words} {condition.words}."
        line = f"{asks}: {change.code} if {condition.code}."
        answer = self.text(work.value)
        return Item(
            skill=skill,
            prompt=" ".join((*work.asked, ask)),
            response="\n".join((*work.lines, line, f"{MARK} {answer}")),
            answer=answer,
            calls=tuple(Call("solve", (numbers,)) for numbers in self._given),
            expected=tuple(self.returns(work.value)),
        )


MAKERS: Mapping[str, Callable[[Work], Item | None]] = {
    "arithmetic": _arithmetic,
    "units": _units,
    "programs": _programs,
    "arithmetic+units": _arithmetic_units,
    "units+programs": _units_programs,
    "arithmetic+programs": _arithmetic_programs,
}
"""What makes an item of a skill, or of two; None where the numbers do not fit."""
