"""The page that the counts of the kills stand on."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from examples import results
from tests.kill import rounds
from tests.kill.rounds import Round

PART = "kills"


def write(
    page: Path, done: Sequence[Round], undisturbed: Mapping[str, float], argv: list[str]
) -> None:
    """Puts the counts between the page's own two markers."""
    landed = [made for made in done if made.landed]
    late = len(done) - len(landed)
    about = results.about(argv, "tests.kill")
    text = f"""{rounds.table(done, undisturbed)}

{len(landed)} kills landed; {late} more came after the stage's end and do not count.
`{shlex.join(["python", "-m", "tests.kill", *argv])}` on {about["cores"]} × {about["cpu"]}."""
    results.write_page(str(page), text, PART)
