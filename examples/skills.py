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
works on numbers is in two of the four, and no function's text; what `combined` works
out is of the share of `report`. Items of all splits have as many steps.
"""

import argparse
import dataclasses
import json
import random
from collections.abc import Mapping

from examples import worked
from examples.worked import MARK, SHARES, Item, Work
from schemas import files
from schemas.errors import SchemaError
from train.sandbox import Call
from train.search import answers

SINGLE = ("arithmetic", "units", "programs")
PAIRS = ("arithmetic+units", "units+programs", "arithmetic+programs")
COMBINED = "combined"
SPLITS = (*SHARES, COMBINED)

_MISSES = 100  # items in a row of which none is new, after which there are no more
_DRAWS = 50_000  # of the numbers of an item, after which none can be meant


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
      RuntimeError: if its share is so small that there is no item of some shape.
    """
    skills = PAIRS if split == COMBINED else SINGLE
    if split not in SPLITS or skill not in skills:
        raise ValueError(
            f"split must be one of {', '.join(SPLITS)}, and skill one of"
            f" {', '.join(skills)} there, got {split!r} and {skill!r}"
        )
    choose = random.Random(f"{seed}:{skill}:{split}")
    found: dict[str, Item] = {}
    missed = 0
    while len(found) < count:
        item = _draw(split, skill, choose)
        if item.prompt not in found:
            found[item.prompt], missed = item, 0
        elif (missed := missed + 1) == _MISSES:
            raise ValueError(
                f"count must be at most about {len(found)}, what {split} has of"
                f" {skill}, got {count}"
            )
    return tuple(found.values())


def _draw(split: str, skill: str, choose: random.Random) -> Item:
    """Chooses the shape of an item, and numbers for it until they are of the split."""
    shape, wanted = choose.getrandbits(64), "report" if split == COMBINED else split
    for _ in range(_DRAWS):
        work = Work(random.Random(shape), choose, wanted)
        if (item := worked.MAKERS[skill](work)) is not None:
            return item
    raise RuntimeError(
        f"{wanted} must have an item of {skill} in {_DRAWS:,} draws of numbers, and has"
        " none; give it a greater share in examples/worked.py"
    )


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
        for skill in (PAIRS if split == COMBINED else SINGLE)
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
