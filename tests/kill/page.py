"""The page that the counts of the kills stand on."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from examples import results
from tests.kill.rounds import Round


def write(
    page: Path, part: str, table: str, done: Sequence[Round], command: Sequence[str]
) -> None:
    """Puts the counts between two of the page's own markers.

    Args:
      page: the page.
      part: name of the markers.
      table: the counts.
      done: all rounds.
      command: module that did them, and its flags.
    """
    landed = sum(made.landed for made in done)
    about = results.about(list(command[1:]), command[0])
    words = shlex.join(["python", "-m", *command])
    text = f"""{table}

{landed} kills landed; {len(done) - landed} more found nobody to kill, as the stage had
ended, and do not count. `{words}`, {about["cores"]} cores of {about["cpu"]}."""
    results.write_page(str(page), text, part)
