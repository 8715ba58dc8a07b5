"""Rows that cannot be read and are left out, on request: how many, and how many may be.

A row counts each time it is met, so in every epoch. The count is part of the Trainer's
state, which lies in each checkpoint and comes back with it.
"""

import transformers

from schemas.errors import SchemaError

_KEY = "skipped_rows"
"""Beside the states of callbacks, the one place in the Trainer's state for others'."""


def counted(state: transformers.TrainerState) -> int:
    """Returns how many rows were left out up to the present step."""
    return int(state.stateful_callbacks.get(_KEY, 0))


def count(
    state: transformers.TrainerState, skipped: int, *, rows: int, most: float
) -> None:
    """Counts the rows that a step leaves out.

    Args:
      state: the Trainer's.
      skipped: rows that the step leaves out, over all processes.
      rows: of the whole training.
      most: share of them that may be left out.

    Raises:
      SchemaError: if more are.
    """
    if not skipped:
        return
    total = counted(state) + skipped
    state.stateful_callbacks[_KEY] = total
    if total > most * rows:
        raise SchemaError(
            f"of the {rows} rows of this training at most {most:g} may be left out, the"
            f" max_bad_fraction, but {total} cannot be read at step"
            f" {state.global_step + 1}; the lines above name them: fuse their files"
            " again"
        )
