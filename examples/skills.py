"""Makes items of skills, alone and in pairs, whose answers are checked exactly.

    python -m examples.skills runs/skills --base 4000 --fusion 2000 --report 200

An item is a prompt of short sentences, and a response that says each of them again and
works it, digit by digit, so that a model of a million parameters learns it in minutes:

    Take 14 yards. Turn yards to feet. Add 39.

    Take 14 yards: 14.
    Turn yards to feet: *3. 14*3: 4*3=12,1*3=3+1=4 so 42.
    Add 39: 42+39: 2+9=11,4+3+1=8 so 81.
    Answer: 81

The skills are `arithmetic`, `units` and `programs`; `arithmetic+units` and the like
need two. The answer of a program is a function of one line, right if it returns what is
expected for arguments that no prompt tells: it runs in `train.sandbox`.

What an item works out decides its split, whatever seed has drawn it and in whichever
words it asks, so that no whole item is in two, though one step of it may be: `base`,
`fusion`, `search` and `report` hold items of one skill, `combined` those that need two.
"""

import argparse
import dataclasses
import hashlib
import json
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path

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

_LET = "Let k be that."
_BACK = 0.25  # share of the conversions that go back
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


def is_right(item: Item, response: str) -> bool:
    """Says whether a response answers an item; programs are run, in the sandbox."""
    asked = answers.Item(
        prompt=item.prompt,
        answer=item.answer,
        calls=item.calls,
        expected=item.expected,
    )
    return answers.is_right(asked, response, MARK)


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


def split_of(item: Item) -> str:
    """Returns the one split that an item may be in, by what it works out.

    Neither the words that are said again count, nor the numbers that are told.
    """
    if item.skill in PAIRS:
        return "combined"
    worked = (line.partition(": ")[2] for line in item.response.splitlines())
    key = "\n".join([item.skill, *(one for one in worked if not _TOLD.fullmatch(one))])
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 100
    for split, share in SHARES.items():
        place -= share
        if place < 0:
            return split
    raise AssertionError(f"shares must be 100 together, they are {SHARES}")


@dataclasses.dataclass(slots=True)
class _Work:
    """An item in the making: sentences, the work of each, and the value so far."""

    value: int
    asked: list[str] = dataclasses.field(default_factory=list)
    lines: list[str] = dataclasses.field(default_factory=list)

    def say(self, sentence: str, work: str) -> None:
        """Asks for something, and works it: a line says the sentence again."""
        self.asked.append(sentence)
        self.lines.append(f"{sentence[:-1]}: {work}")

    def tell(self, sentence: str) -> None:
        """Says what the value is, or what it is called from now on."""
        self.say(sentence, f"{self.value}.")

    def operate(self, choose: random.Random) -> None:
        """Adds or subtracts."""
        if self.value <= 10 or choose.random() < 0.5:
            n = choose.randint(2, 99)
            self.say(f"Add {n}.", digits.addition(self.value, n))
            self.value += n
        else:
            n = choose.randint(2, min(99, self.value - 1))
            self.say(f"Subtract {n}.", digits.subtraction(self.value, n))
            self.value -= n

    def convert(self, unit: Unit, sentence: str = "") -> None:
        """Turns a unit into its other; by a sentence of its own, or the usual one."""
        factor = int(unit.factor)
        work = f"*{factor}. {digits.product(self.value, factor)}"
        self.say(sentence or f"Turn {unit.name} to {unit.other}.", work)
        self.value *= factor

    def take_away(self, unit: Unit, sentence: str = "") -> None:
        """Turns a unit's other back into it, where that takes zeros away."""
        value = self.value // int(unit.factor)
        work = f"/{unit.factor}. {self.value}/{unit.factor}={value}."
        self.say(sentence or f"Turn {unit.other} to {unit.name}.", work)
        self.value = value

    def item(self, skill: str) -> Item:
        """Returns what is made, whose answer is the value."""
        return Item(
            skill=skill,
            prompt=" ".join(self.asked),
            response="\n".join((*self.lines, f"{MARK} {self.value}")),
            answer=str(self.value),
        )


def _taken(value: int, what: str = "") -> _Work:
    """Begins with a value, of what unit."""
    work = _Work(value)
    work.tell(f"Take {value} {what}." if what else f"Take {value}.")
    return work


def _arithmetic(choose: random.Random) -> Item:
    """One or two operations."""
    work = _taken(choose.randint(2, 99))
    for _ in range(choose.randint(1, 2)):
        work.operate(choose)
    return work.item("arithmetic")


def _units(choose: random.Random) -> Item:
    """A conversion, one after another, or one back."""
    value, asks = choose.randint(2, 99), choose.random() < 0.5
    if choose.random() < _BACK:
        return _back(choose.choice(conversions.ZEROS), value, asks)
    unit = choose.choice(conversions.UNITS)
    further = [other for other in conversions.SMALL if other.name == unit.other]
    if asks and not further:
        work = _Work(value)
        work.convert(unit, f"How many {unit.other} are {value} {unit.name}?")
        return work.item("units")
    work = _taken(value, unit.name)
    work.convert(unit)
    if further and choose.random() < 0.5:
        work.convert(further[0])
    return work.item("units")


