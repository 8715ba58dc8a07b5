"""Makes dialogues to fuse chat models on: questions that have one right answer.

    python -m examples.dialogues runs/chat/dialogues.jsonl --count_per_domain 400

A record has `id`, `domain` and `messages` (role and content), some with a system turn,
most with one question, others with two or three:

    library     what the functions of Python's standard library do, and how to call them
    arithmetic  word problems and sums, worked in steps
    units       conversions of lengths, weights, times and more, worked in steps
    programs    small programming tasks: a function, its loop, its value

No two dialogues ask the same, so splits by hash keep training and held-out ones apart.
The same seed and Python give the same dialogues, and fewer of them are the beginning of
more. Nothing of the library is executed.
"""

import argparse
import ast
import itertools
import json
import random
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from examples import problems
from examples.problems import Turns
from schemas import files

SYSTEM: Mapping[str, tuple[str, ...]] = {
    "library": (
        "You know Python's standard library by heart.",
        "Answer questions about Python as its documentation does.",
    ),
    "arithmetic": ("Show each step, then the result.", "You teach arithmetic."),
    "units": ("Convert units in steps.", "You help in a workshop that measures."),
    "programs": ("Write plain Python.", "You are a patient teacher of programming."),
}
"""System turns of each domain, of which a dialogue has one or none."""

_WITH_SYSTEM = 0.4  # share of the dialogues that begin with a system turn
_PLAIN = (ast.FunctionDef, ast.AsyncFunctionDef)
_PARAGRAPH_BYTES = range(30, 600)
_SIGNATURE_BYTES = range(1, 120)


def dialogues(seed: int, count_per_domain: int) -> Iterator[dict[str, Any]]:
    """Yields dialogues, domain after domain.

    Args:
      seed: of all choices.
      count_per_domain: dialogues of each domain.

    Raises:
      ValueError: if a domain cannot fill the count without asking the same twice.
    """
    makers: Mapping[str, Callable[[random.Random], Iterator[Turns]]] = {
        "library": _library,
        "arithmetic": problems.arithmetic,
        "units": problems.units,
        "programs": problems.programs,
    }
    for domain, make in makers.items():
        choose = random.Random(f"{seed}:{domain}")
        asked: set[str] = set()
        fresh = (turns for turns in make(choose) if _is_new(turns, asked))
        number = -1
        for number, turns in enumerate(itertools.islice(fresh, count_per_domain)):
            yield {
                "id": f"{domain}-{number:06d}",
                "domain": domain,
                "messages": _messages(turns, domain, choose),
            }
        if number + 1 < count_per_domain:
            raise ValueError(
                f"count_per_domain must be at most {number + 1}, what {domain!r} holds,"
                f" got {count_per_domain}"
            )


def _is_new(turns: Turns, asked: set[str]) -> bool:
    question = turns[0][0]
    known = question in asked
    asked.add(question)
    return not known


def _messages(turns: Turns, domain: str, choose: random.Random) -> list[dict[str, str]]:
    system = choose.choice(SYSTEM[domain])
    made = []
    if choose.random() < _WITH_SYSTEM:
        made.append({"role": "system", "content": system})
    for question, answer in turns:
        made.append({"role": "user", "content": question})
        made.append({"role": "assistant", "content": answer})
    return made


def _library(choose: random.Random) -> Iterator[Turns]:
    """Yields what can be asked about functions, a module after the other."""
    root = Path(sysconfig.get_paths()["stdlib"])
    modules = sorted(path for path in root.glob("*.py") if path.name[0] != "_")
    modules += sorted(
        path for path in root.glob("[a-z]*/*.py") if _is_public(path.relative_to(root))
    )
    choose.shuffle(modules)
    for path in modules:
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found = list(_functions(ast.parse(path.read_bytes()), name))
        choose.shuffle(found)
        for function, called in found:
            if turns := _about(function, called, choose):
                yield turns


def _is_public(module: Path) -> bool:
    """Says whether a module of a package is one that people import."""
    internal = {"test", "tests", "idlelib", "lib2to3", "encodings", "pydoc_data"}
    hidden = (part[0] == "_" and part != "__init__.py" for part in module.parts)
    installed = {"site-packages", "dist-packages"}
    return not any(hidden) and not (internal | installed).intersection(module.parts)


def _functions(tree: ast.AST, name: str) -> Iterator[tuple[Any, str]]:
    """Yields public functions and methods with their dotted names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (*_PLAIN, ast.ClassDef)) and node.name[0] != "_":
            called = f"{name}.{node.name}"
            if isinstance(node, ast.ClassDef):
                yield from _functions(node, called)
            else:
                yield node, called


def _about(function: Any, called: str, choose: random.Random) -> Turns:
    """Asks what a function does and how to call it; nothing where too little is told.

    Its own docstring answers, the first paragraph.
    """
    told = (ast.get_docstring(function) or "").partition("\n\n")[0]
    said = " ".join(told.split())
    signature = f"{function.name}({ast.unparse(function.args)})"
    if (
        len(said.encode()) not in _PARAGRAPH_BYTES
        or len(signature) not in _SIGNATURE_BYTES
    ):
        return ()
    asks = ("What does `{}` do?", "What is `{}` for?", "Explain `{}` in Python.")
    does = choose.choice(asks).format(called)
    how = choose.choice(("How is it called?", "What is its signature?"))
    code = f"```python\n{signature}\n```"
    first = ((does, said), (f"How do I call `{called}`?", f"{code}\n{said}"))
    if choose.random() < 0.5:
        return ((does, said), (how, f"`{called}` is called as\n{code}"))
    return (choose.choice(first),)


def write(path: str, seed: int, count_per_domain: int) -> int:
    """Writes dialogues as JSON Lines; returns how many."""
    made = list(dialogues(seed, count_per_domain))
    text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in made)
    files.write_bytes(path, text.encode())
    return len(made)


def main() -> None:
    """Writes dialogues to a file."""
    parser = argparse.ArgumentParser(description="make dialogues for the demo")
    parser.add_argument("output", help="the JSON Lines file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count_per_domain", type=int, default=400)
    given = parser.parse_args()
    count = write(given.output, given.seed, given.count_per_domain)
    print(f"{given.output}: {count:,} dialogues")


if __name__ == "__main__":
    main()
