"""Windows beside what a model says of them; free of Beam, so that it loads at once."""

from collections.abc import Iterator

from schemas import files, manifest, plan, scores, windows
from schemas.errors import SchemaError
from schemas.scores import Score
from schemas.windows import Window
from transforms import tokenizer
from transforms.tokenizer import Tokenizer


def pairs(folder: str, source: str) -> Iterator[tuple[Window, Score]]:
    """Yields each window of the windows folder `source` with its score in `folder`."""
    for piece in plan.read(source):
        found = scores.read(files.join(folder, piece.output))
        groups = zip(windows.read_slice(source, piece), found, strict=True)
        for group, scored in groups:
            yield from zip(group, scored, strict=True)


def tokenizer_of(folder: str) -> Tokenizer:
    """Loads the tokenizer that scores were made with.

    Raises:
      SchemaError: if what is there now is another tokenizer.
    """
    made = manifest.read(folder, scores.STAGE)
    found = tokenizer.load(made.origins["tokenizer"])
    if found.fingerprint != made.inputs["tokenizer"]:
        raise SchemaError(
            f"the scores in {folder} were made with another tokenizer than the one now"
            f" at {made.origins['tokenizer']}; put it back, or score again"
        )
    return found
