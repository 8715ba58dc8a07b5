"""Makes items of skills, alone and in pairs, whose answers are checked exactly.

    python -m examples.skills runs/skills --base 4000 --fusion 2000 --report 200

An item is a prompt of short sentences, and a response that says each of them again and
works it, digit by digit, so that a model of a million parameters learns it in minutes:

    a) Take 14 yards. b) Turn yards to feet. c) Note it. d) Add 39.

    a) Take 14 yards: 14.
    b) Turn yards to feet: *3. 14*3: 4*3=12,1*3=3+1=4 so 42.
    c) Note it: 42.
    d) Add 39: 42+39: 2+9=11,4+3+1=8 so 81.
    Answer: 81

The skills are `arithmetic`, `units` and `programs`; `arithmetic+units` and the like
need two. Letters, units that nothing is done with, and sentences that only say the
value once more stand in items of all skills: so the next sentence is to be looked up,
not guessed by what the others are about, or nothing that is learned of one skill would
go with another. The answer of a program is a function of one line, right if it returns
what is expected for arguments that no prompt tells: it runs in `train.sandbox`.

`base`, `fusion`, `search` and `report` hold items of one skill, `combined` those that
need two. What is worked out decides the split, whatever seed has drawn it: no line that
works on numbers is in two of the four, nor is a function. Items with lines of several
splits are in none.
"""

import argparse
import dataclasses
import hashlib
import json
import operator
import random
import re
from collections.abc import Callable, Iterator, Mapping

from examples import conversions, digits, problems
from examples.problems import Unit
from schemas import files
from schemas.errors import SchemaError
from train.sandbox import Call
from train.search import answers

SINGLE = ("arithmetic", "units", "programs")
PAIRS = ("arithmetic+units", "units+programs", "arithmetic+programs")

SHARES: Mapping[str, int] = {"base": 60, "fusion": 20, "search": 5, "report": 15}
"""Splits of the items of one skill, and their hundredths."""

SPLITS = (*SHARES, "combined")

MARK = "Answer:"
"""What the last line of a response begins with: behind it stands the answer."""

_BACK = 0.25  # share of the conversions that go back
_LET = "Let k be that."
_LETTERS = "abcdefghij"
"""What sentences are told apart by, in the order of the work."""
_PAUSE = ("Keep it.", "Note it.", _LET)
_PAUSES = 0.3  # share of the sentences behind which there is one of these
_ASKS = (
    ("Write solve(numbers)", ". Return"),
    ("Give solve(numbers)", ", which returns"),
)
"""How a program is asked for: what the work says again, and how it goes on."""
_TOLD = re.compile(r"\d+\.")
_MISSES = 1_000  # draws in a row of which none is new, after which there are no more


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A question, how it is worked, and what tells a right answer.

    Attributes:
      skill: of `SINGLE` or `PAIRS`.
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


def asked(item: Item, line: int = 0) -> answers.Item:
    """Returns an item as a search task has it; `line` is that of its file."""
    return answers.Item(
        prompt=item.prompt,
        answer=item.answer,
        calls=item.calls,
        expected=item.expected,
        response=item.response,
        line=line,
    )


def is_right(item: Item, response: str) -> bool:
    """Says whether a response answers an item; programs are run, in the sandbox."""
    return answers.is_right(asked(item), response, MARK)


def items(split: str, skill: str, count: int, seed: int) -> tuple[Item, ...]:
    """Returns items with different prompts; fewer are the beginning of more.

    Args:
      split: of `SPLITS`.
      skill: of `PAIRS` where the split is `combined`, else of `SINGLE`.
      count: of items.
      seed: of all choices, but that of the split.

    Raises:
      ValueError: if the split has no such skill, or less than the count.
    """
    skills = PAIRS if split == "combined" else SINGLE
    if split not in SPLITS or skill not in skills:
        raise ValueError(
            f"split must be one of {', '.join(SPLITS)}, and skill one of"
            f" {', '.join(skills)} there, got {split!r} and {skill!r}"
        )
    choose = random.Random(f"{seed}:{skill}:{split}")
    found: dict[str, Item] = {}
    missed = 0
    while len(found) < count:
        item = _MAKERS[skill](choose)
        if item.prompt not in found and split_of(item) == split:
            found[item.prompt], missed = item, 0
        elif (missed := missed + 1) == _MISSES:
            raise ValueError(
                f"count must be at most about {len(found)}, what {split} has of"
                f" {skill}, got {count}"
            )
    return tuple(found.values())


