"""Items of exact-match tasks: what is asked, and what tells a right answer.

A task is a JSON Lines file of items:

    {"prompt": "3 km in m: ", "answer": "3000"}

The answer is the first line that is not empty of what a model writes. Where it is
worked first, a mark tells where it stands: behind the mark, in the last line that
begins with it, as behind `Answer:` in

    km to m: * 1000.
    Answer: 3000

It must be the item's but for white space at both ends. An item with calls asks for a
program instead: it is right if each call returns what is expected.

    {"prompt": "Write double(x).", "answer": "def double(x): return 2 * x",
     "calls": [{"function": "double", "arguments": [4]}], "expected": [8]}

Programs run in `train.sandbox`, which is no wall against those who mean harm.
"""

import dataclasses
import json
from typing import Any

from schemas import files
from schemas.errors import SchemaError
from train import sandbox
from train.sandbox import Call

_ALLOW = "pass --run_code where you trust the models, in a container at best"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A question, and what tells a right answer.

    Attributes:
      prompt: what a model goes on from, or is asked.
      answer: the right one, without white space at both ends; where there are calls,
        a right one of many.
      calls: of the program that is asked for; none where no program is.
      expected: what each call returns, as JSON has it.
      response: a right response as a whole, the work with the answer; None where none
        is told.
      line: of its file, from 1; 0 where it is of no file.
    """

    prompt: str
    answer: str
    calls: tuple[Call, ...] = ()
    expected: tuple[Any, ...] = ()
    response: str | None = None
    line: int = dataclasses.field(default=0, compare=False)


def read(path: str, *, run_code: bool = False) -> tuple[Item, ...]:
    """Reads the items of a task.

    Args:
      path: the file.
      run_code: whether programs that models write may run.

    Raises:
      FileNotFoundError: if there is no such file.
      SchemaError: if a line is no item, or asks for a program that may not run, or
        there is none; names the line.
    """
    found = []
    for number, line in enumerate(files.read_bytes(path).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            item = _item(json.loads(line.decode()), number)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise SchemaError(
                f"{path}, line {number}, must hold 'prompt' and 'answer', both strings"
                " that are not empty, and of a program 'calls' and 'expected', lists of"
                f" one length: {error}"
            ) from error
        if item.calls and not run_code:
            raise SchemaError(
                f"{path}, line {number}, asks for a program, and what models write must"
                f" be allowed to run on this machine; {_ALLOW}"
            )
        found.append(item)
    if not found:
        raise SchemaError(f"{path} must hold an item at least, it holds none")
    return tuple(found)


def _item(told: Any, line: int) -> Item:
    prompt, answer, response = told["prompt"], told["answer"], told.get("response")
    if not (isinstance(prompt, str) and isinstance(answer, str)):
        raise TypeError("they are no strings")
    if not (prompt and answer.strip()):
        raise ValueError("one is empty")
    f"{prompt}{answer}".encode()  # half a surrogate pair is no text
    calls, expected = told.get("calls", []), told.get("expected", [])
    if not (isinstance(calls, list) and isinstance(expected, list)):
        raise TypeError("'calls' or 'expected' is no list")
    if len(calls) != len(expected):
        raise ValueError(f"it has {len(calls)} calls, and expects {len(expected)}")
    if not calls and len(answer.strip().splitlines()) > 1:
        raise ValueError("the answer has several lines, of which one is asked")
    if not isinstance(response, str | None):
        raise TypeError("'response' is no string")
    json.dumps([calls, expected], allow_nan=False)  # NaN is never what is returned
    return Item(
        prompt=prompt,
        answer=answer.strip(),
        calls=tuple(map(_call, calls)),
        expected=tuple(expected),
        response=response,
        line=line,
    )


def _call(told: Any) -> Call:
    match told:
        case {"function": str(function), "arguments": list(arguments)} if function:
            return Call(function, tuple(arguments))
    raise TypeError("a call has no 'function', a name, and 'arguments', a list")


def said(text: str, answer_after: str | None = None) -> str:
    r"""Returns the answer that a text gives; empty where it gives none.

    Args:
      text: what a model has written.
      answer_after: what the line of the answer begins with; the last such line counts.
        None = the answer is the first line that is not empty.

    Example:
      >>> said("\n 12 m \nor so"), said("2 * 6 = 12.\nAnswer: 12", "Answer:")
      ('12 m', '12')
    """
    if answer_after is None:
        lines = text.strip().splitlines()
        return lines[0].strip() if lines else ""
    marked = [line for line in text.splitlines() if line.startswith(answer_after)]
    return marked[-1].removeprefix(answer_after).strip() if marked else ""


def is_right(item: Item, text: str, answer_after: str | None = None) -> bool:
    """Says whether a text answers an item; a program is run, in the sandbox.

    Args:
      item: what was asked.
      text: what a model has written.
      answer_after: where the answer stands, as of `said`.

    Raises:
      RuntimeError: if Python could not be started for a program.
    """
    answer = said(text, answer_after)
    if not item.calls:
        return answer == item.answer
    return bool(answer) and sandbox.passes(answer, item.calls, item.expected)
