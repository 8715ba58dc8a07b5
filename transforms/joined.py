"""The windows of a slice beside what several models say of them.

Nothing is shuffled: all models hold the same windows in the same order, so their files
are read side by side, and window ids are compared row by row.
"""

from collections.abc import Iterator, Sequence

from schemas import files, parquet, scores, windows
from schemas.errors import SchemaError
from schemas.plan import Slice
from schemas.scores import Score
from schemas.windows import Window


def read(
    folder: str, piece: Slice, scored: Sequence[str]
) -> Iterator[tuple[Window, list[Score]]]:
    """Yields each window of a slice with its score in each of the scores folders.

    Args:
      folder: the windows folder.
      piece: the slice.
      scored: the scores folders.

    Raises:
      SchemaError: if a file holds other windows than the plan, or in other order.
    """
    paths = [scores_of(folder, one, piece) for one in scored]
    readers = [windows.read_slice(folder, piece), *map(scores.read, paths)]
    for groups in zip(*readers, strict=True):
        for window, *said in zip(*groups, strict=True):
            for path, score in zip(paths, said, strict=True):
                if score.window_id != window.window_id:
                    raise SchemaError(
                        f"{path} must hold window {window.window_id} where the plan"
                        f" does, but holds {score.window_id}; score these windows again"
                    )
            yield window, said


def scores_of(folder: str, scored: str, piece: Slice) -> str:
    """Names the file of a slice in a scores folder.

    Raises:
      SchemaError: if it was made of other windows.
    """
    path = files.join(scored, piece.output)
    if (digest := parquet.footer(path).get("digest")) != piece.digest:
        raise SchemaError(
            f"{path} must hold the windows of slice {piece.index} of {folder} (digest"
            f" {piece.digest}), but was made of others (digest {digest}); score these"
            " windows again"
        )
    return path