def split_of(item: Item) -> str | None:
    """Returns the one split that an item may be in; None for one that is in none.

    That of everything that it works out: each line of arithmetic or of units but those
    that tell a number again, or else the function.
    """
    if item.skill in PAIRS:
        return "combined"
    works = [line.partition(": ")[2] for line in item.response.splitlines()[:-1]]
    if item.calls:
        works = [item.answer]
    found = {_place(work) for work in works if not _TOLD.fullmatch(work)}
    return found.pop() if len(found) == 1 else None


def _place(work: str) -> str:
    """Returns the split of something that is worked out."""
    place = int.from_bytes(hashlib.sha256(work.encode()).digest()[:8], "big") % 100
    for split, share in SHARES.items():
        place -= share
        if place < 0:
            return split
    raise AssertionError(f"shares must be 100 together, they are {SHARES}")


@dataclasses.dataclass(slots=True)
class _Work:
    """An item in the making: sentences, the work of each, and the value so far."""

    value: int
    choose: random.Random
    asked: list[str] = dataclasses.field(default_factory=list)
    lines: list[str] = dataclasses.field(default_factory=list)

    def say(self, sentence: str, work: str) -> None:
        """Asks for something, and works it: a line says the sentence again."""
        sentence = f"{self.letter} {sentence}"
        self.asked.append(sentence)
        self.lines.append(f"{sentence[:-1]}: {work}")

    @property
    def letter(self) -> str:
        """What the next sentence begins with."""
        return f"{_LETTERS[len(self.asked)]})"

    def tell(self, sentence: str) -> None:
        """Says what the value is, or what it is called from now on."""
        self.say(sentence, f"{self.value}.")

    def pause(self) -> None:
        """Says the value once more, now and then, so that steps have no fixed place."""
        if self.choose.random() < _PAUSES:
            self.tell(self.choose.choice(_PAUSE))

    def take(self, what: str = "") -> None:
        """Begins with the value, of what unit; another may be taken before, in vain."""
        if self.choose.random() < _PAUSES:
            value, self.value = self.value, _number(self.choose)
            self.tell(f"Take {self.value}.")
            self.value = value
        self.tell(f"Take {self.value} {what}." if what else f"Take {self.value}.")
        self.pause()

    def operate(self) -> None:
        """Adds or subtracts."""
        choose = self.choose
        if self.value <= 10 or choose.random() < 0.5:
            n = choose.randint(2, 99)
            self.say(f"Add {n}.", digits.addition(self.value, n))
            self.value += n
        else:
            n = choose.randint(2, min(99, self.value - 1))
            self.say(f"Subtract {n}.", digits.subtraction(self.value, n))
            self.value -= n
        self.pause()

    def convert(self, unit: Unit) -> None:
        """Turns a unit into its other."""
        factor = int(unit.factor)
        work = f"*{factor}. {digits.product(self.value, factor)}"
        self.say(f"Turn {unit.name} to {unit.other}.", work)
        self.value *= factor
        self.pause()

    def take_away(self, unit: Unit) -> None:
        """Turns a unit's other back into it, where that takes zeros away."""
        value = self.value // int(unit.factor)
        work = f"/{unit.factor}. {self.value}/{unit.factor}={value}."
        self.say(f"Turn {unit.other} to {unit.name}.", work)
        self.value = value
        self.pause()

    def item(self, skill: str) -> Item:
        """Returns what is made, whose answer is the value."""
        return Item(
            skill=skill,
            prompt=" ".join(self.asked),
            response="\n".join((*self.lines, f"{MARK} {self.value}")),
            answer=str(self.value),
        )


