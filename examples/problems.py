"""Problems with worked answers, for dialogues: arithmetic, units and small programs.

Each function yields turns, question and answer, without end; all choices come from the
generator of random numbers that it is given.
"""

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal

Turns = tuple[tuple[str, str], ...]
"""Questions, each with its answer."""

NAMES = ("Ada", "Bela", "Chen", "Dara", "Emil", "Fatou", "Greta", "Hugo", "Inés", "Jun")
ITEMS = ("pencil", "notebook", "apple", "ticket", "brush", "candle", "stamp", "bolt")
PLACES = ("cinema", "theater", "lecture hall", "stadium stand", "concert hall")

_FOLLOWED = 0.35  # share of the problems that have a second question


def arithmetic(choose: random.Random) -> Iterator[Turns]:
    """Yields sums and word problems, worked in steps."""
    kinds = (_sum, _product, _shopping, _seats, _percentage, _average)
    while True:
        yield choose.choice(kinds)(choose)


def _maybe(
    choose: random.Random, first: tuple[str, str], then: tuple[str, str]
) -> Turns:
    return (first, then) if choose.random() < _FOLLOWED else (first,)


def _sum(choose: random.Random) -> Turns:
    a, b, c = (choose.randint(120, 9_900) for _ in range(3))
    high, low = a // 100 * 100 + b // 100 * 100, a % 100 + b % 100
    answer = (
        f"Hundreds: {a // 100 * 100} + {b // 100 * 100} = {high}. The rest:"
        f" {a % 100} + {b % 100} = {low}. Together {high} + {low} = {a + b}."
    )
    then = (f"Now add {c}.", f"{a + b} + {c} = {a + b + c}.")
    return _maybe(choose, (f"What is {a} + {b}?", answer), then)


def _product(choose: random.Random) -> Turns:
    a, b = choose.randint(12, 98), choose.randint(102, 989)
    tens, ones = a // 10 * 10, a % 10
    answer = (
        f"{a} = {tens} + {ones}. {tens} * {b} = {tens * b} and {ones} * {b} ="
        f" {ones * b}. {tens * b} + {ones * b} = {a * b}."
    )
    then = (f"And {a + 1} * {b}?", f"One {b} more: {a * b} + {b} = {a * b + b}.")
    return _maybe(choose, (f"What is {a} * {b}?", answer), then)


