"""The models of a merge, mapped into memory: for work that reads them again and again.

Pages are read from the disk when they are asked for, and stay where there is room. What
is written there stays in this process, and never reaches a file.
"""

import mmap

from schemas import buckets, files, weights
from schemas.weights import Place
from train.merge.reading import Opened, Reading


def open_models(reading: Reading) -> Opened:
    """Opens the models; those in buckets are read anew each time."""
    return Opened(reading, _Mapped(reading).read)


def check(reading: Reading) -> None:
    """Looks whether files on disks are those that the work was planned with.

    One that is written over where it lies changes under its mapping. Those in buckets
    are looked at whenever they are read.

    Raises:
      FileNotFoundError: if one is gone.
      FusionError: if one is another.
    """
    for model, stamps in zip(reading.models, reading.stamps, strict=True):
        for name, stamp in stamps.items():
            if not buckets.protocol(model.folder):
                path = files.join(model.folder, name)
                with files.open_input(path) as file:
                    weights.check_version(path, file, stamp)


class _Mapped:
    """The files of models, each mapped when it is first read."""

    def __init__(self, of: Reading) -> None:
        self._of = of
        self._folders = [one.folder for one in of.models]
        self._files: dict[tuple[int, str], memoryview] = {}

    def read(self, at: int, place: Place) -> bytearray | memoryview:
        """Returns the bytes of a tensor of an input."""
        folder, stamp = self._folders[at], self._of.stamps[at][place.file]
        if buckets.protocol(folder):
            return weights.read_bytes(folder, place, stamp)
        if (key := (at, place.file)) not in self._files:
            path = files.join(folder, place.file)
            with files.open_input(path) as file:
                weights.check_version(path, file, stamp)
                whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            self._files[key] = memoryview(whole)
        content = self._files[key][place.start : place.stop]
        # Files of others may hold numbers that are not aligned to their size.
        aligned = place.start % weights.ITEM_BYTES[place.dtype] == 0
        return content if aligned else bytearray(content)