def _back(unit: Unit, value: int, asks: bool) -> Item:
    many = value * int(unit.factor)
    work = _Work(many) if asks else _taken(many, unit.other)
    work.take_away(
        unit, f"How many {unit.name} are {many} {unit.other}?" if asks else ""
    )
    return work.item("units")


def _arithmetic_units(choose: random.Random) -> Item:
    """A conversion before or behind an operation."""
    first = choose.random() < 0.5
    unit = choose.choice(conversions.UNITS if first else conversions.SMALL)
    work = _taken(choose.randint(2, 49), unit.name)
    if first:
        work.operate(choose)
    work.convert(unit)
    if not first:
        work.operate(choose)
    return work.item("arithmetic+units")


def _programs(choose: random.Random) -> Item:
    """A function that changes some numbers of a list, and sums, lists or counts them.

    The number that changes them is told as such, or as k, which is taken before.
    """
    k = choose.randint(2, 99)
    if choose.random() < 0.5:
        return _program(choose, _Work(k), "", "programs")
    work = _taken(k)
    work.tell(_LET)
    return _program(choose, work, "k", "programs")


def _units_programs(choose: random.Random) -> Item:
    """The number is what a conversion comes to."""
    unit = choose.choice(conversions.SMALL)
    work = _taken(choose.randint(2, 49), unit.name)
    work.convert(unit)
    work.tell(_LET)
    return _needing(choose, work, "units+programs")


def _arithmetic_programs(choose: random.Random) -> Item:
    """The number is what an operation comes to."""
    work = _taken(choose.randint(2, 49))
    work.operate(choose)
    work.tell(_LET)
    return _needing(choose, work, "arithmetic+programs")


def _needing(choose: random.Random, work: _Work, skill: str) -> Item:
    """Asks for a function by k, of which no other k returns the same.

    Neither the next number does, nor the one that was taken at first: how many
    different values `k * x` has, say, nobody needs to know k for.
    """
    first = int(work.lines[0].rpartition(": ")[2].removesuffix("."))
    while True:
        state = choose.getstate()
        item = _program(choose, work, "k", skill)
        same = 0
        for k in (first, work.value + 1):
            choose.setstate(state)
            other = dataclasses.replace(work, value=k)
            same += _program(choose, other, "k", skill).expected == item.expected
        if not same:
            return item


def _program(choose: random.Random, work: _Work, called: str, skill: str) -> Item:
    """Asks for a function, behind what the work has so far.

    Args:
      choose: makes the choices.
      work: its value is the number of the change.
      called: what the words call that number; empty for its digits.
      skill: of the item.
    """
    change = choose.choice(problems.changes(work.value, called)[bool(called) :])
    condition = choose.choice(problems.conditions(choose.randint(2, 12)))
    words, code, reduce, _ = choose.choice(problems.REDUCTIONS)
    asks = ("Write solve(numbers). Return", "Give solve(numbers), which returns")
    ask = f"{choose.choice(asks)} {words} {change.words} {condition.words}."
    inner = code.format(f"{change.code} for x in numbers if {condition.code}")
    answer = f"def solve(numbers): return {inner}"
    parts = [f"Change: {change.code}", f"Condition: {condition.code}"]
    given = [[*range(-9, 150)], []]
    given += [[choose.randint(1, 40) for _ in range(6)] for _ in range(2)]
    return Item(
        skill=skill,
        prompt=" ".join((*work.asked, ask)),
        response="\n".join((*work.lines, *parts, f"{MARK} {answer}")),
        answer=answer,
        calls=tuple(Call("solve", (numbers,)) for numbers in given),
        expected=tuple(
            reduce([change.apply(x) for x in numbers if condition.apply(x)])
            for numbers in given
        ),
    )


_MAKERS: Mapping[str, Callable[[random.Random], Item]] = {
    "arithmetic": _arithmetic,
    "units": _units,
    "programs": _programs,
    "arithmetic+units": _arithmetic_units,
    "units+programs": _units_programs,
    "arithmetic+programs": _arithmetic_programs,
}


def write(folder: str, counts: Mapping[str, int], seed: int) -> None:
    """Writes a file of JSON Lines for each split and skill, as `report.units.jsonl`.

    Args:
      folder: where they are to lie.
      counts: items of each skill, by split.
      seed: of all choices.
    """
    for split, count in counts.items():
        for skill in PAIRS if split == "combined" else SINGLE:
            made = (dataclasses.asdict(i) for i in items(split, skill, count, seed))
            text = "".join(json.dumps(one) + "\n" for one in made)
            path = str(Path(folder) / f"{split}.{skill}.jsonl")
            files.write_bytes(path, text.encode())


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