def _number(choose: random.Random) -> int:
    """Returns a number of one or two digits, or of three."""
    return choose.randint(2, 99) if choose.random() < 0.6 else choose.randint(100, 499)


def _noun(choose: random.Random) -> str:
    """Returns the name of a unit, or none: so it is no sign of a conversion."""
    return choose.choice(conversions.UNITS).name if choose.random() < 0.5 else ""


def _arithmetic(choose: random.Random) -> Item:
    """One to three operations."""
    work = _Work(_number(choose), choose)
    work.take(_noun(choose))
    for _ in range(choose.randint(1, 3)):
        work.operate()
    return work.item("arithmetic")


def _units(choose: random.Random) -> Item:
    """Up to two conversions, one after another, or one back."""
    work = _Work(_number(choose), choose)
    if choose.random() < _BACK:
        unit = choose.choice(conversions.ZEROS)
        work.value *= int(unit.factor)
        work.take(unit.other)
        work.take_away(unit)
        return work.item("units")
    unit = choose.choice(conversions.UNITS)
    work.take(unit.name)
    work.convert(unit)
    further = [other for other in conversions.SMALL if other.name == unit.other]
    if further and choose.random() < 0.5:
        work.convert(further[0])
    return work.item("units")


def _arithmetic_units(choose: random.Random) -> Item:
    """A conversion before or behind an operation."""
    first = choose.random() < 0.5
    unit = choose.choice(conversions.UNITS if first else conversions.SMALL)
    work = _Work(choose.randint(2, 49), choose)
    work.take(unit.name)
    if first:
        work.operate()
    work.convert(unit)
    if not first:
        work.operate()
    return work.item("arithmetic+units")


def _programs(choose: random.Random) -> Item:
    """A function that changes some numbers of a list, and sums, lists or counts them.

    The number that changes them is told as such, or as k, which is taken before.
    """
    work = _Work(_number(choose), choose)
    if choose.random() < 0.3:
        return _Function(choose, "").item(work, "programs")
    work.take(_noun(choose))
    work.tell(_LET)
    work.pause()
    return _Function(choose, "k").item(work, "programs")


def _units_programs(choose: random.Random) -> Item:
    """The number is what a conversion comes to."""
    unit = choose.choice(conversions.SMALL)
    work = _Work(choose.randint(2, 49), choose)
    work.take(unit.name)
    work.convert(unit)
    return _by_k(work, "units+programs")


def _arithmetic_programs(choose: random.Random) -> Item:
    """The number is what an operation comes to."""
    work = _Work(choose.randint(2, 49), choose)
    work.take(_noun(choose))
    work.operate()
    return _by_k(work, "arithmetic+programs")


def _by_k(work: _Work, skill: str) -> Item:
    """Asks for a function by k, of which no other k returns the same."""
    work.tell(_LET)
    work.pause()
    function = _Function(work.choose, "k")
    while not function.needs(work.value):
        function = _Function(work.choose, "k")
    return function.item(work, skill)


