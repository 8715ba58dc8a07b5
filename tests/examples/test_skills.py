import dataclasses
import json
import operator
import re
import sys
from fractions import Fraction

import pytest

from examples import skills, worked
from schemas.errors import SchemaError

PROGRAMS = ("programs", "units+programs", "arithmetic+programs")
NUMBERS = ("arithmetic", "units", "arithmetic+units")
FACTORS = {
    ("kilometers", "meters"): 1000,
    ("meters", "centimeters"): 100,
    ("kilograms", "grams"): 1000,
    ("tonnes", "kilograms"): 1000,
    ("liters", "milliliters"): 1000,
    ("hours", "minutes"): 60,
    ("minutes", "seconds"): 60,
    ("weeks", "days"): 7,
    ("yards", "feet"): 3,
    ("fathoms", "feet"): 6,
    ("miles", "furlongs"): 8,
    ("gallons", "quarts"): 4,
    ("quarts", "pints"): 2,
    ("pints", "cups"): 2,
    ("dollars", "quarters"): 4,
    ("dimes", "cents"): 10,
    ("nickels", "cents"): 5,
    ("bytes", "bits"): 8,
    ("decades", "years"): 10,
    ("centuries", "years"): 100,
}
STATED = re.compile(r"(?<![\d*+=-])(\d+(?:[-+*/]\d+)+)=(\d+)(?:\+(\d+)=(\d+))?")
WORKED = re.compile(r"(\d+[-+*]\d+): [^:]*? so (\d+)\.")


def split_for(skill):
    return "combined" if skill in skills.PAIRS else "base"


@pytest.fixture(scope="module")
def made():
    return {
        skill: skills.items(split_for(skill), skill, 80 if "+" in skill else 250, 3)
        for skill in (*skills.SINGLE, *skills.PAIRS)
    }


def factor(name, other):
    if (name, other) in FACTORS:
        return Fraction(FACTORS[name, other])
    return 1 / Fraction(FACTORS[other, name])


def result(prompt):
    """Works a prompt out from its words alone; k is what the last sentence knows."""
    value = Fraction(0)
    for sentence in re.findall(r"[^.?]+[.?]", prompt):
        if found := re.search(r"Turn (\w+) to (\w+)\.", sentence):
            value *= factor(*found.groups())
        elif found := re.search(r"Take (\d+)", sentence):
            value = Fraction(found[1])
        elif found := re.search(r"Add (\d+)", sentence):
            value += int(found[1])
        elif found := re.search(r"Subtract (\d+)", sentence):
            value -= int(found[1])
        else:
            assert re.search(r"(Keep|Note) it|Let k be that|solve\(|Return", sentence)
    return value


def asked_for(prompt, numbers):
    """Does with numbers what the words of a prompt ask for."""
    k = result(prompt.rpartition(" Let k")[0]) if " Let k" in prompt else 0

    def number(word):
        return k if word == "k" else int(word)

    if found := re.search(r"not divisible by (\w+)\.$", prompt):
        kept = [x for x in numbers if x % number(found[1])]
    elif found := re.search(r"divisible by (\w+)\.$", prompt):
        kept = [x for x in numbers if x % number(found[1]) == 0]
    elif found := re.search(r"greater than (\w+)\.$", prompt):
        kept = [x for x in numbers if x > number(found[1])]
    elif found := re.search(r"less than (\w+)\.$", prompt):
        kept = [x for x in numbers if x < number(found[1])]
    else:
        found = re.search(r"of at least (\w+) squared\.$", prompt)
        kept = [x for x in numbers if x >= number(found[1]) ** 2]
    if found := re.search(r"(\w+) times the numbers", prompt):
        told = [x * number(found[1]) for x in kept]
    elif found := re.search(r"the numbers plus (\w+)", prompt):
        told = [x + number(found[1]) for x in kept]
    elif found := re.search(r"the remainders by (\w+) of", prompt):
        told = [x % number(found[1]) for x in kept]
    else:
        assert "the squares of the numbers" in prompt
        told = [x**2 for x in kept]
    if "the sum of" in prompt:
        return sum(told)
    return told if "a list of" in prompt else len(set(told))


