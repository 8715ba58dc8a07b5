"""Windows beside what a model says of them; free of Beam, so that it loads at once."""

from collections.abc import Iterator

from schemas import files, plan, scores, windows
from schemas.scores import Score
from schemas.windows import Window


def pairs(folder: str, source: str) -> Iterator[tuple[Window, Score]]:
    """Yields each window of the windows folder `source` with its score in `folder`."""
    for piece in plan.read(source):
        found = scores.read(files.join(folder, piece.output))
        groups = zip(windows.read_slice(source, piece), found, strict=True)
        for group, scored in groups:
            yield from zip(group, scored, strict=True)