class _Function:
    """A function that is asked for; what changes the numbers has a number in it.

    Args:
      choose: makes the choices.
      called: what the words call that number; empty for its digits.
    """

    def __init__(self, choose: random.Random, called: str) -> None:
        self._called = called
        self._change = choose.choice(range(bool(called), len(problems.changes(1))))
        self._condition = choose.choice(problems.conditions(choose.randint(2, 12)))
        self._reduction = choose.choice(problems.REDUCTIONS)
        self._ask = choose.choice(_ASKS)
        few = [[choose.randint(1, 40) for _ in range(6)] for _ in range(2)]
        self._given = [*few, [], [*range(-9, 150)], [*range(499, 999)]]
        self._kept = [[*filter(self._condition.apply, some)] for some in self._given]

    def returns(self, k: int) -> Iterator[int | list[int]]:
        """Yields what it returns of each list, if the number is k."""
        change = problems.changes(k)[self._change]
        for some in self._kept:
            yield self._reduction[2]([*map(change.apply, some)])

    def needs(self, k: int) -> bool:
        """Says whether every other number to 999 makes it return something else."""
        others = (other for other in range(1, 1000) if other != k)
        return all(
            any(map(operator.ne, self.returns(other), self.returns(k)))
            for other in others
        )

    def item(self, work: _Work, skill: str) -> Item:
        """Returns the item that asks for it, behind what the work has so far."""
        change = problems.changes(work.value, self._called)[self._change]
        words, code, _, _ = self._reduction
        condition = self._condition
        asks, returns = f"{work.letter} {self._ask[0]}", self._ask[1]
        ask = f"{asks}{returns} {words} {change.words} {condition.words}."
        inner = code.format(f"{change.code} for x in numbers if {condition.code}")
        answer = f"def solve(numbers): return {inner}"
        parts = f"{asks}: {change.code} if {condition.code}."
        return Item(
            skill=skill,
            prompt=" ".join((*work.asked, ask)),
            response="\n".join((*work.lines, parts, f"{MARK} {answer}")),
            answer=answer,
            calls=tuple(Call("solve", (numbers,)) for numbers in self._given),
            expected=tuple(self.returns(work.value)),
        )


_MAKERS: Mapping[str, Callable[[random.Random], Item]] = {
    "arithmetic": _arithmetic,
    "units": _units,
    "programs": _programs,
    "arithmetic+units": _arithmetic_units,
    "units+programs": _units_programs,
    "arithmetic+programs": _arithmetic_programs,
}


def written(counts: Mapping[str, int], seed: int) -> dict[str, str]:
    """Writes items as JSON Lines, by file: `report.units.jsonl` and the like.

    Args:
      counts: items of each skill, by split.
      seed: of all choices.
    """
    return {
        f"{split}.{skill}.jsonl": "".join(
            json.dumps(dataclasses.asdict(item)) + "\n"
            for item in items(split, skill, count, seed)
        )
        for split, count in counts.items()
        for skill in (PAIRS if split == "combined" else SINGLE)
    }


def write(folder: str, counts: Mapping[str, int], seed: int) -> None:
    """Writes a file of JSON Lines for each split and skill; `written` has them."""
    for name, text in written(counts, seed).items():
        files.write_bytes(files.join(folder, name), text.encode())


def read(path: str) -> tuple[Item, ...]:
    """Reads items that `write` has written.

    Raises:
      SchemaError: if a line is no item; names the line.
    """
    found = []
    for number, line in enumerate(files.read_bytes(path).decode().splitlines(), 1):
        try:
            told = json.loads(line)
            calls = (Call(c["function"], tuple(c["arguments"])) for c in told["calls"])
            fields = {"calls": tuple(calls), "expected": tuple(told["expected"])}
            found.append(Item(**{**told, **fields}))
        except (ValueError, TypeError, KeyError) as error:
            raise SchemaError(
                f"{path}, line {number}, must hold an item as write() has it; make the"
                f" file again: {error!r}"
            ) from error
    return tuple(found)


def main() -> None:
    """Writes items of all splits and skills."""
    parser = argparse.ArgumentParser(description="make items of skills")
    parser.add_argument("folder")
    parser.add_argument("--seed", type=int, default=0)
    for split in SPLITS:
        parser.add_argument(f"--{split}", type=int, default=100)
    given = parser.parse_args()
    counts = {split: getattr(given, split) for split in SPLITS}
    write(given.folder, counts, given.seed)
    print(f"{given.folder}: {counts} items of each skill")


if __name__ == "__main__":
    main()