@pytest.mark.parametrize("skill", NUMBERS)
def test_an_answer_is_what_the_words_of_the_prompt_come_to(made, skill):
    for item in made[skill]:
        assert item.answer == str(result(item.prompt)), item.prompt


@pytest.mark.parametrize("skill", PROGRAMS)
def test_expected_values_are_what_the_words_of_the_prompt_ask_for(made, skill):
    for item in made[skill]:
        for call, value in zip(item.calls, item.expected, strict=True):
            assert asked_for(item.prompt, *call.arguments) == value, item.prompt


@pytest.mark.parametrize("skill", [*skills.SINGLE, *skills.PAIRS])
def test_every_step_of_the_work_is_true_and_the_answer_ends_it(made, skill):
    steps = 0
    for item in made[skill]:
        for left, right, more, total in STATED.findall(item.response):
            assert eval(left) == int(right), item.response
            assert not more or int(right) + int(more) == int(total), item.response
            steps += 1
        for left, right in WORKED.findall(item.response):
            assert eval(left) == int(right), item.response
        *work, last = item.response.splitlines()
        assert last == f"Answer: {item.answer}"
        assert work
    assert steps > (200 if skill in NUMBERS else 60) or skill == "programs"


@pytest.mark.parametrize("skill", [*skills.SINGLE, *skills.PAIRS])
def test_the_work_says_the_sentences_of_the_prompt_again_in_their_order(made, skill):
    for item in made[skill]:
        sentences = re.findall(r"[a-j]\) [^.,]+", item.prompt)
        said = [line.split(": ")[0] for line in item.response.splitlines()]
        assert said == [*sentences, "Answer"]
        assert [one[0] for one in sentences] == [*"abcdefghij"][: len(sentences)]


@pytest.mark.parametrize("skill", PROGRAMS)
def test_programs_pass_their_own_calls_and_others_do_not(made, skill):
    items = made[skill][:12]
    for item in items:
        assert skills.is_right(item, item.response)
    other = next(one for one in items if one.expected != items[0].expected)
    assert not skills.is_right(items[0], other.response)
    assert not skills.is_right(items[0], items[0].response.replace("return", "retrun"))
    assert not skills.is_right(items[0], f"Answer: {items[0].expected}")
    assert not skills.is_right(items[0], items[0].response.replace("Answer", "So"))


def test_a_number_is_right_in_the_last_answer_alone(made):
    item = made["arithmetic"][0]
    assert skills.is_right(item, item.response)
    assert skills.is_right(item, f"Answer: 0\nAnswer:  {item.answer} ")
    assert not skills.is_right(item, f"{item.response}\nAnswer: -1")
    assert not skills.is_right(item, item.answer)
    assert not skills.is_right(item, "")


@pytest.mark.parametrize("skill", [*skills.SINGLE, *skills.PAIRS])
def test_a_seed_gives_the_same_and_fewer_are_the_beginning_of_more(made, skill):
    again = skills.items(split_for(skill), skill, 40, 3)
    assert again == made[skill][:40]
    assert again != skills.items(split_for(skill), skill, 40, 4)


def lines_of(item):
    """Returns what an item works out: lines of numbers, or else the function."""
    if item.calls:
        return [item.answer]
    works = [line.split(": ", 1)[1] for line in item.response.splitlines()[:-1]]
    return [work for work in works if not work[:-1].isdigit()]


@pytest.mark.parametrize("skill", skills.SINGLE)
def test_nothing_that_is_worked_out_is_in_two_splits_whatever_the_seed(skill):
    seen = {}
    for seed, split in enumerate(worked.SHARES):
        for item in skills.items(split, skill, 150, seed):
            assert lines_of(item)
            for work in lines_of(item):
                assert seen.setdefault(work, split) == split, item.response
    assert set(seen.values()) == set(worked.SHARES)
    pairs = [
        one for pair in skills.PAIRS for one in skills.items("combined", pair, 20, 9)
    ]
    assert {seen.get(work, "report") for one in pairs for work in lines_of(one)} == {
        "report"
    }


