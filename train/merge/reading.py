"""The models of a merge as a worker reads them: one tensor of each at a time."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping

import torch

from schemas import weights
from schemas.errors import SchemaError
from schemas.weights import Place, Stamp
from train.merge import numbers, vocabulary
from train.merge.inputs import Input
from train.merge.plan import Tensor

Read = Callable[[int, Place], bytearray | memoryview]
"""Returns the bytes of a tensor of an input, given its number and the place there."""


class _Threads:
    """How many threads torch has, which is one number for the whole process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = 0

    @contextlib.contextmanager
    def set_to(self, count: int) -> Iterator[None]:
        """Sets it while a block runs; the last block that ends puts it back.

        Blocks of several threads overlap: what one of them found may be what another
        has set, and whoever ends first must leave it to those that go on.
        """
        with self._lock:
            if not self._users:
                self._before = torch.get_num_threads()
            self._users += 1
            torch.set_num_threads(count)
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    torch.set_num_threads(self._before)


_threads = _Threads()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """What a worker must know to read; it pickles.

    Attributes:
      models: the inputs: the models in order, then the base where there is one.
      stamps: of each, the version of every file of its weights.
      lead: place of the model whose rows stay where others have none.
      has_base: whether the last input is the base.
      threads: of torch; last bits may depend on them, so they are the same everywhere.
      output: folder of the merged model.
      identity: digest of all that shapes its bytes.
    """

    models: tuple[Input, ...]
    stamps: tuple[Mapping[str, Stamp], ...]
    lead: int
    has_base: bool
    threads: int
    output: str
    identity: str

    @contextlib.contextmanager
    def open(self) -> Iterator["Opened"]:
        """Looks where the models lie, and sets torch's threads, while a block runs."""
        with self.set_threads():
            yield Opened(self, self._reader())

    def set_threads(self) -> contextlib.AbstractContextManager[None]:
        """Sets torch's threads while a block merges tensors."""
        return _threads.set_to(self.threads)

    def _reader(self) -> Read:
        folders = [one.folder for one in self.models]

        def read(at: int, place: Place) -> bytearray:
            return weights.read_bytes(folders[at], place, self.stamps[at][place.file])

        return read


@dataclasses.dataclass(kw_only=True, eq=False)
class Aligned:
    """A tensor of all models, row for row of the same tokens.

    Attributes:
      models: of each model.
      base: of the base, where the method gets it.
      restore: puts what is merged of these rows back among those that are not, once,
        as it writes into those.
    """

    models: list[torch.Tensor]
    base: torch.Tensor | None
    restore: Callable[[torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Opened:
    """The models, opened in this process.

    Attributes:
      of: what is known of them.
      read: returns the bytes of a tensor of an input.
    """

    of: Reading
    read: Read

    def stored(self, at: int, place: Place) -> torch.Tensor:
        """Reads a tensor of an input as it is stored."""
        return numbers.from_bytes(self.read(at, place), place)

    def number(self, at: int, place: Place, key: str) -> torch.Tensor:
        """Reads a tensor of an input to compute with, in float32 or float64.

        Raises:
          SchemaError: if one of its numbers is NaN or infinite.
        """
        found = self.stored(at, place)
        if found.dtype != torch.float64:
            found = found.to(torch.float32)
        if not numbers.is_finite(found):
            one = self.of.models[at]
            raise SchemaError(
                f"weights must be finite, but {key} of {one.name} ({one.model}) holds"
                " NaN or inf; that model is broken: leave it out, or take the tensor"
                " from another by a rule"
            )
        return found

    def aligned(self, tensor: Tensor) -> Aligned:
        """Reads a tensor of all inputs, of its rows those that all models have."""
        read = [
            None if place is None else self.number(at, place, tensor.key)
            for at, place in enumerate(tensor.places)
        ]
        if not tensor.by_token:
            return self._parted(read, tensor.with_base, lambda merged: merged)
        ids = torch.from_numpy(vocabulary.read(self.of.output, self.of.identity))
        shared = (ids >= 0).all(dim=1).nonzero().flatten()
        lead = read[self.of.lead]
        assert lead is not None, "its rows stay, so it is read whatever the method"
        for at, rows in enumerate(ids[shared].long().unbind(dim=1)):
            whole = read[at]
            if whole is not None:
                read[at] = whole.index_select(0, rows)
        return self._parted(
            read,
            tensor.with_base,
            lambda merged: lead.to(merged.dtype).index_copy_(0, shared, merged),
        )

    def _parted(
        self,
        read: list[torch.Tensor | None],
        with_base: bool,
        restore: Callable[[torch.Tensor], torch.Tensor],
    ) -> Aligned:
        """Parts what was read into that of the models and that of the base."""
        models = read[:-1] if self.of.has_base else read
        base = read[-1] if with_base else None
        return Aligned(
            models=[one for one in models if one is not None],
            base=base,
            restore=restore,
        )
