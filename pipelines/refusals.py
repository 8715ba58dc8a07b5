"""What a step that refused its data has said, out of what a runner makes of it."""

import re
from pathlib import Path, PurePath

from schemas.errors import FusionError

_OURS = ("schemas", "transforms", "pipelines", "train")
_ROOT = Path(__file__).parents[1]
"""The folder of our packages; the workers have the same files in one of their own."""

_FRAME = re.compile(r'\s+File "([^"]+)", line \d+')
_ERROR = re.compile(
    r"(schemas\.errors\.\w+|FileNotFoundError|ValueError): (.*?)"
    r"(?: \[while running .*)?$"
)


def told(error: BaseException) -> str | None:
    """Finds the message of a step that refused its data in a runner's error.

    Runners wrap what a step raised: in a chain of causes, or as a printed trace.

    Returns:
      The message; None for other errors, whose trace is needed.
    """
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, FusionError) or _is_misuse(link):
            return re.sub(r" \[while running .*$", "", str(link), flags=re.DOTALL)
        link = link.__cause__
    return _printed(str(error))


def _is_misuse(error: BaseException) -> bool:
    """Says whether our own code raised an error of misuse, and not a library's."""
    if not isinstance(error, ValueError | FileNotFoundError):
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    return str(module).split(".")[0] in _OURS


def _printed(trace: str) -> str | None:
    """Finds the last message of ours in a printed trace."""
    found, place = None, ""
    for line in trace.splitlines():
        if frame := _FRAME.match(line):
            place = frame[1]
        elif error := _ERROR.match(line):
            if error[1].startswith("schemas.") or _is_ours(place):
                found = error[2]
            place = ""
    return found


def _is_ours(path: str) -> bool:
    """Says whether a file of a worker is one of ours; Beam has `transforms`, too."""
    parts = PurePath(path).parts
    return any(
        part in _OURS and _ROOT.joinpath(*parts[place:]).is_file()
        for place, part in enumerate(parts)
    )