def test_items_of_all_splits_have_as_many_steps():
    for skill, most in (("arithmetic", 3), ("units", 2)):
        found = [
            [len(lines_of(item)) for item in skills.items(split, skill, 150, 0)]
            for split in worked.SHARES
        ]
        means = [sum(steps) / len(steps) for steps in found]
        assert max(means) - min(means) < 0.3
        assert {max(steps) for steps in found} == {most}


def test_every_split_is_large_enough_to_learn_and_to_measure_with():
    for skill in skills.SINGLE:
        for split, count in (("base", 1400), ("fusion", 400), ("report", 100)):
            items = skills.items(split, skill, count, 0)
            assert len({item.prompt for item in items}) == count
    for skill in skills.PAIRS:
        assert len({i.prompt for i in skills.items("combined", skill, 100, 0)}) == 100


def test_items_that_need_two_skills_ask_what_no_single_skill_does(made):
    for item in made["arithmetic+units"]:
        assert re.search(r"Turn \w+ to", item.prompt)
        assert re.search(r"Add|Subtract", item.prompt)
    for item in made["units+programs"]:
        assert re.search(r"Turn \w+ to \w+\..*Let k be that\..*\bk\b", item.prompt)
    for item in made["arithmetic+programs"]:
        assert re.search(r"(Add|Subtract) \d+\..*Let k be that\..*\bk\b", item.prompt)
    for skill in skills.SINGLE:
        marks = r"Add|Subtract", r"Turn", r"solve"
        for item in made[skill]:
            assert sum(bool(re.search(mark, item.prompt)) for mark in marks) <= 1


def test_more_than_there_are_and_what_is_not_there_are_refused(monkeypatch):
    monkeypatch.setattr(skills, "_MISSES", 1)
    with pytest.raises(ValueError, match=r"count must be at most about \d+, .* units"):
        skills.items("search", "units", 9_000, 0)
    with pytest.raises(ValueError, match="skill one of arithmetic, units, programs"):
        skills.items("base", "arithmetic+units", 1, 0)
    with pytest.raises(ValueError, match=r"skill one of arithmetic\+units"):
        skills.items("combined", "units", 1, 0)


def test_files_hold_the_items_of_each_split_and_skill(tmp_path, monkeypatch, capsys):
    counts = dict.fromkeys(skills.SPLITS, 3)
    given = [f"--{split}=3" for split in skills.SPLITS]
    monkeypatch.setattr(sys, "argv", ["skills", str(tmp_path), "--seed=5", *given])
    skills.main()
    assert str(counts) in capsys.readouterr().out
    assert len([*tmp_path.glob("*.jsonl")]) == 4 * len(skills.SINGLE) + len(
        skills.PAIRS
    )
    for split, skill in (("report", "programs"), ("combined", "arithmetic+units")):
        path = tmp_path / f"{split}.{skill}.jsonl"
        items = skills.items(split, skill, 3, 5)
        assert skills.read(str(path)) == items
        first = json.loads(path.read_text().splitlines()[0])
        assert list(first) == [field.name for field in dataclasses.fields(items[0])]


def test_a_line_that_is_no_item_is_named(tmp_path):
    path = tmp_path / "report.units.jsonl"
    skills.write(str(tmp_path), {"report": 2}, 0)
    whole = path.read_text()
    for bad in ("{", "[]", json.dumps({"prompt": "2"})):
        path.write_text(f"{whole}{bad}\n")
        with pytest.raises(SchemaError, match=r"report\.units\.jsonl, line 3, must"):
            skills.read(str(path))


@pytest.mark.parametrize("skill", ["units+programs", "arithmetic+programs"])
def test_a_function_by_any_other_number_is_no_right_answer(made, skill):
    for item in made[skill][:8]:
        k = re.findall(r"Let k be that: (\d+)", item.response)[-1]
        change = re.search(r"solve\(numbers\): (.*) if ", item.response)[1]
        right = []
        for other in range(1, 1000):
            by_other = re.sub(rf"\b{k}\b", str(other), change)
            program = item.answer.replace(change, by_other)
            assert other == int(k) or program != item.answer
            names = {}
            exec(program, names)
            returned = (names["solve"](*call.arguments) for call in item.calls)
            if all(map(operator.eq, returned, item.expected)):
                right.append(other)
        assert right == [int(k)]
