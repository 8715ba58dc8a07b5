"""Makes items of skills, alone and in pairs, whose answers are checked exactly.

    python -m examples.skills runs/skills --base 4000 --fusion 2000 --report 200

An item is a prompt of short sentences, and a response with a line or two for each of
them, digit by digit, so that a model of a few million parameters learns it in minutes:

    Take 3 feet. Turn feet to inches. Add 14.

    feet to inches: * 12.
    3 * 10 = 30. 3 * 2: 3 * 2 = 6, so 6. 30 + 6: 0 + 6 = 6, 3 + 0 = 3, so 36.
    36 + 14: 6 + 4 = 10, 3 + 1 + 1 = 5, so 50.
    Answer: 50

The skills are `arithmetic`, `units` and `programs`; `arithmetic+units` and the like
need two. The answer of a program is a function of one line, right if it returns what is
expected for arguments that no prompt tells: it runs in `train.sandbox`.

What an item works out decides its split, whatever seed has drawn it and in whichever
words it asks, so that none is in two: `base`, `fusion`, `search` and `report`
hold items of one skill, `combined` holds those that need two.
"""

import argparse
import dataclasses
import hashlib
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path

from examples import digits, problems
from examples.problems import Part, Unit
from schemas import files
from schemas.errors import SchemaError
from train.sandbox import Call
from train.search import answers

SINGLE = ("arithmetic", "units", "programs")
PAIRS = ("arithmetic+units", "units+programs", "arithmetic+programs")

SHARES: Mapping[str, int] = {"base": 40, "fusion": 35, "search": 10, "report": 15}
"""Splits of the items of one skill, and their hundredths."""

SPLITS = (*SHARES, "combined")

MARK = "Answer:"
"""What the last line of a response begins with: behind it stands the answer."""

UNITS = tuple(
    unit
    for unit in problems.UNITS
    if unit.factor.isdigit() and int(unit.factor) <= 1000
)
"""Units whose conversion needs no fractions and few digits."""

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
    """Returns the one split that an item may be in, by what it works out."""
    if item.skill in PAIRS:
        return "combined"
    told = hashlib.sha256(f"{item.skill}\n{item.response}".encode()).digest()
    place = int.from_bytes(told[:8], "big") % 100
    for split, share in SHARES.items():
        place -= share
        if place < 0:
            return split
    raise AssertionError(f"shares must be 100 together, they are {SHARES}")


@dataclasses.dataclass(slots=True)
class _Work:
    """An item in the making: sentences of the prompt, lines of work, and the value."""

    asked: list[str]
    lines: list[str]
    value: int

    def operate(self, choose: random.Random, words: Mapping[str, str]) -> None:
        """Adds, subtracts or multiplies; words say how that is asked."""
        kinds = ["add"]
        if self.value > 10:
            kinds.append("subtract")
        if self.value < 100:
            kinds.append("multiply")
        kind = choose.choice(kinds)
        if kind == "add":
            n = choose.randint(2, 99)
            line, value = digits.addition(self.value, n), self.value + n
        elif kind == "subtract":
            n = choose.randint(2, min(99, self.value - 1))
            line, value = digits.subtraction(self.value, n), self.value - n
        else:
            n = choose.randint(2, 9)
            line, value = digits.product(self.value, n), self.value * n
        self.asked.append(words[kind].format(n))
        self.lines.append(line)
        self.value = value

    def convert(self, unit: Unit) -> None:
        """Turns a unit into its other."""
        factor = int(unit.factor)
        self.asked.append(f"Turn {unit.name} to {unit.other}.")
        self.lines += [_table(unit), digits.product(self.value, factor)]
        self.value *= factor

    def item(self, skill: str) -> Item:
        """Returns what is made, whose answer is the value."""
        return Item(
            skill=skill,
            prompt=" ".join(self.asked),
            response="\n".join((*self.lines, f"{MARK} {self.value}")),
            answer=str(self.value),
        )


def _table(unit: Unit) -> str:
    return f"{unit.name} to {unit.other}: * {unit.factor}."


_PLAIN = {"add": "Add {}.", "subtract": "Subtract {}.", "multiply": "Times {}."}
_STORY = {
    "add": "Then come {} more.",
    "subtract": "Then {} are given away.",
    "multiply": "Then there are {} times as many.",
}


def _arithmetic(choose: random.Random) -> Item:
    """One or two operations, bare or in a story."""
    value = choose.randint(2, 99)
    name, thing = choose.choice(problems.NAMES), choose.choice(problems.ITEMS)
    told = choose.random() < 0.5
    begin = f"{name} has {value} {thing}s." if told else f"Take {value}."
    work = _Work([begin], [], value)
    for _ in range(choose.randint(1, 2)):
        work.operate(choose, _STORY if told else _PLAIN)
    return work.item("arithmetic")


def _units(choose: random.Random) -> Item:
    """A conversion, one after another, or one back."""
    unit, value = choose.choice(UNITS), choose.randint(2, 99)
    if choose.random() < 0.35:
        return _back(choose, unit, value)
    further = [other for other in UNITS if other.name == unit.other]
    if not further and choose.random() < 0.5:
        work = _Work([], [], value)
        work.convert(unit)
        work.asked = [f"How many {unit.other} are {value} {unit.name}?"]
        return work.item("units")
    work = _Work([f"Take {value} {unit.name}."], [], value)
    work.convert(unit)
    if further and choose.random() < 0.5:
        work.convert(further[0])
    return work.item("units")


def _back(choose: random.Random, unit: Unit, value: int) -> Item:
    many = value * int(unit.factor)
    asks = (
        f"Take {many} {unit.other}. Turn {unit.other} to {unit.name}.",
        f"How many {unit.name} are {many} {unit.other}?",
    )
    table = f"{unit.other} to {unit.name}: / {unit.factor}."
    check = digits.product(value, int(unit.factor))
    return _Work([choose.choice(asks)], [table, check], value).item("units")


def _arithmetic_units(choose: random.Random) -> Item:
    """A conversion before or behind an operation."""
    unit, value = choose.choice(UNITS), choose.randint(2, 20)
    work = _Work([f"Take {value} {unit.name}."], [], value)
    first = choose.random() < 0.5
    if first:
        work.operate(choose, _PLAIN)
    work.convert(unit)
    if not first:
        work.operate(choose, _PLAIN)
    return work.item("arithmetic+units")


def _programs(choose: random.Random) -> Item:
    """A function that changes some numbers of a list, and sums or counts them."""
    return _program(choose, _Work([], [], 0), *problems.some(choose), "programs")


def _units_programs(choose: random.Random) -> Item:
    """The change is a conversion, whose factor the prompt does not tell."""
    unit = choose.choice(UNITS)
    _, times, _, _ = problems.changes(int(unit.factor))
    change = dataclasses.replace(
        times, words=f"the numbers, turned from {unit.name} to {unit.other},"
    )
    work = _Work([], [_table(unit)], 0)
    return _program(choose, work, change, problems.some(choose)[1], "units+programs")


def _arithmetic_programs(choose: random.Random) -> Item:
    """The change is by a number that is to be worked out first."""
    value = choose.randint(2, 20)
    work = _Work([f"Take {value}."], [], value)
    work.operate(choose, _PLAIN)
    work.asked.append("Call it k.")
    change = choose.choice(problems.changes(work.value, "k")[1:])
    condition = problems.some(choose)[1]
    return _program(choose, work, change, condition, "arithmetic+programs")


def _program(
    choose: random.Random, work: _Work, change: Part, condition: Part, skill: str
) -> Item:
    """Asks for a function, behind what the work has so far."""
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
