"""Tells why a disk does not take what a training writes, whoever writes it."""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator
from errno import ENOSPC

from safetensors import SafetensorError

from schemas import files

_NUMBER = re.compile(r"\(os error (\d+)\)")
"""How safetensors passes on the system's number of an error."""

_CUT_OFF = re.compile(r"inline_container\.cc.* unexpected pos \d+ vs \d+")
"""What torch.save says where a disk takes a part of a file; it tells no number."""


@contextlib.contextmanager
def told(folder: pathlib.Path) -> Iterator[None]:
    """Tells in our words that a disk is full, or that a folder may not be written.

    Args:
      folder: what the block writes to.

    Raises:
      FusionError: if so; names the folder and the cure.
    """
    with files.told(str(folder)):
        try:
            yield
        except (SafetensorError, RuntimeError) as error:
            if (number := _number(str(error))) is None:
                raise
            raise OSError(number, os.strerror(number), str(folder)) from error


def _number(said: str) -> int | None:
    """Returns the system's number of an error that a library tells in words."""
    if found := _NUMBER.search(said):
        return int(found[1])
    return ENOSPC if _CUT_OFF.search(said) else None
