"""What `sandbox` starts: limits itself, then runs the one program that it is given.

It knows only Python's standard library, as it is started without any other. It reads a
request from its input, says `ready` once its limits stand, and ends with a report:

    {"program": "def f(x): ...", "calls": [["f", [3]]], "limits": {...}}
    ready
    {"values": [9]}                             or {"error": "call 1 raised KeyError"}
"""

import builtins
import json
import os
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

READY = b"ready\n"

MODULES = (
    "bisect",
    "collections",
    "collections.abc",
    "functools",
    "heapq",
    "itertools",
    "math",
    "operator",
    "re",
    "string",
    "typing",
)
"""What a program may import; all are loaded before it begins."""

_HARMLESS = frozenset(
    {"compile", "exec", "builtins.id", "sys._getframe", "sys._getframemodulename"}
)
"""Events of Python's audit that pass; any other ends the process."""

_LABELS = frozenset({"__defaults__", "__module__", "__name__"})
"""What functions and classes may be given of what the audit reports."""

_OPENED = 32
"""Files that a program may open, in all."""


def main() -> None:
    """Runs the program of the request, and reports what its calls return."""
    asked = json.load(sys.stdin)
    report = os.dup(1)
    for name in MODULES:
        __import__(name)
    _limit(asked["limits"])
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    os.close(nowhere)
    os.write(report, READY)
    sys.addaudithook(_guard(report))
    said = json.dumps(_answers(asked["program"], asked["calls"])).encode()
    while said:
        said = said[os.write(report, said) :]
    os._exit(0)  # nothing that the program has left behind runs


def _limit(limits: Mapping[str, int]) -> None:
    """Sets limits that this process cannot raise again."""
    for kind, most in (
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NPROC, 0),  # which root does not heed
        (resource.RLIMIT_NOFILE, 16),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (least, least))


def _guard(report: int) -> Callable[[str, tuple[Any, ...]], None]:
    """Returns an audit hook that ends the process at what a program may not do.

    It raises nothing, as what is raised could be caught, and its frame be had from the
    traceback; and it looks up no global name, as a program may have changed those.
    A file's name without a slash is one in the working folder, which starts empty:
    neither links nor other folders can come to be there.
    """
    kind, text, write, leave = type, str, os.write, os._exit
    harmless, labels, left = _HARMLESS, _LABELS, [_OPENED]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in harmless:
            return
        if event == "object.__setattr__" and arguments[1] in labels:
            return  # as namedtuple does
        if event == "open" and left[0]:
            path = arguments[0]
            if kind(path) is text and "/" not in path and path not in (".", ".."):
                left[0] -= 1
                return
        write(report, b'{"error": "it was refused: ' + event.encode() + b'"}')
        leave(1)

    return hook


def _answers(program: str, calls: Sequence[tuple[str, list[Any]]]) -> dict[str, Any]:
    """Returns the values of calls, or what has gone wrong first."""
    names: dict[str, Any] = {
        "__builtins__": {**vars(builtins), "__import__": _import},
        "__name__": "program",
    }
    try:
        exec(compile(program, "<program>", "exec", dont_inherit=True), names)
    except BaseException as error:
        return {"error": f"the program raised {_name(error)}"}
    values = []
    for number, (name, arguments) in enumerate(calls, 1):
        try:
            value = names[name](*arguments)
        except BaseException as error:
            return {"error": f"call {number} raised {_name(error)}"}
        try:
            values.append(json.loads(json.dumps(value, allow_nan=False)))
        except BaseException as error:
            return {"error": f"call {number} returned no JSON: {_name(error)}"}
    return {"values": values}


def _name(error: BaseException) -> str:
    return type(error).__name__[:80]


def _import(
    name: str,
    globals: Mapping[str, object] | None = None,
    locals: Mapping[str, object] | None = None,
    fromlist: Sequence[str] = (),
    level: int = 0,
) -> Any:
    if level or name not in MODULES:
        raise ImportError(f"a program may import {', '.join(MODULES)}, got {name}")
    return __import__(name, globals, locals, fromlist)


if __name__ == "__main__":
    main()