def _shopping(choose: random.Random) -> Turns:
    name, item = choose.choice(NAMES), choose.choice(ITEMS)
    count, price = choose.randint(3, 29), choose.randint(11, 190)
    cost = count * price
    paid = (cost // 500 + choose.randint(1, 4)) * 500
    more = choose.randint(2, 9)
    question = (
        f"{name} buys {count} {item}s at {price} cents each and pays {paid} cents. How"
        " much change is due?"
    )
    answer = (
        f"{count} * {price} = {cost} cents for the {item}s. {paid} - {cost} ="
        f" {paid - cost}. The change is {paid - cost} cents."
    )
    then = (
        f"What would {count + more} {item}s cost?",
        f"{count + more} * {price} = {(count + more) * price} cents.",
    )
    return _maybe(choose, (question, answer), then)


def _seats(choose: random.Random) -> Turns:
    rows, seats = choose.randint(8, 60), choose.randint(9, 48)
    free = choose.randint(5, rows * seats // 2)
    place = choose.choice(PLACES)
    total = rows * seats
    question = (
        f"A {place} has {rows} rows of {seats} seats, and {free} seats are free. How"
        " many are taken?"
    )
    answer = (
        f"{rows} * {seats} = {total} seats. {total} - {free} = {total - free}, so"
        f" {total - free} seats are taken."
    )
    back = choose.randint(2, 40)
    then = (
        f"{back} people leave. How many seats are free now?",
        f"{free} + {back} = {free + back} seats are free.",
    )
    return _maybe(choose, (question, answer), then)


def _percentage(choose: random.Random) -> Turns:
    share, whole = choose.randint(2, 97), choose.randint(3, 180) * 100
    part = whole // 100 * share
    answer = (
        f"One percent of {whole} is {whole // 100}. {share} * {whole // 100} = {part}."
    )
    then = (f"What is left of {whole}?", f"{whole} - {part} = {whole - part}.")
    return _maybe(choose, (f"What is {share}% of {whole}?", answer), then)


def _average(choose: random.Random) -> Turns:
    count = choose.randint(3, 5)
    numbers = [choose.randint(4, 400) for _ in range(count - 1)]
    numbers.append(choose.randint(4, 90) * count - sum(numbers) % count)
    total = sum(numbers)
    listed = ", ".join(map(str, numbers))
    answer = (
        f"{' + '.join(map(str, numbers))} = {total}. There are {count} numbers:"
        f" {total} / {count} = {total // count}."
    )
    then = (
        "What is the largest of them?",
        f"Of {listed} the largest is {max(numbers)}.",
    )
    return _maybe(choose, (f"What is the mean of {listed}?", answer), then)


@dataclasses.dataclass(frozen=True)
class Unit:
    """A conversion: one `name` is `factor` of `other`, the factor exact."""

    name: str
    other: str
    factor: str


UNITS = (
    Unit("kilometers", "meters", "1000"),
    Unit("meters", "centimeters", "100"),
    Unit("inches", "centimeters", "2.54"),
    Unit("feet", "inches", "12"),
    Unit("miles", "kilometers", "1.609344"),
    Unit("kilograms", "grams", "1000"),
    Unit("tonnes", "kilograms", "1000"),
    Unit("ounces", "grams", "28.349523125"),
    Unit("liters", "milliliters", "1000"),
    Unit("hours", "minutes", "60"),
    Unit("days", "hours", "24"),
    Unit("weeks", "days", "7"),
    Unit("kibibytes", "bytes", "1024"),
    Unit("hectares", "square meters", "10000"),
    Unit("dozens", "pieces", "12"),
)


def units(choose: random.Random) -> Iterator[Turns]:
    """Yields conversions of units, worked in steps."""
    kinds = (_conversion, _conversion, _back, _temperature, _speed)
    while True:
        yield choose.choice(kinds)(choose)


def plain(number: Decimal) -> str:
    """Writes a number without an exponent, and without zeros behind the last digit.

    >>> plain(Decimal("2.50")), plain(Decimal(300))
    ('2.5', '300')
    """
    return f"{number.normalize():f}"


def _amount(choose: random.Random) -> Decimal:
    return Decimal(choose.randint(11, 9_999)) / choose.choice((1, 10, 10, 100))


def _conversion(choose: random.Random) -> Turns:
    unit, amount, second = choose.choice(UNITS), _amount(choose), _amount(choose)

    def ask(value: Decimal, question: str) -> tuple[str, str]:
        result = plain(value * Decimal(unit.factor))
        shown = plain(value)
        return (
            question.format(shown),
            f"There are {unit.factor} {unit.other} to one of {unit.name}: {shown} *"
            f" {unit.factor} = {result}. So {shown} {unit.name} are {result}"
            f" {unit.other}.",
        )

    question = choose.choice(
        (
            f"How many {unit.other} are {{}} {unit.name}?",
            f"Convert {{}} {unit.name} to {unit.other}.",
        )
    )
    return _maybe(choose, ask(amount, question), ask(second, "And {}?"))


def _back(choose: random.Random) -> Turns:
    unit, amount = choose.choice(UNITS), _amount(choose)
    many = plain(amount * Decimal(unit.factor))
    shown = plain(amount)
    answer = (
        f"{unit.factor} {unit.other} are one of {unit.name}: {many} / {unit.factor} ="
        f" {shown}. That is {shown} {unit.name}."
    )
    return ((f"How many {unit.name} are {many} {unit.other}?", answer),)


def _temperature(choose: random.Random) -> Turns:
    celsius = Decimal(choose.randint(-400, 2_500)) / 10
    scaled = celsius * Decimal("1.8")
    answer = (
        f"{plain(celsius)} * 1.8 = {plain(scaled)}, and {plain(scaled)} + 32 ="
        f" {plain(scaled + 32)}. It is {plain(scaled + 32)} degrees Fahrenheit."
    )
    question = f"What is {plain(celsius)} degrees Celsius in Fahrenheit?"
    return ((question, answer),)


def _speed(choose: random.Random) -> Turns:
    speed, time = choose.randint(11, 290), Decimal(choose.randint(3, 60)) / 4
    way = plain(speed * time)
    name = choose.choice(NAMES)
    question = (
        f"{name} travels {plain(time)} hours at {speed} kilometers an hour. How far?"
    )
    answer = f"{plain(time)} * {speed} = {way}. {name} travels {way} kilometers."
    meters = plain(speed * time * 1000)
    then = ("And in meters?", f"{way} * 1000 = {meters} meters.")
    return _maybe(choose, (question, answer), then)


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a program: how it is asked for, written, and what it does to x."""

    words: str
    code: str
    apply: Callable[[int], int]


def conditions(k: int) -> tuple[Part, ...]:
    """Returns what can be asked of a number, with k in it."""
    return (
        Part(f"greater than {k}", f"x > {k}", lambda x: x > k),
        Part(f"less than {k}", f"x < {k}", lambda x: x < k),
        Part(f"divisible by {k}", f"x % {k} == 0", lambda x: x % k == 0),
        Part(f"not divisible by {k}", f"x % {k} != 0", lambda x: x % k != 0),
        Part(f"of at least {k} squared", f"x >= {k} ** 2", lambda x: x >= k**2),
    )


def changes(k: int, called: str = "") -> tuple[Part, ...]:
    """Returns what can be made of a number by k, which words name `called` if given."""
    word = called or k
    return (
        Part("the squares of the numbers", "x * x", lambda x: x * x),
        Part(f"{word} times the numbers", f"{k} * x", lambda x: k * x),
        Part(f"the numbers plus {word}", f"x + {k}", lambda x: x + k),
        Part(f"the remainders by {word} of the numbers", f"x % {k}", lambda x: x % k),
    )


def some(choose: random.Random) -> tuple[Part, Part]:
    """Chooses a change and a condition."""
    change = choose.choice(changes(choose.randint(2, 29)))
    return change, choose.choice(conditions(choose.randint(2, 12)))


REDUCTIONS: Sequence[
    tuple[str, str, Callable[[list[int]], int | list[int]], tuple[str, str]]
]
REDUCTIONS = (
    ("the sum of", "sum({})", sum, ("total = 0", "total += {}")),
    ("a list of", "[{}]", list, ("total = []", "total.append({})")),
    (
        "how many different values there are among",
        "len({{{}}})",
        lambda values: len({*values}),
        ("total = set()", "total.add({})"),
    ),
)
"""In words, as an expression, as a function, and as a loop's beginning and body."""


def programs(choose: random.Random) -> Iterator[Turns]:
    """Yields tasks for functions over a list of numbers, with code and values."""
    while True:
        change, condition = some(choose)
        words, code, reduce, loop = choose.choice(REDUCTIONS)
        numbers = [choose.randint(1, 99) for _ in range(choose.randint(3, 6))]
        value = reduce([change.apply(x) for x in numbers if condition.apply(x)])
        inner = f"{change.code} for x in numbers if {condition.code}"
        name = choose.choice(("solve", "compute", "collect", "answer", "pick"))
        question = (
            f"Write a Python function `{name}` that takes a list and returns"
            f" {words} {change.words} {condition.words}."
        )
        answer = (
            f"```python\ndef {name}(numbers):\n    return {code.format(inner)}\n```\n"
            f"For example `{name}({numbers})` is `{value}`."
        )
        yield (question, answer), *_more(choose, name, (change, condition), loop)


def _more(
    choose: random.Random,
    name: str,
    parts: tuple[Part, Part],
    loop: tuple[str, str],
) -> Turns:
    """Asks for the same with a loop, now and then."""
    if choose.random() >= _FOLLOWED:
        return ()
    change, condition = parts
    start, step = loop
    end = "len(total)" if start == "total = set()" else "total"
    code = (
        f"def {name}(numbers):\n    {start}\n    for x in numbers:\n"
        f"        if {condition.code}:\n            {step.format(change.code)}\n"
        f"    return {end}"
    )
    return (("Write it with a loop.", f"```python\n{code}\n```"),)
